"""Settings of the process around a call, which change no number and stay as they were."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

import interp
from interp.data.images import open_image
from interp.inputs import prompts
from tests.support.symptoms import TWO, colour, png


def test_edited_weights_have_another_hash_in_both_call_forms(own, sample):
    """Ordinary writes to weights are noticed; the stored hash is not the loaded one's."""
    batch = prompts.teacher_forced(own.processor, sample, None).batch
    before = interp.extract.ledger(own, sample, detail="summary", **TWO)
    with torch.no_grad():
        own.model.lm_head.weight[5] += 1.0
    after = interp.extract.ledger(own, sample, detail="summary", **TWO)
    bare = interp.extract.ledger(own.model, batch, detail="summary", **TWO)
    assert bare.attrs["model_hash"] != before.attrs["model_hash"]
    assert after.attrs["model_hash"] == bare.attrs["model_hash"]


def test_warnings_as_errors_are_no_errors(tiny, sample, refs):
    """`python -W error`: a library's own warnings end the program."""
    calls = {
        "ledger": {},
        "effects": {},
        "maps": {"kinds": ("direct", "bottleneck", "two_hop", "effect")},
        "shapley": {"references": refs, "positions": [55]},
        "origins": TWO,
    }
    for name, options in calls.items():
        expected = getattr(interp.extract, name)(tiny, sample, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = getattr(interp.extract, name)(tiny, sample, **options)
        assert got.identical(expected), name


def test_strict_floating_point_is_no_error(tiny, sample, maps):
    """np.seterr(all="raise") of a caller ends in FloatingPointError."""
    whole, zero = maps.vlm.map(kind="holistic"), maps.vlm.map("answer", "direct") * 0

    def numbers():
        aligned = [interp.maps.alignment.alignment(one, sample.boxes) for one in (whole, zero)]
        return interp.extract.effects(tiny, sample), aligned

    effects, aligned = numbers()
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        strict_effects, strict_aligned = numbers()
    assert strict_effects.identical(effects)
    assert all(a.identical(b) for a, b in zip(strict_aligned, aligned, strict=True))


def test_deterministic_algorithms_are_enough(tiny, sample):
    """torch.use_deterministic_algorithms(True) refuses an operation."""
    calls = {"effects": TWO, "first_order": {"n_nodes": 2} | TWO, "patch_effects": TWO}
    expected = {n: getattr(interp.extract, n)(tiny, sample, **o) for n, o in calls.items()}
    torch.use_deterministic_algorithms(True)
    try:
        got = {n: getattr(interp.extract, n)(tiny, sample, **o) for n, o in calls.items()}
    finally:
        torch.use_deterministic_algorithms(False)
    for name, dataset in expected.items():
        xr.testing.assert_allclose(got[name], dataset, atol=1e-5)


def test_what_people_send_to_other_processes_can_be_pickled(tiny, sample):
    """A loaded model, a sample and a text cross to another process and back."""
    text = tiny.answer(sample.image, sample.question)
    vlm, one, same = pickle.loads(pickle.dumps((tiny, sample, text)))
    assert same == text
    got = interp.extract.ledger(vlm, one, completion=same, detail="summary")
    assert got.identical(interp.extract.ledger(tiny, sample, completion=text, detail="summary"))


def test_a_model_loaded_in_inference_mode_has_gradients(tiny, sample):
    """Weights made in inference mode cannot be differentiated through later."""
    with torch.inference_mode():
        vlm = interp.load_model("tiny")
    assert not any(weight.is_inference() for weight in vlm.model.parameters())
    for name, options in (("first_order", {"n_nodes": 2} | TWO), ("effects", TWO)):
        expected = getattr(interp.extract, name)(tiny, sample, **options)
        assert getattr(interp.extract, name)(vlm, sample, **options).identical(expected)


def test_plots_leave_the_callers_style(maps):
    """Drawing one map changes all later figures of a notebook."""
    import matplotlib.pyplot as plt

    before = dict(plt.rcParams)
    maps.vlm.plot("answer", "direct")
    maps.vlm.strip("direct")
    plt.close("all")
    assert {k: v for k, v in plt.rcParams.items() if before[k] != v} == {}


@pytest.mark.parametrize("kind", ["path", "bytes", "rgba", "cmyk", "deep"])
def test_a_samples_image_of_any_kind_can_be_drawn_over(maps, sample, tmp_path, kind):
    """README: ms.vlm.plot(…, image=sample.image); samples from files hold a path or bytes."""
    import matplotlib.pyplot as plt

    sample.image.save(tmp_path / "a.png")
    made = {
        "path": lambda: tmp_path / "a.png",
        "bytes": (tmp_path / "a.png").read_bytes,
        "rgba": lambda: sample.image.convert("RGBA"),
        "cmyk": lambda: sample.image.convert("CMYK"),
        "deep": lambda: Image.fromarray(
            np.asarray(sample.image.convert("L")).astype(np.uint16) * 257
        ),
    }[kind]()
    expected = maps.vlm.plot("answer", "direct", image=sample.image).images[0].get_array()
    got = maps.vlm.plot("answer", "direct", image=made).images[0].get_array()
    plt.close("all")
    assert np.abs(np.asarray(got) - np.asarray(expected)).max() < 0.05


def test_transparent_pixels_hide_what_is_below_in_drawings(maps, sample):
    """The model sees transparency as white; the overlay shows the colours that lie under it."""
    import matplotlib.pyplot as plt

    image = Image.new("RGBA", sample.image.size, (0, 0, 0, 0))
    drawn = maps.vlm.plot("answer", "direct", image=image).images[0].get_array()
    plt.close("all")
    assert np.allclose(drawn, 1.0)  # as `open_image`: white


@pytest.mark.parametrize("limit", [None, 10])
def test_a_callers_limit_on_pixels_is_one_line_at_most(monkeypatch, limit):
    """Image.MAX_IMAGE_PIXELS of the program is None or tiny."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    content = png(Image.new("RGB", (64, 64), "red"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert colour(open_image(content)) == (255, 0, 0)
        except ValueError as error:
            assert limit == 10 and "\n" not in str(error)


@pytest.mark.parametrize("kind", ["folder", "fifo-like", "dangling link", "device"])
def test_what_is_no_file_is_refused_in_one_line(tmp_path, kind):
    """An image that is a folder, a dead link or a device."""
    path = tmp_path / "a.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "gone.png")
    elif kind == "device":
        path = Path("/dev/null")
    else:
        path.write_bytes(b"\x00" * 10)
    with pytest.raises(ValueError, match="expected a readable image file") as caught:
        open_image(path)
    assert "\n" not in str(caught.value)


def test_animations_are_their_first_frame_however_they_lie(tmp_path):
    """An animated PNG or WebP, as file and as an image that was moved on."""
    frames = [Image.new("RGB", (32, 32), name) for name in ("red", "lime", "blue")]
    for form in ("PNG", "WEBP", "GIF"):
        path = tmp_path / f"a.{form.lower()}"
        options = {"lossless": True} if form == "WEBP" else {}
        frames[0].save(path, form, save_all=True, append_images=frames[1:], **options)
        assert colour(open_image(path)) == (255, 0, 0), form
