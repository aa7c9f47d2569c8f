"""Losses beside GRPO's: attention against eager weights, gradients against differences, gates."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

import interp
from interp.capture.heard import hearing
from interp.inputs import prompts as inputs
from interp.inputs.tokens import token_table
from interp.maps.alignment import share_inside
from interp.model import families
from interp.model.vlm import VLM
from tests.support import ROOT, odd_models
from tests.train import test_grpo
from train import grpo
from train.losses import Ease, MapGradient
from train.losses.ease import target
from train.losses.micro_batch import MicroBatch, Text, spread_rows


def silent(_name, _value):
    pass


def texts_of(processor, samples) -> list[Text]:
    """The samples' own texts behind their prompts."""
    found = []
    for sample in samples:
        prompt = inputs.prompts(processor, [sample], None)
        batch = inputs.extended(prompt, inputs.text_ids(processor, sample))
        size = [sample.image.size[::-1]]
        tokens = token_table(processor, batch, sample.boxes, size, None)
        found.append(Text(sample, tokens, prompt["input_ids"].shape[1], sample.boxes))
    return found


def case(model, processor, samples):
    """A padded batch of texts, as the trainer's forward gets it, and as losses read it."""
    texts = texts_of(processor, samples)
    prompts = inputs.prompts(processor, samples, None)
    n_prompt = prompts["input_ids"].shape[1]
    rest = [torch.from_numpy(one.tokens.ids[one.n_prompt :].copy()) for one in texts]
    completion = torch.nn.utils.rnn.pad_sequence(rest, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in rest], batch_first=True)
    given = dict(prompts)
    given["input_ids"] = torch.cat([prompts["input_ids"], completion], dim=1)
    given["attention_mask"] = torch.cat([prompts["attention_mask"], mask], dim=1)
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in given:
            given[name] = torch.cat([given[name], torch.zeros_like(completion)], dim=1)
    given = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in given.items()}
    batch = MicroBatch(
        texts=texts,
        ids=given["input_ids"],
        is_visible=given["attention_mask"].bool(),
        n_left=[n_prompt - one.n_prompt for one in texts],
        is_paid=torch.ones(len(texts), dtype=torch.bool),
    )
    return given, batch


@pytest.fixture(scope="module")
def samples():
    found = interp.load_samples("digits", limit=12)
    return [one for one in found if len(one.question) != len(found[0].question)][:2] + found[:1]


def heard_of(model, given, layers=None):
    layers = range(families.parts(model).n_layers) if layers is None else layers
    with hearing(model, layers) as heard:
        model(**given, use_cache=False)
    return heard


def adapted(model, seed=0, targets=("q_proj", "k_proj", "v_proj", "o_proj"), std=0.05):
    torch.manual_seed(seed)
    pattern = rf"(?!.*vis).*\.({'|'.join(targets)})"
    model = get_peft_model(model, LoraConfig(r=3, target_modules=pattern))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=std)
            parameter.data = parameter.data.to(model.dtype)
    return model


def test_rows_are_those_of_eager_attention(odd_model, processor, samples):
    """All layers, rows of padded sequences, windows and images that see themselves among them.

    Eager attention itself is asked without padding, behind which it is not a number.
    """
    given, batch = case(odd_model, processor, samples)
    parts = families.parts(odd_model)
    with torch.no_grad():
        heard = heard_of(odd_model, given)
        odd_model.set_attn_implementation("eager")
        eager = [
            odd_model(**case(odd_model, processor, [one])[0], output_attentions=True).attentions
            for one in samples
        ]
    starts = [left + one.n_prompt for left, one in zip(batch.n_left, batch.texts, strict=True)]
    rows = torch.stack([torch.arange(start - 1, start + 3) for start in starts])
    for layer in range(parts.n_layers):
        with torch.no_grad():
            found = heard.attention(layer, rows, batch.is_visible)
        for s, left in enumerate(batch.n_left):
            n = len(batch.texts[s].tokens.ids)
            expected = eager[s][layer][0, :, rows[s] - left].transpose(0, 1).to(found)
            torch.testing.assert_close(
                found[s, ..., left : left + n], expected, atol=1e-6, rtol=1e-5
            )
            assert float(found[s, ..., :left].abs().sum()) == 0


