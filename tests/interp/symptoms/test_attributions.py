"""Maps and scores as users of captum found them wrong."""

import warnings

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp.inputs import prompts


def test_undefined_maps_do_not_spoil_the_holistic_one(maps):
    """0 · NaN is NaN: what lies outside of a mask spoils everything.

    meta-pytorch/captum PR #1921, Select perturbed values without arithmetic masking
    """
    assert not maps["is_defined"].sel(kind="bottleneck").all()
    for role in ("answer", "thinking", None):
        got = interp.maps.holistic(maps, "bottleneck", role)
        assert np.isfinite(got).all() and float(got.sum()) > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reference_that_is_not_finite_is_refused(tiny, sample, refs, value):
    """A baseline that is not a number becomes an attribution that is none.

    meta-pytorch/captum PR #1920, Validate perturbation baselines before attribution
    """
    embeddings = refs["blur"].content.clone()
    embeddings[3, 5] = value
    with pytest.raises(ValueError, match="NaN|nan|finite|inf"):
        interp.extract.node_effects(
            tiny, sample, references={"mine": embeddings}, sources=["image"], positions=[55]
        )


@pytest.mark.parametrize("wrong", ["short", "long", "narrow", "flat"])
def test_a_reference_of_another_shape_is_refused(tiny, sample, refs, wrong):
    """Too many, too few or too narrow baselines are broadcast or cut (captum PR #1920)."""
    e = refs["blur"].content
    other = {"short": e[:-1], "long": torch.cat([e, e[:1]]), "narrow": e[:, :-1], "flat": e[:, :1]}
    with pytest.raises(ValueError, match="reference"):
        interp.extract.node_effects(
            tiny, sample, references={"mine": other[wrong]}, sources=["image"], positions=[55]
        )


@pytest.mark.parametrize("with_image", [False, True])
def test_a_map_that_is_not_defined_or_zero_is_drawn(maps, sample, with_image):
    """A map without values ends drawing: "Cannot normalize by scale factor = 0".

    meta-pytorch/captum #959
    """
    import matplotlib.pyplot as plt

    options = {"image": sample.image} if with_image else {}
    zero = maps.assign(map=maps["map"] * 0)
    undefined = int(np.flatnonzero(~maps["is_defined"].sel(kind="bottleneck").values)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ds, target, kind in ((zero, "answer", "direct"), (maps, undefined, "bottleneck")):
            try:
                ax = ds.vlm.plot(target, kind, **options)
            except ValueError as error:
                assert "expected" in str(error)
                continue
            ax.figure.canvas.draw()
            assert all(np.isfinite(one.get_clim()).all() for one in ax.images if one.cmap)
            plt.close("all")
        for pictures in (zero.vlm, maps.vlm):
            ax = pictures.strip("bottleneck")  # noqa: B005
            ax.figure.canvas.draw()
            assert np.isfinite(ax.images[0].get_clim()).all()
            plt.close("all")


def test_how_many_canvases_at_once_changes_nothing(tiny, sample, maps):
    """The result depends on how many perturbations share a forward.

    meta-pytorch/captum #586 / PR #1666 (perturbations_per_eval)
    """
    from interp.faithfulness import faithfulness

    saliency = {"direct": maps.vlm.map("answer", "direct")}
    many, one = (
        faithfulness(tiny, sample, saliency, shares=(0.1, 1.0), at_once=k) for k in (16, 1)
    )
    xr.testing.assert_allclose(many, one, atol=1e-5)
    got = many["log_likelihood"].sel(explainer="direct", share=1.0)
    np.testing.assert_allclose(got.sel(change="deletion"), many["of_blank"], atol=1e-5)
    np.testing.assert_allclose(got.sel(change="insertion"), many["of_original"], atol=1e-5)


def test_the_callers_batch_stays_as_it_is(tiny, sample):
    """Inputs are changed in place, or require gradients afterwards.

    meta-pytorch/captum PR #8, Fixing Input Arguments and Gradient Requirements
    """
    batch = dict(prompts.teacher_forced(tiny.processor, sample, None).batch)
    before = {name: value.clone() for name, value in batch.items()}
    interp.extract.ledger(tiny.model, batch, positions=[50])
    interp.extract.effects(tiny.model, batch, positions=[50], sources={"a": [3]})
    interp.extract.first_order(tiny.model, batch, positions=[50], n_nodes=2)
    assert list(batch) == list(before)
    for name, value in batch.items():
        assert torch.equal(value, before[name]) and not value.requires_grad
        assert value.grad is None


@pytest.mark.parametrize(
    "name", ["Grad-CAM", "input × gradient", "integrated gradients", "AttnLRP"]
)
def test_gradients_are_there_without_a_callers_leave(tiny, sample, name):
    """Under torch.no_grad gradients are missing (meta-pytorch/captum PR #324)."""
    from interp.attribution import METHODS

    last = len(prompts.teacher_forced(tiny.processor, sample, None).tokens.targets()) - 1
    expected = METHODS[name](tiny, sample, last)
    with torch.no_grad():
        got = METHODS[name](tiny, sample, last)
    np.testing.assert_allclose(got, expected, atol=1e-6 * float(abs(expected).max()))


@pytest.mark.parametrize("share", [5, -0.05, float("nan"), 1.5])
def test_a_share_that_is_none_is_refused(tiny, sample, maps, share):
    """A value outside of its range is taken, and something else is computed.

    meta-pytorch/captum PR #1922 (Validate perturbation feature masks); here 5 for 5 %
    """
    from interp.faithfulness import faithfulness

    with pytest.raises(ValueError, match="share"):
        faithfulness(tiny, sample, {"d": maps.vlm.map("answer", "direct")}, shares=(share,))
