"""Node effects and Shapley values against the slow reference, and against their own sums."""

import numpy as np
import pytest
import torch

import interp
from interp.vocabulary import PATH_CLASSES
from tests.support import odd_models, reference
from tests.support.odd_models import batch, make, random_references

PADDING = 3


@pytest.fixture
def case(odd_model, processor):
    """Model, left-padded batch, rows with targets, visual source sets and references."""
    inputs = batch(processor, padding=PADDING)
    last = inputs["input_ids"].shape[1] - 1
    visual = (inputs["input_ids"][0] == odd_model.config.image_token_id).nonzero()[:, 0].tolist()
    asked = {"positions": [last - 4, last - 1, last - 1], "targets": [5, 40, 41]}
    asked["sources"] = {"image": visual, "some": visual[2:5]}
    asked["references"] = random_references(inputs, odd_model)
    return odd_model, inputs, asked


def slow_pair(model, inputs, asked, source_set, name):
    """Clean and reference run, eager and without the padding, and the set's rows in them."""
    plain = odd_models.unpadded(model, inputs, PADDING)
    visual, rows = asked["sources"]["image"], asked["sources"][source_set]
    embeddings = asked["references"][name]
    replaced = {p - PADDING: embeddings[visual.index(p)] for p in rows}
    clean = reference.Clean(model, plain)
    return clean, reference.Clean(model, plain, replaced), list(replaced)


def scale(model, inputs, asked):
    ds = interp.extract.ledger(
        model, inputs, positions=asked["positions"], targets=asked["targets"], detail="summary"
    )
    return ds.magnitude


def test_node_effects_equal_the_slow_reference(case):
    model, inputs, asked = case
    fx = interp.extract.node_effects(model, inputs, **asked)
    assert fx.effect.dims == ("target", "source_set", "reference", "path")
    sizes = scale(model, inputs, asked)
    for source_set, name in (("image", "one"), ("some", "two")):
        clean, other, rows = slow_pair(model, inputs, asked, source_set, name)
        for k, (row, target) in enumerate(zip(asked["positions"], asked["targets"], strict=True)):
            total, parts = reference.node_effect(clean, other, row - PADDING, target, rows)
            one = fx.isel(target=k).sel(source_set=source_set, reference=name)
            limit = 2e-6 * float(sizes[k])
            total = total.detach()
            assert abs(float(total)) > 1e-3 * float(sizes[k])
            np.testing.assert_allclose(one.total, float(total), atol=limit)
            for path, value in parts.items():
                np.testing.assert_allclose(
                    one.effect.sel(path=path), float(value.detach()), atol=limit, err_msg=path
                )


def test_shapley_values_equal_the_slow_reference(case):
    model, inputs, asked = case
    ds = interp.extract.shapley(
        model, inputs, gauge=("centered", "contrast"), foils=[7, 8, 9], **asked
    )
    assert ds.shapley.dims == (
        "target",
        "source_set",
        "reference",
        "path_class",
        "norm",
        "gauge",
    )
    sizes = scale(model, inputs, asked)
    source_set, name, k = "some", "one", 1
    clean, other, rows = slow_pair(model, inputs, asked, source_set, name)
    row, target = asked["positions"][k] - PADDING, asked["targets"][k]
    for gauge, norm in (("centered", "live"), ("contrast", "frozen"), ("contrast", "live")):
        g = clean.gauge_row(target, gauge, 8)
        one = ds.isel(target=k).sel(source_set=source_set, reference=name, norm=norm, gauge=gauge)
        for variable, is_strict in (("shapley", False), ("shapley_strict", True)):
            values = reference.value_at(clean, other, row, rows, g, is_strict, norm == "live")
            expected = [float(v.detach()) for v in reference.shapley_values(values)]
            np.testing.assert_allclose(one[variable], expected, atol=2e-6 * float(sizes[k]))
        values = reference.value_at(clean, other, row, rows, g, False, norm == "live")
        v = {key: float(value.detach()) for key, value in values.items()}
        expected = {
            "total": v[1, 1, 1] - v[0, 0, 0],
            "pnde": v[1, 0, 0] - v[0, 0, 0],
            "tnde": v[1, 1, 1] - v[0, 1, 1],
            "pnie": v[0, 1, 1] - v[0, 0, 0],
            "tnie": v[1, 1, 1] - v[1, 0, 0],
        }
        for variable, value in expected.items():
            np.testing.assert_allclose(one[variable], value, atol=2e-6 * float(sizes[k]))
        pair = np.mean([v[1, 1, c] - v[1, 0, c] - v[0, 1, c] + v[0, 0, c] for c in (0, 1)])
        np.testing.assert_allclose(
            one.pair_interaction.sel(pair="P1 P2"), pair, atol=2e-6 * float(sizes[k])
        )


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", list(odd_models.SHAPES))
def test_every_split_sums_to_its_total(processor, shape, dtype, bound):
    model = make(shape, processor, dtype)
    inputs = batch(processor, padding=1, dtype=dtype)
    n_tokens = inputs["input_ids"].shape[1]
    asked = {
        "positions": range(n_tokens - 8, n_tokens - 1),
        "references": random_references(inputs, model),
    }
    summed = interp.extract.ledger(model, inputs, positions=asked["positions"]).magnitude
    fx = interp.extract.node_effects(model, inputs, **asked)
    ds = interp.extract.shapley(model, inputs, **asked)

    def relative(error):
        return float((np.abs(error) / summed).max())

    assert float(np.abs(fx.total).max()) > 0.01
    assert relative(fx.total - fx.effect.sum("path")) < bound
    by_role = fx.mediated_by_role.sum("role")
    assert relative(fx.effect.sel(path="mediated") - by_role) < bound
    assert relative(ds.total - ds.shapley.sum("path_class")) < bound
    assert relative(ds.total - ds.shapley_strict.sum("path_class")) < bound
    assert relative(ds.total.sel(norm="live") - fx.total) < bound
    frozen = ds.shapley.sel(norm="frozen", path_class=PATH_CLASSES[0])
    assert relative(frozen - ds.direct_write.sum("write")) < bound
    # TE is made of the natural effects either way round.
    assert relative(ds.total - ds.pnde - ds.tnie) < bound
    assert relative(ds.total - ds.tnde - ds.pnie) < bound


