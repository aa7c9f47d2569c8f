"""From a sample to the model's inputs: the prompt, and the text that is teacher-forced."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import BatchFeature

from interp.data.images import open_image, upright_size
from interp.data.sample import Sample
from interp.inputs.completions import Completion, completion
from interp.inputs.spelling import steering_tokens
from interp.inputs.tokens import Tokens, token_table
from interp.inputs.views import visual_token_id

TEXT_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
"""Inputs with an entry for every token; the others are of images."""


@dataclass(frozen=True)
class Inputs:
    """The model's inputs, and the table of their tokens."""

    batch: BatchFeature
    tokens: Tokens


def prompts(processor, asked: list, system: str | None) -> BatchFeature:
    """Left-padded prompts, ending where the model starts to write.

    Args:
        processor: of the model.
        asked: samples, or pairs (image, question), whose image may be a list or None.
        system: the system prompt, or None.

    Raises:
        ValueError: an unreadable image, or a special token inside a question or an earlier turn.
    """
    texts, images = [], []
    for one in asked:
        sample = one if isinstance(one, Sample) else Sample(image=one[0], question=one[1])
        texts.append(prompt_text(processor, sample, system))
        images.append([open_image(image) for image in sample.images])
    return processor(
        images=_as_taken(processor, images),
        text=texts,
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_tensors="pt",
    )


def image_inputs(processor, images: list, at_once: int = 1) -> BatchFeature:
    """A processor's inputs for images alone, one or `at_once` to a sequence without any text.

    Raises:
        ValueError: an unreadable image.
    """
    # The whole processor is called: some tell the image processor more than its own settings do.
    opened = [open_image(image) for image in images]
    by_sequence = [opened[k : k + at_once] for k in range(0, len(opened), at_once)]
    return processor(
        images=_as_taken(processor, by_sequence),
        text=[processor.image_token * at_once] * len(by_sequence),
        add_special_tokens=False,
        return_tensors="pt",
    )


def _as_taken(processor, images: list[list]) -> list | None:
    """Images as processors take them: in one list, or by sequence where one has several.

    Some cut only an image that is alone into tiles, and others know sequences by nothing else.
    """
    having = [own for own in images if own]
    if not having:
        return None
    if hasattr(processor.image_processor, "do_image_splitting") or _is_replaced(processor):
        return images
    if all(len(own) == 1 for own in having):
        return [own[0] for own in having]
    return having


def _is_replaced(processor) -> bool:
    """Whether visual tokens are others than the placeholder of an image in a prompt."""
    return processor.image_token_id != visual_token_id(processor)


def with_images(batch: Mapping, images: Mapping[str, torch.Tensor], n: int) -> dict:
    """A batch of one sequence `n` times over, each with other images.

    Args:
        batch: of one sequence.
        images: as `image_inputs` gives them for `n` sequences.
        n: how many.

    Raises:
        ValueError: images that the processor does not see as it saw the batch's own.
    """
    repeated = {}
    for name, own in batch.items():
        repeated[name] = own.repeat(n, *[1] * (own.ndim - 1))
        if name in TEXT_INPUTS:
            continue
        is_alike = images[name].shape == repeated[name].shape
        if is_alike and not own.is_floating_point():  # grids, sizes, masks
            is_alike = torch.equal(images[name].to(own.device), repeated[name])
        if not is_alike:
            raise ValueError(
                f"expected images on the grid of the sample's own, got other {name}: the processor "
                "resizes them in another way"
            )
        repeated[name] = images[name].to(own)
    return repeated


def prompt_text(processor, sample: Sample, system: str | None) -> str:
    """The chat up to where the model starts to write, each image as one placeholder.

    Raises:
        ValueError: a special token inside the question or an earlier turn.
    """
    questions = [*(question for question, _ in sample.earlier), sample.question]
    replies = [reply for _, reply in sample.earlier]
    messages = [] if system is None else [{"role": "system", "content": _text(system)}]
    for number, question in enumerate(questions):
        check_plain(processor.tokenizer, question, "a question")
        content = [{"type": "image"} for _ in sample.images] if number == 0 else []
        messages.append({"role": "user", "content": content + _text(question)})
        if number < len(replies):
            check_plain(processor.tokenizer, replies[number], "an earlier reply")
            messages.append({"role": "assistant", "content": _text(replies[number])})
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def _text(text: str) -> list[dict]:
    """A message's content in the form that every chat template takes."""
    return [{"type": "text", "text": text}]


