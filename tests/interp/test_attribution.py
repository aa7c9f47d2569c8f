"""Every comparison method by what defines it (METHODS.md 4)."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

import interp
from analyses.reports.direct_vs_indirect.controls import random_weights
from interp.attribution import METHODS, attention, gradients, relevance
from interp.attribution import target as asked
from interp.attribution import token_activation as tam
from interp.data.boxes import box_overlap
from interp.data.digits import scenes as digits
from interp.data.images import blank
from interp.model.state import undisturbed
from interp.model.vlm import embed
from tests.support import odd_models, reference


@pytest.fixture(scope="module")
def samples():
    return interp.load_samples("digits", split="test", limit=10)


@pytest.fixture
def case(odd_model, processor):
    """A random model in float64, a non-square scene, its last target, and a slow forward."""
    vlm, sample = odd_models.vlm(odd_model, processor), odd_models.sample()
    last = len(interp.extract.question.ask(vlm, sample).rows) - 1
    clean = reference.Clean(odd_model, interp.extract.question.ask(vlm, sample).batch)
    return vlm, sample, last, asked.ask_one(vlm, sample, last), clean


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_maps_the_grid_and_leaves_no_trace(tiny, samples, name):
    sample = samples[3]
    ledger = interp.extract.ledger(tiny, sample)
    last = ledger.sizes["target"] - 1
    tiny.model.train()
    before = torch.get_rng_state()
    forwards = {m: vars(m).get("forward") for m in tiny.model.modules()}
    found = METHODS[name](tiny, sample, last)
    assert tiny.model.training
    assert all(vars(m).get("forward") is f for m, f in forwards.items() if f is not None)
    assert tiny.model.model.language_model.config._attn_implementation == "sdpa"
    assert all(p.grad is None for p in tiny.model.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    tiny.model.eval()
    expected = interp.maps.token_map(ledger, last)
    assert found.dims == ("row", "column") and found.shape == expected.shape
    assert np.isfinite(found.values).all() and float(np.abs(found).max()) > 0
    again = METHODS[name](tiny, sample, last)
    np.testing.assert_array_equal(found.values, again.values)
    with pytest.raises(ValueError, match=rf"{sample.id}: expected a target in 0\.\."):
        METHODS[name](tiny, sample, last + 1)
    answer = int(np.flatnonzero(ledger["target_role"] == "answer")[0])
    by_index = METHODS[name](tiny, sample, answer).values
    for same in ("answer", answer - last - 1):
        np.testing.assert_array_equal(METHODS[name](tiny, sample, same).values, by_index)


@pytest.mark.parametrize(("target", "message"), [(True, "got True"), ("", "''")])
def test_a_target_that_is_none_is_refused_and_named(tiny, samples, target, message):
    for name in ("rollout", "direct (Eq. 1)"):
        with pytest.raises(ValueError, match=f"{samples[3].id}: expected.*{message}"):
            METHODS[name](tiny, samples[3], target)


def on_grid(one, values) -> np.ndarray:
    """Values of the visual tokens as a method's map has them."""
    return one.on_grid(torch.as_tensor(values), "slow").values.ravel()


def test_attention_and_rollout_equal_slow_products(case):
    vlm, sample, last, one, clean = case
    n_layers = clean.text.num_hidden_layers
    every = [clean.kept[f"layers.{n}.self_attn"][2][1][0].mean(dim=0) for n in range(n_layers)]
    raw = torch.stack(every).mean(dim=0)[one.row, one.visual]
    mine = attention.raw_attention(vlm, sample, last).values.ravel()
    np.testing.assert_allclose(mine, on_grid(one, raw), atol=1e-7)
    product = torch.eye(len(raw.new_zeros(len(clean.mask))), dtype=every[0].dtype)
    for matrix in every:
        product = (0.5 * matrix + 0.5 * torch.eye(len(product), dtype=matrix.dtype)) @ product
    assert abs(float(product[one.row].sum()) - 1) < 1e-6
    mine = attention.rollout(vlm, sample, last).values.ravel()
    np.testing.assert_allclose(mine, on_grid(one, product[one.row, one.visual]), atol=1e-6)


def test_cam_at_the_targets_row_would_be_its_logit(case):
    vlm, sample, last, one, clean = case
    found = METHODS["CAM"](vlm, sample, last).values.ravel()
    with torch.no_grad():
        logits = clean.model.lm_head(clean.output("norm")[0])
    own = one.context.logits[0, one.target] - one.context.logits[0].mean()
    logits = logits - logits.mean(dim=-1, keepdim=True)
    np.testing.assert_allclose(found, on_grid(one, logits[one.visual, one.target]), atol=1e-5)
    np.testing.assert_allclose(logits[one.row, one.target], float(own), rtol=1e-5)


