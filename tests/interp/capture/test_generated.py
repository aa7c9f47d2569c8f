"""The leavings of a generation, against prefills and replays of the same sequences."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

import interp
from interp.capture.extended import extended
from interp.capture.generated import Generated
from interp.capture.prefill import prefills
from interp.capture.replay import replays
from interp.capture.whole_texts import Forwards
from interp.inputs import prompts as inputs
from interp.model import families
from interp.model.state import undisturbed

NEW = 9
# Their towers are given pixels in another shape than the model, or share pixels between tokens.
MANY_SHAPES = ("Idefics3ImageProcessor", "LlavaOnevisionImageProcessor")


def asked(processor, n_samples: int = 2):
    """Prompts of unequal length, so that one is padded, two completions each."""
    samples = interp.load_samples("digits", limit=n_samples)
    pairs = [(s.image, s.question + " Say it." * (k % 2)) for k, s in enumerate(samples)]
    return [pair for pair in pairs for _ in range(2)]


def generation(model, processor, pairs, **options):
    """Sampled as TRL has it sampled: in training mode, without dropout. Returns each sequence."""
    batch = inputs.prompts(processor, pairs, None)
    batch = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in batch.items()}
    torch.manual_seed(0)
    model.train()
    with torch.no_grad():
        out = model.generate(
            **batch, max_new_tokens=NEW, min_new_tokens=3, do_sample=True, top_k=0, **options
        )
    new = out[:, batch["input_ids"].shape[1] :].tolist()
    end = processor.tokenizer.eos_token_id
    texts = [ids[: ids.index(end) + 1] if end in ids else ids for ids in new]
    return [sequence(model, processor, *one) for one in zip(pairs, texts, strict=True)]


def sequence(model, processor, pair, ids):
    batch = inputs.extended(inputs.prompts(processor, [pair], None), ids)
    return {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in batch.items()}


def decoded(batches, n_new):
    """Rows of each sequence that predict what was written: the prompt's last one is the first."""
    return [
        torch.arange(batch["input_ids"].shape[1] - n - 1, batch["input_ids"].shape[1] - 1)
        for batch, n in zip(batches, n_new, strict=True)
    ]