def check_plain(tokenizer, text: str, name: str) -> None:
    """Raises ValueError for text that holds a token which steers the chat, added ones too."""
    special = next((token for token in sorted(steering_tokens(tokenizer)) if token in text), None)
    if special is not None:
        raise ValueError(
            f"expected {name} without special tokens, got {special!r} in it; rewrite it"
        )


def teacher_forced(
    processor,
    sample: Sample,
    system: str | None,
    text: Completion | None = None,
    prompt: Mapping | None = None,
) -> Inputs:
    """Prompt and text as one sequence: the sample's own text, or a completion's sampled ids.

    Args:
        processor, sample, system: as for `prompts`.
        text: a completion; None for the sample's own.
        prompt: the sample's prompt where it is there already, on any device.

    Raises:
        ValueError: an empty answer, or what `prompts` raises.
    """
    ids = text_ids(processor, sample, text)
    prompt = prompts(processor, [sample], system) if prompt is None else prompt
    batch = extended(prompt, ids)
    sizes = [upright_size(image)[::-1] for image in sample.images]
    return Inputs(batch, token_table(processor, batch, sample.boxes, sizes, system))


def extended(batch: Mapping, ids: list[int]) -> BatchFeature:
    """A batch of one prompt with a text behind it."""
    extend = torch.tensor([ids], dtype=torch.long, device=batch["input_ids"].device)
    longer = BatchFeature(dict(batch))
    longer["input_ids"] = torch.cat([batch["input_ids"], extend], dim=1)
    for name in TEXT_INPUTS[1:]:
        if name in batch:
            value = int(name == "attention_mask")
            filled = torch.full_like(extend, value, dtype=batch[name].dtype)
            longer[name] = torch.cat([batch[name], filled], dim=1)
    return longer


def count_tokens(processor, sample: Sample, system: str | None) -> int:
    """How many tokens prompt and own text have, by the image's header and without its pixels.

    Raises:
        ValueError: an unreadable header, or a special token inside question, thinking or answer.
    """
    sizes = [upright_size(image)[::-1] for image in sample.images]
    n_text = len(text_ids(processor, sample))
    # Nobody counts for us, or only images that are alone.
    is_uncounted = not hasattr(processor, "_get_num_multimodal_tokens")
    is_uncounted |= _is_replaced(processor)  # marks beside it are not counted
    is_uncounted |= len(sizes) > 1 and hasattr(processor.image_processor, "image_grid_pinpoints")
    if sizes and is_uncounted:
        return prompts(processor, [sample], system)["input_ids"].shape[1] + n_text
    counted = processor._get_num_multimodal_tokens(image_sizes=sizes) if sizes else None
    n_visual = sum(counted.num_image_tokens) - len(sizes) if sizes else 0  # one is in the prompt
    prompt = prompt_text(processor, sample, system)
    n_prompt = len(processor.tokenizer(prompt, add_special_tokens=False).input_ids)
    return n_prompt + n_visual + n_text


def given_text(tokenizer, text) -> Completion | None:
    """A text that somebody wrote, as if the model had: its tokens with an end token.

    Raises:
        ValueError: neither text nor `Completion`, or a special token in a text.
    """
    if text is None or isinstance(text, Completion):
        return text
    if not isinstance(text, str):
        raise ValueError(
            f"expected a completion as text, or as vlm.answer gives it, got {type(text).__name__}"
        )
    check_plain(tokenizer, text, "a completion")
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return completion(tokenizer, [*ids, tokenizer.eos_token_id])


def text_ids(processor, sample: Sample, text: Completion | None = None) -> list[int]:
    """The text as token ids: the sample's own with an end token, or a completion's as sampled.

    Raises:
        ValueError: a sample without an answer, or a completion without one.
    """
    tokenizer = processor.tokenizer
    if text is None:
        own = sample.text
        check_plain(tokenizer, sample.answer, f"{sample.id}: an answer")
        check_plain(tokenizer, sample.thinking or "", f"{sample.id}: thinking")
        # Behind "Assistant:" a text begins with a blank, in the form that those models know.
        asked = [{"role": "user", "content": _text("?")}]
        prompt = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        own = f" {own}" if prompt.endswith(":") else own
        return [*tokenizer(own, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    if not text.answer:
        cause = "it ended by itself; pass another completion or leave the sample out"
        if not text.is_complete:
            cause = "it was cut off; raise max_new_tokens or leave the sample out"
        raise ValueError(
            f"{sample.id}: expected a completion with an answer, got {text.text!r}: {cause}"
        )
    return list(text.token_ids)