def test_grad_cam_equals_finite_differences(case):
    vlm, sample, last, one, _ = case
    found = METHODS["Grad-CAM"](vlm, sample, last).values.ravel()
    embeddings, rows, step = one.context.content, one.visual, 3e-3
    mean = []
    with torch.no_grad(), undisturbed(vlm.model):
        for d in range(embeddings.shape[1]):
            sides = []
            for sign in (1, -1):
                moved = embeddings.clone()
                moved[rows, d] += sign * step  # all visual rows at once: their mean gradient
                sides.append(float(one.logit(moved)))
            mean.append((sides[0] - sides[1]) / (2 * step * len(rows)))
    slow = (embeddings[rows] @ torch.tensor(mean, dtype=embeddings.dtype)).clamp(min=0)
    np.testing.assert_allclose(found, on_grid(one, slow), atol=5e-3 * float(slow.max()) + 1e-5)


def test_integrated_gradients_are_complete(case):
    vlm, sample, last, one, _ = case
    found = METHODS["integrated gradients"](vlm, sample, last)
    change = found.attrs["change"]
    assert float(found.sum()) == pytest.approx(change, abs=1e-4 * abs(change) + 1e-4)
    assert abs(found.attrs["convergence_delta"]) <= 1e-4 * abs(change) + 1e-4
    few = gradients.integrated_gradients(vlm, sample, last, n_steps=1)
    rest = float(few.sum()) - change
    assert few.attrs["convergence_delta"] == pytest.approx(rest, abs=1e-5)
    assert abs(rest) > 1e-4
    # From the forward of a blank image to the sample's own.
    empty = embed(vlm, blank(vlm.processor, sample.image.size))[0]
    embeddings = one.context.content.clone()
    embeddings[one.visual] = empty.to(embeddings)
    with torch.no_grad(), undisturbed(vlm.model):
        expected = float(one.logit(one.context.content)) - float(one.logit(embeddings))
        logits = one.context.logits[0]
    assert float(one.logit(one.context.content)) == pytest.approx(
        float(logits[one.target] - logits.mean()), abs=1e-5
    )
    assert change == pytest.approx(expected, abs=1e-5)


def test_input_x_gradient_equals_finite_differences(case):
    """Patch by patch: how the logit changes when a visual token's pixels are scaled."""
    vlm, sample, last, one, _ = case
    if vlm.model.config.model_type == "llava_onevision":
        pytest.skip("its tokens have no pixels of their own")
    found = METHODS["input × gradient"](vlm, sample, last).values.ravel()
    pixels, step, slopes = one.query.batch["pixel_values"], 1e-3, []
    with torch.no_grad(), undisturbed(vlm.model):
        for token in range(len(one.visual)):
            sides = []
            for factor in (1 + step, 1 - step):
                cells = one.parts.by_token(pixels).clone()
                cells[token] *= factor
                scaled = {"pixel_values": one.parts.of_tokens(cells, pixels)}
                sides.append(float(one.logits(one.query.batch | scaled)[0]))
            slopes.append((sides[0] - sides[1]) / (2 * step))
    np.testing.assert_allclose(found, on_grid(one, slopes), atol=2e-3 * np.abs(found).max() + 2e-4)


def test_relevance_is_conserved_along_values(processor):
    """Without biases, and with the pattern held: over all tokens it sums to the logit."""
    for name in odd_models.SHAPES:
        model = odd_models.make(name, processor)
        with torch.no_grad():
            for key, parameter in model.model.language_model.named_parameters():
                if key.endswith("bias"):
                    parameter.zero_()
        vlm, sample = odd_models.vlm(model, processor), odd_models.sample()
        one = asked.ask_one(vlm, sample, 3)
        found = relevance.relevance(one, through_pattern=False)
        logit = float(one.context.logits[0, one.target] - one.context.logits[0].mean())
        assert float(found.sum()) == pytest.approx(logit, rel=1e-4)
        assert not np.isclose(float(relevance.relevance(one, through_pattern=True).sum()), logit)