def test_a_generation_is_the_prefill_of_what_it_wrote(odd_model, processor):
    """Keys, values, content, positions; rows of attention, values and final states of tokens."""
    generated = Generated(odd_model)
    pairs = asked(processor)
    batches = generation(odd_model, processor, pairs)
    prompts = [inputs.prompts(processor, [pair], None)["input_ids"].shape[1] for pair in pairs]
    assert len(set(prompts)) > 1 or len(processor.tokenizer) > 1000
    numbers = [3, 0, 1]  # some of them, in another order
    chosen = [batches[k] for k in numbers]
    reason = generated.refusal(numbers, chosen)
    if families.parts(odd_model).has_windows:
        assert reason == (
            "layers of the cache that do not keep all tokens: ['DynamicSlidingWindowLayer']"
        )
        return
    if processor.image_processor.__class__.__name__ in MANY_SHAPES:
        assert "image" in reason or "pixels" in reason
        return
    assert reason == ""
    found = generated.prefills(numbers, chosen)
    new = [one["input_ids"].shape[1] - prompts[k] for one, k in zip(chosen, numbers, strict=True)]
    rows = decoded(chosen, new)
    with torch.no_grad(), undisturbed(odd_model):
        expected = prefills(odd_model, chosen, rows)
        played = replays(odd_model, expected, rows)
    assert found.n_padding == expected.n_padding
    for mine, theirs in zip(found.sequences, expected.sequences, strict=True):
        for name in ("keys", "values"):
            for a, b in zip(getattr(mine, name), getattr(theirs, name), strict=True):
                torch.testing.assert_close(a[:, :, :-1], b[:, :, :-1], atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(mine.content[:-1], theirs.content[:-1])
        assert torch.equal(mine.position_ids[:, :-1], theirs.position_ids[:, :-1])
        assert mine.is_sink is None
    kept = found.kept(rows)
    for mine, theirs in zip(kept, played, strict=True):
        for name in ("weights", "own_values"):
            for a, b in zip(getattr(mine, name), getattr(theirs, name), strict=True):
                torch.testing.assert_close(a, b.to(a), atol=1e-7, rtol=1e-5)
        torch.testing.assert_close(mine.final, theirs.final.to(mine.final), atol=1e-8, rtol=1e-6)
    assert found.kept([one - 1 for one in rows]) is None  # one more of the prompt
    generated.close()


def test_a_common_beginning_is_prefilled_once(odd_model, processor):
    """A group's prompt, extended by each completion, against a prefill of each."""
    batches = generation(odd_model, processor, asked(processor))
    groups = [[0, 1], [2, 3]]
    if families.parts(odd_model).has_windows:
        with pytest.raises(ValueError, match="expected layers that see the whole text"):
            extended(odd_model, batches, groups)
        return
    calls = []
    hook = families.parts(odd_model).vision_tower.register_forward_hook(lambda *a: calls.append(1))
    found = extended(odd_model, batches, groups)
    hook.remove()
    assert len(calls) == 2
    rows = [torch.tensor([one["input_ids"].shape[1] - 2]) for one in batches]
    with torch.no_grad(), undisturbed(odd_model):
        expected = prefills(odd_model, batches, rows)
    for mine, theirs in zip(found.sequences, expected.sequences, strict=True):
        assert torch.equal(mine.position_ids, theirs.position_ids)
        torch.testing.assert_close(mine.content, theirs.content)
        for name in ("keys", "values"):
            for a, b in zip(getattr(mine, name), getattr(theirs, name), strict=True):
                torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def policy(tiny):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    model = get_peft_model(tiny.model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return SimpleNamespace(model=model, processor=tiny.processor)


def test_what_is_not_this_generation_is_refused(policy):
    """Other tokens, another image at the same place, changed weights, nothing at all."""
    model, processor = policy.model, policy.processor
    generated = Generated(model)
    assert generated.refusal([0], [{}]) == "no generation was heard"
    pairs = asked(processor)
    batches = generation(model, processor, pairs)
    assert generated.refusal([0, 1, 2, 3], batches) == ""
    assert generated.refusal([4], batches[:1]) == "4 sequences were generated"
    other = sequence(model, processor, pairs[0], batches[0]["input_ids"][0, -3:].tolist())
    assert generated.refusal([0], [other]) == "other tokens"
    swapped = batches[0] | {"pixel_values": batches[2]["pixel_values"]}
    assert generated.refusal([0], [swapped]) == "another image"
    weight = next(p for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        weight.add_(0.0)
    assert generated.refusal([0], batches[:1]) == "weights changed since"
    generated.drop()
    assert generated.refusal([0], batches[:1]) == "no generation was heard"
    with torch.no_grad(), undisturbed(model):
        prefills(model, batches[:1], [torch.tensor([3])])
    assert generated.last is None  # what the package reads itself is no generation
    generated.close()
    generation(model, processor, pairs)
    assert generated.last is None


def test_dropout_and_a_cache_of_another_kind_are_refused(tiny):
    config = LoraConfig(r=2, lora_dropout=0.1, target_modules=r".*language_model.*\.q_proj")
    model = get_peft_model(interp.load_model("tiny", device="cpu").model, config)
    generated = Generated(model)
    pairs = asked(tiny.processor)
    batches = generation(model, tiny.processor, pairs)
    assert "dropout while sampling" in generated.refusal([0], batches[:1])
    model = interp.load_model("tiny", device="cpu").model
    generated = Generated(model)
    batches = generation(model, tiny.processor, pairs, cache_implementation="static")
    assert "cache" in generated.refusal([0], batches[:1])


def test_the_cache_is_freed(policy):
    import gc
    import weakref

    generated = Generated(policy.model)
    generation(policy.model, policy.processor, asked(policy.processor))
    held = weakref.ref(generated.last.cache.layers[0].keys)
    generated.drop()
    gc.collect()
    assert held() is None
    generated.close()


def test_a_trainers_forward_over_whole_texts_is_their_prefill(odd_model, processor):
    """In chunks, padded on both sides, as TRL computes log-probabilities; scored rows are read."""
    forwards = Forwards(odd_model)
    pairs = asked(processor)
    batches = generation(odd_model, processor, pairs)
    assert not forwards.chunks  # a generation is none
    if "Llava" in processor.image_processor.__class__.__name__:
        return  # as many tiles as an image has, which one batch does not hold
    prompts = [inputs.prompts(processor, [pair], None)["input_ids"].shape[1] for pair in pairs]
    for chunk in ([0, 1, 2], [3]):
        whole_texts(odd_model, [batches[k] for k in chunk], [prompts[k] for k in chunk])
    numbers = [3, 0, 2]
    chosen = [batches[k] for k in numbers]
    reason = forwards.refusal(numbers, chosen)
    if families.parts(odd_model).has_windows:
        assert reason == "layers with a window"
        return
    if processor.image_processor.__class__.__name__ in MANY_SHAPES:
        assert "image" in reason or "pixels" in reason
        return
    assert reason == ""
    found = forwards.prefills(numbers, chosen)
    new = [one["input_ids"].shape[1] - prompts[k] for one, k in zip(chosen, numbers, strict=True)]
    rows = decoded(chosen, new)
    with torch.no_grad(), undisturbed(odd_model):
        expected = prefills(odd_model, chosen, rows)
        played = replays(odd_model, expected, rows)
    for mine, theirs in zip(found.sequences, expected.sequences, strict=True):
        torch.testing.assert_close(mine.content, theirs.content)
        # A family that counts by itself counts the padding too; attention knows distances alone.
        shift = mine.position_ids - theirs.position_ids
        assert (shift == shift[0, 0]).all()
        if int(shift[0, 0]):
            assert families.parts(odd_model).n_axes == 1
            continue
        for name in ("keys", "values"):
            for a, b in zip(getattr(mine, name), getattr(theirs, name), strict=True):
                torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    for mine, theirs in zip(found.kept(rows), played, strict=True):
        for a, b in zip(mine.weights, theirs.weights, strict=True):
            torch.testing.assert_close(a, b.to(a), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(mine.final, theirs.final.to(mine.final), atol=1e-6, rtol=1e-5)
    assert forwards.refusal([0], [batches[1]]) in ("other tokens", "")
    assert forwards.refusal([4], batches[:1]) == "4 sequences were read"
    forwards.close()


def whole_texts(model, batches, n_prompts) -> None:
    """A forward over texts with labels, prompts padded on the left and completions on the right."""
    longest, most = (
        max(n_prompts),
        max(one["input_ids"].shape[1] - n for one, n in zip(batches, n_prompts, strict=True)),
    )
    given = {}
    for name in batches[0]:
        if batches[0][name].shape != batches[0]["input_ids"].shape:
            given[name] = torch.cat([one[name] for one in batches])
            continue
        given[name] = torch.cat(
            [
                torch.nn.functional.pad(
                    one[name], (longest - n, most - (one["input_ids"].shape[1] - n))
                )
                for one, n in zip(batches, n_prompts, strict=True)
            ]
        )
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    labels[:, :longest] = -100
    with torch.no_grad():
        model(**given, labels=labels, use_cache=False)


def test_a_reference_is_no_policy(policy):
    """Adapters switched off, gradients on, weights changed: nothing is kept, or it is refused."""
    model, processor = policy.model, policy.processor
    forwards = Forwards(model)
    batches = generation(model, processor, asked(processor))
    n = inputs.prompts(processor, asked(processor)[:1], None)["input_ids"].shape[1]
    with model.disable_adapter():
        whole_texts(model, batches[:1], [n])
    assert forwards.refusal([0], batches[:1]) == "no forward over whole texts was heard"
    model(**batches[0], labels=batches[0]["input_ids"])
    assert not forwards.chunks
    whole_texts(model, batches[:1], [n])
    assert forwards.refusal([0], batches[:1]) == ""
    swapped = batches[0] | {"pixel_values": batches[2]["pixel_values"]}
    assert forwards.refusal([0], [swapped]) == "another image"
    weight = next(p for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        weight.add_(0.0)
    assert forwards.refusal([0], batches[:1]) == "weights changed since"
    forwards.close()
