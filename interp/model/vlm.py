"""A vision-language model with its processor: it answers, and it embeds images."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import GenerationConfig

from interp.data.embedded import is_strange_to
from interp.data.images import open_image
from interp.data.sample import Sample
from interp.inputs import completions
from interp.inputs import prompts as inputs
from interp.inputs.tokens import token_table
from interp.model import families
from interp.model.state import undisturbed

log = logging.getLogger("interp.model")
PROMPTS = {
    "plain": None,
    # Saliency-R1's system prompt, which makes an untuned model think.
    "think": (
        "A conversation between User and Assistant. The user asks a question, and the Assistant "
        "solves it. The assistant first thinks about the reasoning process in the mind and then "
        "provides the user with the answer. The reasoning process and answer are enclosed within "
        "<think></think> tags, i.e., <think>\nThis is my reasoning.\n</think>\nThis is my answer."
    ),
}


def image_embeddings(model: nn.Module, images: Mapping[str, Tensor]) -> Tensor:
    """Content of visual tokens, as the language model gets it: (visual token, content).

    A token's content is its embedding; with DeepStack the levels that are added to later layers
    follow in the same vector (METHODS.md 1.1).

    Args:
        model: the model.
        images: inputs that are of images, as a processor gives them; those of text are left out.
    """
    own = {name: value for name, value in images.items() if name not in inputs.TEXT_INPUTS}
    own = {name: value.to(model.device) for name, value in own.items()}
    own["pixel_values"] = own["pixel_values"].to(model.dtype)
    with undisturbed(model), torch.no_grad():
        return families.parts(model).embed_images(**own)


@contextmanager
def greedy(model: nn.Module) -> Iterator[None]:
    """Context without the rules of a checkpoint's own generation config, but for its end tokens.

    Greedy means greedy: repetition penalties, suppressed tokens, least lengths, time limits and
    whatever comes next would give another text without a word.
    """
    base = families.base_model(model)
    own = base.generation_config
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    base.generation_config = GenerationConfig(**{name: getattr(own, name) for name in names})
    try:
        yield
    finally:
        base.generation_config = own


@cache
def _say_once(message: str) -> None:
    log.warning(message)


def _question(asked) -> str:
    return asked.question if isinstance(asked, Sample) else asked[1]


@dataclass(frozen=True, repr=False)
class VLM:
    """A loaded model with its processor; the first argument of every extraction."""

    model: nn.Module
    processor: object
    name: str
    """Hub id, folder or embedded name it was loaded by."""
    prompt: str
    """Key of `PROMPTS`: the system prompt of every question."""
    fingerprint: str
    """Hash of the base model's weights as loaded."""
    revision: str = ""
    adapter: str = ""

    def __repr__(self) -> str:
        n_parameters = sum(one.numel() for one in self.model.parameters())
        base = families.base_model(self.model)
        adapter = f" with the adapter {self.adapter}" if self.adapter else ""
        return (
            f"VLM {self.name}{f' at {self.revision}' if self.revision else ''}{adapter}: "
            f"{base.config.model_type}, {n_parameters:,} parameters\n"
            f"  {str(self.model.dtype)[6:]} on {self.device}, "
            f"{base.config._attn_implementation} attention, prompt {self.prompt!r}\n"
            f"  weights {self.fingerprint}"
        )

    @property
    def device(self) -> torch.device:
        """The device on which inputs have to lie."""
        return self.model.device

    def answer(self, image, question: str, *, earlier=(), max_new_tokens: int = 256):
        """The model's own greedy text for a question, a `Completion`.

        Args:
            image: the picture, a list of several, or None for a question about text alone.
            question: in plain words.
            earlier: earlier turns, (question, reply) each; images stand in the first turn.
            max_new_tokens: limit of the text.
        """
        asked = Sample(image=image, question=question, earlier=earlier)
        return self.answers([asked], max_new_tokens=max_new_tokens)[0]

    def answers(self, asked: Iterable, *, max_new_tokens: int = 256) -> list:
        """`answer` for several samples or (image, question) pairs in one left-padded batch."""
        asked = list(asked)
        if not asked:
            return []
        self._warn_of_strange(asked)
        batch = inputs.prompts(self.processor, asked, PROMPTS[self.prompt]).to(self.device)
        with undisturbed(self.model), greedy(self.model), torch.no_grad():
            generated = self.model.generate(
                **batch, max_new_tokens=max_new_tokens, use_cache=True, do_sample=False
            )
        return self._texts(generated[:, batch["input_ids"].shape[1] :])

    def _warn_of_strange(self, asked: list) -> None:
        """Logs, once a process, that an embedded model is asked about other things than scenes."""
        if any(is_strange_to(self.name, _question(one)) for one in asked):
            _say_once(
                f"{self.name} knows scenes of handwritten digits and five kinds of question about "
                "them, nothing else: what it says here means nothing. Load a model of your own"
            )

    def sampled(self, sample: Sample, n: int, *, seed: int = 0, max_new_tokens: int = 256) -> list:
        """Texts drawn from the model's own distribution, at temperature 1 and untruncated."""
        batch = inputs.prompts(self.processor, [sample], PROMPTS[self.prompt]).to(self.device)
        device = [self.device] if self.device.type == "cuda" else []
        with (
            undisturbed(self.model),
            greedy(self.model),  # no other rule of the checkpoint's changes the distribution
            torch.no_grad(),
            torch.random.fork_rng(device),
        ):
            torch.manual_seed(seed)
            generated = self.model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                num_return_sequences=n,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
            )
        return self._texts(generated[:, batch["input_ids"].shape[1] :])

    def _texts(self, new: Tensor) -> list:
        ends = families.base_model(self.model).generation_config.eos_token_id
        ends = ends if isinstance(ends, list | tuple) else [ends] if ends is not None else []
        tokenizer = self.processor.tokenizer
        texts = [completions.completion(tokenizer, row, ends) for row in new.tolist()]
        return [replace(text, source="own") for text in texts]


def embed(vlm: VLM, *images) -> tuple[Float[Tensor, "visual content"], tuple[int, ...]]:
    """The content of the visual tokens of one sample's images, and the grid on which they lie.

    Two samples have the same grid if one's images can take the place of the other's.
    """
    content, grid, _ = embedded(vlm, *images)
    return content, grid


def embedded(
    vlm: VLM, *images
) -> tuple[Float[Tensor, "visual content"], tuple[int, ...], Bool[Tensor, " visual"]]:
    """`embed`, and which of the tokens stand for pixels; the ends of lines are alike everywhere."""
    batch = inputs.image_inputs(vlm.processor, list(images), at_once=len(images))
    sizes = [open_image(image).size[::-1] for image in images]
    tokens = token_table(vlm.processor, batch, sizes=sizes)
    has_pixels = torch.from_numpy(tokens.row[tokens.is_visual] >= 0).to(vlm.device)
    return image_embeddings(vlm.model, batch), tokens.grid, has_pixels
