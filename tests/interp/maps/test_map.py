"""A map's own `.plot`: upright, signed colours, a colour bar; otherwise xarray's."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import interp
from interp.attribution import METHODS
from interp.maps import Map


@pytest.fixture(scope="module")
def sample():
    return interp.load_samples("digits", split="test", limit=8)[6]


def colour_at(ax, row: float, column: float):
    """The colour that a reader sees at a patch, counted from the picture's top left."""
    mesh = ax.collections[0]
    mesh.update_scalarmappable()
    n_rows, n_columns = mesh.get_array().shape
    faces = mesh.get_facecolors().reshape(n_rows, n_columns, 4)
    top_left = ax.transData.transform((0, 0))
    bottom_left = ax.transData.transform((0, n_rows - 1))
    is_upright = top_left[1] > bottom_left[1]
    return faces[row if is_upright else n_rows - 1 - row, column]


def every_map(vlm, sample) -> dict[str, Map]:
    ledger = interp.extract.ledger(vlm, sample)
    maps = interp.extract.maps(vlm, sample, kinds=("direct", "bottleneck"))
    return {
        "token_map": interp.maps.token_map(ledger, "answer"),
        "one_map": interp.maps.one_map(maps, "answer", "bottleneck"),
        "holistic": interp.maps.holistic(maps),
        "accessor": maps.vlm.map("answer"),
        "on_grid": interp.maps.on_grid(ledger.direct.isel(target=-1).sum(("layer", "head"))),
        "method": METHODS["CAM"](vlm, sample, 9),
        "scaled": 2 * maps.vlm.map("answer"),
    }


def test_every_map_is_drawn_upright_with_its_sign_and_a_bar(tiny, sample):
    for name, saliency in every_map(tiny, sample).items():
        plt.figure()
        ax = saliency.plot().axes
        row, column = np.unravel_index(saliency.values.argmax(), saliency.shape)
        red, _, blue, _ = colour_at(ax, row, column)
        assert red > blue, name
        assert ax.yaxis_inverted() and len(ax.figure.axes) == 2, name
        low, high = ax.collections[0].get_clim()
        assert low == -high == pytest.approx(-float(abs(saliency).max())), name
        plt.close("all")


def test_the_upper_left_stands_in_the_upper_left_of_the_picture():
    values = np.zeros((3, 5))
    values[0, 0], values[2, 4] = 2.0, -1.0
    coords = {"row": np.arange(3), "column": np.arange(5)}
    figure, ax = plt.subplots(figsize=(5, 3), dpi=50)
    Map(values, dims=("row", "column"), coords=coords).plot(ax=ax, add_colorbar=False)
    ax.set_position((0, 0, 1, 1))
    ax.axis("off")
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    upper_left, lower_right = pixels[10, 10], pixels[-10, -10]
    assert upper_left[0] > upper_left[2] + 50
    assert lower_right[2] > lower_right[0] + 20
    plt.close(figure)


def test_everything_else_is_xarrays(tiny, sample):
    saliency = interp.maps.token_map(interp.extract.ledger(tiny, sample), "answer")
    plain = xr.DataArray(saliency)
    assert isinstance(saliency, xr.DataArray)
    np.testing.assert_array_equal(saliency.mean("row"), plain.mean("row"))
    plt.figure()
    (line,) = saliency.mean("row").plot()
    assert len(line.get_xdata()) == saliency.sizes["column"]
    drawn = saliency.plot(cmap="viridis", vmin=0, vmax=3)
    assert drawn.get_cmap().name == "viridis" and drawn.get_clim() == (0, 3)
    for name in ("imshow", "contourf"):
        plt.figure()
        assert getattr(saliency.plot, name)().axes.yaxis_inverted(), name
    plt.close("all")
    nothing = Map(np.zeros((2, 2)), dims=("row", "column"))
    assert nothing.limit == 1.0
    nothing.assign_coords(row=[0, 1], column=[0, 1]).plot()
    plt.close("all")


def test_several_images_each_have_their_map_and_their_source_set(tiny, sample):
    other = interp.load_samples("digits", split="test", limit=3)[2]
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "which is larger?"}]
    chat = [{"role": "user", "content": content}]
    text = tiny.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    images = [sample.image, other.image]
    batch = tiny.processor(images=images, text=[text], return_tensors="pt")
    asked = {"positions": [batch["input_ids"].shape[1] - 1], "targets": [41]}
    ledger = interp.extract.ledger(tiny.model, batch, **asked)
    with pytest.raises(ValueError, match=r"got 2 images; say image= of \[0, 1\]"):
        interp.maps.token_map(ledger, 0)
    with pytest.raises(ValueError, match=r"got image=2; say image= of"):
        ledger.vlm.map(0, image=2)
    maps = [ledger.vlm.map(0, image=number) for number in (0, 1)]
    cell = 28
    for saliency, image in zip(maps, images, strict=True):
        assert saliency.shape == (image.height // cell, image.width // cell)
    one = ledger.isel(source=(ledger.image == 1).values)
    np.testing.assert_allclose(interp.maps.token_map(one, 0), maps[1], atol=1e-6)
    names = ["image", "image 0", "image 1"]
    effects = interp.extract.effects(tiny.model, batch, sources=names, **asked)
    direct = effects.effect.sel(path="direct").isel(target=0)
    sums = [float(saliency.sum()) for saliency in maps]
    np.testing.assert_allclose(direct, [sum(sums), *sums], atol=1e-5)
    assert abs(sums[0]) > 1e-4 < abs(sums[1])


def test_kinds_of_maps_are_names_of_methods_too(tiny, sample):
    target = len(interp.extract.ledger(tiny, sample, detail="summary").target) - 1
    maps = interp.extract.maps(tiny, sample, kinds=("direct", "effect"), only=[target])
    for kind in ("direct", "effect"):
        np.testing.assert_allclose(METHODS[kind](tiny, sample, target), maps.vlm.map(0, kind))
    assert METHODS.named(["edge", "CAM", "exact edge"]) == ["exact edge", "CAM"]
    with pytest.raises(KeyError, match="expected a method of"):
        METHODS["loud"]
    with pytest.raises(ValueError, match=r"got \['loud'\]"):
        METHODS.named(["loud"])