def test_a_reference_that_is_the_content_itself_changes_nothing(odd_model, processor):
    inputs = batch(processor)
    image = inputs["input_ids"][0] == odd_model.config.image_token_id
    parts = interp.model.families.parts(odd_model)
    own = interp.model.vlm.image_embeddings(odd_model, inputs)
    assert len(own) == int(image.sum()) and parts.n_layers > 1
    fx = interp.extract.node_effects(odd_model, inputs, positions=[55], references={"own": own})
    assert float(np.abs(fx.effect).max()) < 1e-9


def test_what_cannot_be_replaced_is_refused(processor):
    model, inputs = make("two_to_one", processor), batch(processor)
    refs = random_references(inputs, model)
    cases = [
        ({"references": {}}, "expected references="),
        ({"references": {"a": refs["one"][:3]}}, "content for each of the"),
        ({"references": refs, "sources": {"text": [len(inputs["input_ids"][0]) - 3]}}, "visual"),
        ({"references": refs, "sources": ["question"]}, "source sets of"),
        ({"references": refs, "gauge": "contrast"}, "foils="),
    ]
    for function in (interp.extract.node_effects, interp.extract.shapley):
        for options, message in cases:
            with pytest.raises(ValueError, match=message):
                function(model, inputs, positions=[55], **options)


def test_roles_are_switched_in_text_order(processor):
    """A role mediates the difference of two replays; alone, it is the other order."""
    from tests.support.odd_models import sample, vlm

    model = make("two_to_one", processor)
    made = vlm(model, processor)
    from interp.extract.question import ask

    query = ask(made, sample())
    visual = query.tokens.image >= 0
    torch.manual_seed(2)
    content = torch.randn(int(visual.sum()), model.config.text_config.hidden_size).double()
    row = int(query.rows[-1])
    clean = reference.Clean(model, query.batch)
    replaced = dict(zip(visual.nonzero()[0].tolist(), content, strict=True))
    other = reference.Clean(model, query.batch, replaced)
    g = clean.gauge_row(int(query.targets[-1]), "centered")

    def value(swapped):
        _, h = reference.play_row(clean, row, other=other, swapped=swapped)
        return float((clean.readout(h, g) @ h).detach())

    role = query.tokens.role
    order = [name for name in dict.fromkeys(role) if name not in ("image", "padding")]
    assert {"template", "question", "thinking"} < set(order)
    swapped = [p for p in range(row) if visual[p]]
    before, expected = value(swapped), {}
    for name in order:
        swapped = swapped + [p for p in range(row) if role[p] == name]
        now = value(swapped)
        expected[name], before = before - now, now
    fx = (
        interp.extract.node_effects(made, sample(), references={"one": content}, sources=["image"])
        .isel(target=-1)
        .squeeze()
    )
    for name, effect in expected.items():
        np.testing.assert_allclose(fx.mediated_by_role.sel(role=name), effect, atol=1e-5)
    assert max(abs(effect) for effect in expected.values()) > 1e-3
    others = [p for p in range(row) if not visual[p]]
    np.testing.assert_allclose(fx.mediated_alone, value([]) - value(others), atol=1e-5)