@pytest.mark.parametrize("rule", ["eq1", "bottleneck"])
def test_the_map_on_the_graph_is_the_extractors(odd_model, processor, samples, rule):
    """Signed maps of every text against `interp.extract.maps`, each sequence alone."""
    if families.parts(odd_model).layers[0].attention_post_norm:
        with pytest.raises(ValueError, match="expected a family without norms behind attention"):
            MapGradient().layers(families.parts(odd_model))
        return
    model = adapted(odd_model)
    given, batch = case(model, processor, samples)
    heard = heard_of(model, given)
    vlm = VLM(model.eval(), processor, "random", "plain", "")
    loss = MapGradient(rule=rule)
    kind = {"eq1": "direct", "bottleneck": "bottleneck"}[rule]
    for number, sample in enumerate(samples):
        found = loss.maps(heard, batch, number)
        expected = interp.extract.maps(vlm, sample, kinds=(kind,), only="answer")
        visual = expected["source_role"] == "image"
        expected = expected["map"].sel(kind=kind)[:, visual.values].values
        np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rule", ["eq1", "bottleneck"])
@pytest.mark.parametrize("mass", ["absolute", "positive"])
def test_the_gradient_is_that_of_finite_differences(processor, samples, rule, mass):
    """Through q, k and v of the first layers, in float64; W_o is a constant by definition."""
    model = adapted(
        odd_models.make("two_to_one", processor), targets=("q_proj", "k_proj", "v_proj")
    )
    given, batch = case(model, processor, samples[:2])
    loss = MapGradient(rule=rule, mass=mass)

    def value():
        return loss(heard_of(model, given), batch, silent).sum()

    parameters = [
        p for name, p in model.named_parameters() if "lora_" in name and "layers.1." in name
    ]
    assert len(parameters) == 6
    gradients = torch.autograd.grad(value(), parameters)
    generator = torch.Generator().manual_seed(1)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        step, ends = 3e-3, []  # transformers' norms are float32
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                ends.append(float(value()))
                parameter.sub_(sign * step * direction)
        measured = (ends[0] - ends[1]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(measured, rel=2e-3, abs=3e-5)


def test_rows_of_a_long_thinking_are_not_kept(processor, samples):
    """The bottleneck's graph grows with the text by far less than its rows do."""
    model = adapted(odd_models.make("two_to_one", processor))
    kept = []
    for n_words in (10, 60):
        longer = [replace(one, thinking=" ".join(["red"] * n_words)) for one in samples[:1]]
        given, batch = case(model, processor, longer)
        heard, sizes = heard_of(model, given), []

        def note(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            MapGradient(rule="bottleneck").maps(heard, batch, 0)
        parts, text = families.parts(model), batch.texts[0]
        rows = len(text.rows_of("thinking")) * len(text.tokens.ids) * parts.n_heads
        kept.append((sum(sizes), rows * parts.n_layers))
    (fewer, _), (more, rows) = kept
    assert more - fewer < 0.1 * rows


def eager_mean(model, processor, sample, layer) -> np.ndarray:
    """Attention weights of a text alone, heads averaged, as transformers gives them."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(**case(model, processor, [sample])[0], output_attentions=True)
    model.set_attn_implementation("sdpa")
    return out.attentions[layer][0].mean(0).numpy()


def test_ease_by_hand_and_its_gradient(processor, samples):
    """KL of eager attention's renormalised mean, over all response rows; finite differences."""
    model = adapted(odd_models.make("seven_to_one", processor), targets=("q_proj", "k_proj"))
    given, batch = case(model, processor, samples)
    loss = Ease()
    (layer,) = loss.layers(families.parts(model))
    assert layer == 2  # ⌊2 · 3 / 3⌋
    heard = heard_of(model, given, [layer])
    found = loss(heard, batch, silent)
    for s, text in enumerate(batch.texts):
        rows = np.arange(text.n_prompt - 1, len(text.tokens.ids) - 1)
        visual = np.flatnonzero(text.tokens.is_visual)
        mean = eager_mean(model, processor, samples[s], layer)[np.ix_(rows, visual)]
        mean /= mean.sum(1, keepdims=True)
        wanted = target(text, 0.1, "equal")
        assert wanted.sum() == pytest.approx(1)
        by_hand = (mean * np.log(mean / wanted)).sum(1).mean()
        assert float(found[s]) == pytest.approx(by_hand, abs=1e-6)
    parameter = next(
        p for name, p in model.named_parameters() if "layers.0" in name and "lora_A" in name
    )
    (gradient,) = torch.autograd.grad(found.sum(), [parameter])
    direction = torch.randn(
        parameter.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )

    def at(step):
        with torch.no_grad():
            parameter.add_(step * direction)
            value = float(loss(heard_of(model, given, [layer]), batch, silent).sum())
            parameter.sub_(step * direction)
        return value

    measured = (at(3e-3) - at(-3e-3)) / 6e-3
    assert float((gradient * direction).sum()) == pytest.approx(measured, rel=1e-3, abs=1e-5)


def test_every_option_of_ease_changes_what_it_says(processor, samples):
    model = odd_models.make("two_to_one", processor)
    given, batch = case(model, processor, samples)
    with torch.no_grad():
        heard = heard_of(model, given)
        base = Ease(layer=1)(heard, batch, silent)
        for other in (
            Ease(layer=2),
            Ease(layer=1, heads="each"),
            Ease(layer=1, direction="target"),
            Ease(layer=1, background=0.5),
            Ease(layer=1, max_rows=2),
        ):
            assert not torch.allclose(other(heard, batch, silent), base), other
    text = batch.texts[0]
    two = np.array([[0.0, 0.0, 0.2, 0.2], [0.4, 0.4, 1.0, 1.0]])
    text = Text(text.sample, text.tokens, text.n_prompt, two)
    equal, area = (target(text, 0.1, name) for name in ("equal", "area"))
    first = np.flatnonzero(text.overlap)[0]
    assert equal[first] > area[first] and area.sum() == pytest.approx(1)
    for wrong in ({"heads": "max"}, {"direction": "both"}, {"mixture": "x"}, {"background": 0.0}):
        with pytest.raises(ValueError, match="expected"):
            Ease(**wrong)
    with pytest.raises(ValueError, match="expected a layer in 0..3, got 9"):
        Ease(layer=9).layers(families.parts(model))
    for wrong in ({"rule": "effect"}, {"mass": "x"}):
        with pytest.raises(ValueError, match="expected a"):
            MapGradient(**wrong)


def test_the_gate_and_the_sham(processor, samples):
    """A text that did not pass is 0; a sham's boxes are as large, and elsewhere."""
    model = adapted(odd_models.make("two_to_one", processor))
    given, batch = case(model, processor, samples)
    heard = heard_of(model, given)
    paid = torch.tensor([True, False, True])
    gated = MicroBatch(batch.texts, batch.ids, batch.is_visible, batch.n_left, paid)
    for loss in (Ease(), MapGradient()):
        every, some = loss(heard, batch, silent), loss(heard, gated, silent)
        assert float(some[1].detach()) == 0 and float(every[1].detach()) != 0
        torch.testing.assert_close(some[paid], every[paid])
    movable = [text for text in batch.texts if text.moved().boxes is not None]
    assert movable
    for text in movable:
        moved = text.moved()
        assert not np.allclose(moved.boxes, text.boxes)
        assert moved.overlap.sum() == pytest.approx(text.overlap.sum())
        np.testing.assert_array_equal(moved.boxes, text.moved().boxes)
    assert spread_rows(list(range(9)), 4) == [0, 3, 5, 8]
    assert spread_rows([4, 5], 4) == [4, 5]


def test_the_score_of_positive_mass_is_the_reports_alignment(processor, samples):
    model = odd_models.make("two_to_one", processor)
    given, batch = case(model, processor, samples)
    with torch.no_grad():
        heard = heard_of(model, given)
        found = -MapGradient(rule="bottleneck", mass="positive")(heard, batch, silent)
    vlm = odd_models.vlm(model, processor)
    for s, sample in enumerate(samples):
        maps = interp.extract.maps(vlm, sample, kinds=("bottleneck",), only="answer")
        expected = share_inside(interp.maps.holistic(maps).values, sample.boxes)
        assert float(found[s]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradient_or_an_error(processor, samples, reentrant):
    model = adapted(odd_models.make("two_to_one", processor))
    given, batch = case(model, processor, samples[:1])
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = MapGradient(rule="bottleneck")

    def gradients():
        return torch.autograd.grad(
            loss(heard_of(model, given), batch, silent).sum(), parameters, allow_unused=True
        )

    plain = gradients()
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.disable_input_require_grads()
        with pytest.raises(ValueError, match="reentrant gradient checkpointing leaves no graph"):
            gradients()
        return
    model.enable_input_require_grads()
    for a, b in zip(plain, gradients(), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-6)


def test_a_policy_in_half_precision_has_the_same_loss_to_its_rounding(samples, tiny):
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = interp.load_model("tiny", device="cpu").model.to(dtype)
        given, batch = case(model, tiny.processor, samples)
        with torch.no_grad():
            heard = heard_of(model, given)
            losses[dtype] = torch.stack(
                [one(heard, batch, silent) for one in (Ease(), MapGradient(rule="bottleneck"))]
            )
    torch.testing.assert_close(
        losses[torch.float32], losses[torch.bfloat16].float(), atol=0.05, rtol=0.05
    )
    assert all(math.isfinite(float(one)) for one in losses[torch.bfloat16].flatten())


def guided_run(out, **changed):
    """Two steps of the cold start with a loss beside GRPO's, and the gradient of the first."""
    cold = {"model_name_or_path": "tiny-cold", "map": "none", "num_generations": 4}
    sizes = {"per_device_train_batch_size": 8, "max_steps": 1, "n_samples": 2, "max_grad_norm": 1e9}
    guide = {"gradient_weight": 5.0, "tau": 0.0, "temperature": 1.0, "beta": 0.0}
    guide |= {"optim": "sgd", "learning_rate": 0.1}  # Adam's first step forgets a factor
    return test_grpo.run(out, **cold | sizes | guide | changed)


@pytest.mark.long
def test_accumulation_changes_no_gradient(tmp_path, monkeypatch):
    """One forward of eight completions, and four of two: the same weights after a step."""
    whole = guided_run(tmp_path / "whole")
    parts = guided_run(
        tmp_path / "parts", per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    moved = 0.0
    for name, weight in whole.items():
        torch.testing.assert_close(weight, parts[name], atol=2e-6, rtol=1e-4)
        moved = max(moved, float(weight.abs().max())) if "lora_B" in name else moved
    assert moved > 0


@pytest.mark.long
def test_two_processes_take_the_step_of_one(tmp_path):
    """Greedy texts, so that both sample alike, and the auxiliary loss alone has a gradient."""
    content = yaml.safe_load((ROOT / "train/configs/tiny-direct.yaml").read_text())
    content |= {"model_name_or_path": "tiny-cold", "map": "none", "num_generations": 2, "top_k": 1}
    content |= {"max_steps": 1, "n_samples": 4, "gradient_weight": 5.0, "tau": 0.0, "beta": 0.0}
    content |= {"optim": "sgd", "learning_rate": 0.1, "warmup_steps": 0, "max_grad_norm": 1e9}
    weights, logged = [], []
    for n_processes in (1, 2):
        out = tmp_path / str(n_processes)
        own = {"output_dir": str(out), "per_device_train_batch_size": 8 // n_processes}
        own |= {"ddp_backend": "gloo"}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(content | own))
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node"]
        launch += [str(n_processes), "-m", "train.grpo"]
        done = subprocess.run(
            [*launch, "--config", str(tmp_path / "config.yaml")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        weights.append(load_file(out / "final/adapter_model.safetensors"))
        logged.append(pd.read_csv(out / "final/curves.csv")["map_gradient/alignment"].iloc[0])
    one, two = weights
    assert logged[0] == pytest.approx(logged[1], abs=1e-4)
    assert max(float(one[name].abs().max()) for name in one if "lora_B" in name) > 0
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], atol=2e-6, rtol=1e-4)


@pytest.mark.long
def test_a_loss_trains_what_it_says(tmp_path):
    control = guided_run(tmp_path / "control", gradient_weight=0.0)
    guided = guided_run(tmp_path / "guided")
    eased = guided_run(tmp_path / "eased", gradient_weight=0.0, ease_weight=5.0)
    sham = guided_run(tmp_path / "sham", sham=True)
    runs = [control, guided, eased, sham]
    name = next(one for one in control if "lora_B" in one)
    assert len({float(one[name].double().sum()) for one in runs}) == 4
    curves = pd.read_csv(tmp_path / "guided/final/curves.csv")
    assert {"map_gradient/alignment", "map_gradient/gated", "map_gradient/no_mass"} <= set(curves)
    assert 0 < curves["map_gradient/alignment"].iloc[0] < 1
    assert "ease/kl" in pd.read_csv(tmp_path / "eased/final/curves.csv")
    said = json.loads((tmp_path / "sham/final/base.json").read_text())
    assert (said["gradient_weight"], said["sham"]) == (5.0, True)
    with pytest.raises(ValueError, match="expected ease_weight or gradient_weight with sham"):
        guided_run(tmp_path / "nothing", gradient_weight=0.0, sham=True)


def test_without_a_text_that_passes_the_term_is_nothing(tmp_path, monkeypatch):
    """No division by zero, and the same weights as without the loss."""
    monkeypatch.setattr(grpo, "judge_from_environment", lambda: lambda *_: 0.0)
    control = guided_run(tmp_path / "control", gradient_weight=0.0)
    guided = guided_run(tmp_path / "guided", tau=0.5)
    assert all(torch.equal(control[name], guided[name]) for name in control)
    curves = pd.read_csv(tmp_path / "guided/final/curves.csv")
    assert curves["map_gradient/gated"].iloc[0] == 0


@pytest.mark.parametrize(
    "loss", [{"gradient_weight": 5.0}, {"gradient_weight": 0.0, "ease_weight": 1.0}]
)
def test_texts_that_are_cut_off_count_for_nothing_and_end_no_training(tmp_path, loss):
    """Masked by the trainer, so that they have no token left, and not."""
    for masked in (True, False):
        out = tmp_path / str(masked)
        guided_run(out, max_completion_length=10, mask_truncated_completions=masked, **loss)
        curves = pd.read_csv(out / "final/curves.csv")
        assert curves["text/cut_off"].iloc[0] > 0
        assert np.isfinite(curves.to_numpy(dtype=float)).all()


def test_dropout_on_the_output_projection_changes_no_map(processor, samples):
    """W_o is one constant, forward and backward, whatever its adapter leaves out in training."""
    model = odd_models.make("two_to_one", processor)
    config = LoraConfig(r=3, lora_dropout=0.5, target_modules=r"(?!.*vis).*\.o_proj")
    model = get_peft_model(model, config).double()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    given, batch = case(model, processor, samples[:1])
    with torch.no_grad():
        heard = heard_of(model.eval(), given)
        expected = MapGradient()(heard, batch, silent)
        model.train()
        assert torch.equal(MapGradient()(heard, batch, silent), expected)
    assert all(one.training for one in model.modules())