def test_relevance_rules_equal_their_explicit_form(case):
    """One attention head by AttnLRP's own equations: R of scores, queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 5, 4, generator=generator).double() for _ in range(3))
    relevance_out = torch.randn(5, 4, generator=generator).double()
    module = type("Module", (), {"num_key_value_groups": 1})()
    inputs = [one.clone().requires_grad_() for one in (q, k, v)]
    out, _ = relevance._attention(module, *inputs, None, 0.5, through_pattern=True)
    # ε-rule relevance is input times gradient of what has R / output as its upstream gradient.
    upstream = relevance_out / out[0, :, 0].detach()
    grads = torch.autograd.grad((out[0, :, 0] * upstream).sum(), inputs)
    mine = [(x * g)[0, 0].detach() for x, g in zip(inputs, grads, strict=True)]

    scores = 0.5 * q[0, 0] @ k[0, 0].T
    scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    a = scores.softmax(-1)
    z = a @ v[0, 0]
    share = a[:, :, None] * v[0, 0][None] * (relevance_out / z)[:, None, :]  # (i, j, d)
    of_values = share.sum(0) / 2
    of_pattern = share.sum(-1) / 2
    finite = torch.where(torch.isinf(scores), 0.0, scores)
    of_scores = finite * (of_pattern - a * of_pattern.sum(-1, keepdim=True))
    per_pair = torch.where(finite == 0, 0.0, of_scores / torch.where(finite == 0, 1.0, finite))
    pairs = 0.5 * q[0, 0][:, None] * k[0, 0][None] * per_pair[..., None] / 2  # (i, j, d)
    for found, expected in zip(mine, (pairs.sum(1), pairs.sum(0), of_values), strict=True):
        torch.testing.assert_close(found, expected)


def test_tam_takes_out_what_is_repeated():
    own, other = torch.tensor([4.0, 1.0, 0.0]), torch.tensor([2.0, 0.0, 0.0])
    torch.testing.assert_close(tam.without(own, other), torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(tam.without(own, 0 * other), own)
    torch.testing.assert_close(tam.without(2 * other, other), 0 * other)
    flat = np.full((4, 5), 2.0)
    np.testing.assert_allclose(tam.rank_gaussian(flat), flat)
    spot = np.zeros((5, 5))
    spot[2, 2] = 9.0
    filtered = tam.rank_gaussian(spot)
    assert filtered[2, 2] < spot[2, 2] / 2  # one lonely patch is noise
    noisy = np.random.default_rng(0).uniform(1, 2, (6, 6))
    smooth = tam.rank_gaussian(noisy)
    assert smooth.min() >= noisy.min() and smooth.max() <= noisy.max()
    assert smooth.std() < noisy.std()


def test_tam_equals_a_slow_reading(case):
    vlm, sample, last, one, clean = case
    tokens, ids = one.query.tokens, one.query.batch["input_ids"][0].tolist()
    head = clean.model.lm_head.weight.detach()
    states = clean.output("norm")[0].detach()

    def activation(token, row):
        return max(0.0, float((head[token] - head.mean(0)) @ states[row]))

    rows = one.visual.tolist()
    own = torch.tensor([activation(one.target, v) for v in rows])
    weights, maps = [], []
    for k in range(one.row + 1):
        if tokens.role[k] in ("question", "thinking", "answer") and ids[k] != one.target:
            weights.append(activation(one.target, k))
            maps.append([activation(ids[k], v) for v in rows])
    total = max(sum(weights), 1e-12)
    other = torch.tensor(maps).T @ torch.tensor(weights) / total
    rest = tam.without(own, other)
    expected = tam.rank_gaussian(one.on_grid(rest, "slow").values)
    found = METHODS["TAM"](vlm, sample, last)
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(expected.max(), 1))


def share_of_asked(vlm, scenes, method) -> np.ndarray:
    """Mass on the asked digit over mass on all digits, minus one over their number, by scene."""
    few = {"n_steps": 8} if method == "integrated gradients" else {}  # enough for a mass
    found = []
    for sample in scenes:
        last = len(interp.extract.question.ask(vlm, sample).rows) - 1
        mass = np.maximum(METHODS[method](vlm, sample, last, **few).values, 0)
        boxes = digits.object_boxes(sample)
        masses = np.array([(mass * box_overlap(b[None], *mass.shape)).sum() for b in boxes])
        is_asked = [(sample.boxes == box).all(axis=1).any() for box in boxes]
        if masses.sum() > 0:
            found.append(masses[is_asked].sum() / masses.sum() - 1 / len(boxes))
    return np.array(found)


@pytest.fixture(scope="module")
def asked_of_one():
    """Scenes of several digits whose question is about one."""
    every = interp.load_samples("digits", split="test", limit=200)
    fit = [one for one in every if len(one.boxes) == 1 and len(digits.object_boxes(one)) > 1]
    return fit[: 40 if "SOAK" in os.environ else 20]


QUICK = ("direct (Eq. 1)", "CAM", "TAM", "rollout")


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m in QUICK else pytest.mark.long) for m in METHODS]
)
def test_random_weights_know_nothing_of_the_asked_digit(tiny, asked_of_one, method):
    """Four standard errors, as it is asked sixteen times."""
    scenes = asked_of_one
    excess = share_of_asked(random_weights(tiny, seed=0), scenes, method)
    assert len(excess) >= 15
    assert abs(excess.mean()) <= 4 * excess.std(ddof=1) / len(excess) ** 0.5 + 1e-9
    if method in ("direct (Eq. 1)", "integrated gradients", "AttnLRP", "exact edge"):
        assert share_of_asked(tiny, scenes[:10], method).mean() > 0.2


def test_object_boxes_contain_the_evidence(samples):
    assert len(digits.object_boxes(samples[0])) >= len(samples[0].boxes)
    with pytest.raises(ValueError, match="data set digits"):
        digits.object_boxes(replace(samples[0], dataset="other"))
    small = digits.make_sample("test", 1, max_digits=2)
    if not np.array_equal(small.boxes, samples[1].boxes):
        with pytest.raises(ValueError, match="default settings"):
            digits.object_boxes(small)
