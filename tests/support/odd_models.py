"""Random models of all families in odd shapes, norms and biases not trivial, and their inputs."""

from dataclasses import dataclass
from functools import cache

import torch
from transformers import (
    AutoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from interp.data.digits import scenes as digits
from interp.inputs import prompts
from interp.loading import CHECKPOINTS
from interp.model import families
from interp.model.identity import fingerprint
from interp.model.vlm import VLM
from tests.support import gemma, tiled

# family, layers, heads, key/value heads, head width, mrope section, tied embeddings
SHAPES = {
    "seven_to_one": ("qwen2_5_vl", 3, 7, 1, 8, [1, 1, 2], False),
    "one_to_one": ("qwen2_vl", 2, 4, 4, 16, [2, 3, 3], True),
    "two_to_one": ("qwen2_5_vl", 4, 4, 2, 16, [4, 2, 2], True),
    "three_to_one": ("qwen3_vl", 3, 3, 1, 16, [4, 2, 2], False),
}
# family, layers, heads, key/value heads, head width, tied embeddings
TILED = {
    "five_to_one": ("internvl", 3, 5, 1, 8, False),
    "three_to_three": ("idefics3", 2, 3, 3, 16, True),
    "six_to_two": ("llava_onevision", 2, 6, 2, 8, False),
}
WINDOWED = {"four_to_two": ("gemma3", 3, 4, 2, 8, True)}
"""As `TILED`; images that see themselves, windows, and norms behind attention and FFN."""
ALL = (*SHAPES, *TILED, *WINDOWED)
FAMILIES = {
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
    "qwen3_vl_moe": (Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration),
}


def processor_of(shape: str | None = None):
    """The processor of a shape's model: the embedded model's, or a family's own."""
    if shape in WINDOWED:
        return gemma.processor_of()
    return tiled.processor_of(TILED[shape][0]) if shape in TILED else _embedded()


@cache
def _embedded():
    return AutoProcessor.from_pretrained(CHECKPOINTS / "tiny")


def own_model(numbers: tuple, dtype=torch.float64, seed: int = 0):
    """A random model of a family with a processor of its own; as in `TILED` and `WINDOWED`."""
    family, n_layers, n_heads, n_kv_heads, d_head, is_tied = numbers
    support = gemma if family in gemma.FAMILIES else tiled
    # Heads of Gemma are wider together than the stream.
    width = n_heads * d_head - 8 * (family in gemma.FAMILIES)
    tokenizer = support.processor_of(family).tokenizer
    text = {
        "hidden_size": width,
        "intermediate_size": 2 * width + 6,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "head_dim": d_head,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": is_tied,
    }
    torch.manual_seed(seed)
    model = support.FAMILIES[family][1](support.config_of(family, text, is_tied))
    model.config.architectures = [type(model).__name__]  # as a stored model's config has it
    return _uneven(model).to(dtype).eval()


def make(shape: str, processor, dtype=torch.float64, seed: int = 0):
    """A random model in eval mode, for the processor's tokens."""
    if shape in TILED | WINDOWED:
        return own_model((TILED | WINDOWED)[shape], dtype, seed)
    return make_of(sizes_of(shape, processor), processor, dtype, seed)


def sizes_of(shape: str, processor) -> "Sizes":
    """The sizes of a shape, for the processor's tokens."""
    family, *numbers = SHAPES[shape]
    return Sizes(*numbers, len(processor.tokenizer) + 13, family)


def make_of(sizes: "Sizes", processor, dtype=torch.float64, seed: int = 0):
    """`make` with other sizes than those of a shape."""
    tokenizer = processor.tokenizer
    ids = special_ids(tokenizer)
    return random_model(sizes, ids, tokenizer.pad_token_id, tokenizer.eos_token_id, dtype, seed)


def special_ids(tokenizer) -> dict[str, int]:
    """Ids of the tokens that stand for images and videos, by their names in a config."""
    marks = {
        "image": "image_pad",
        "video": "video_pad",
        "vision_start": "vision_start",
        "vision_end": "vision_end",
    }
    return {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{mark}|>")
        for name, mark in marks.items()
    }


@dataclass(frozen=True)
class Sizes:
    """Sizes of a random model."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    mrope_section: list[int]
    is_tied: bool
    n_vocabulary: int
    family: str = "qwen2_5_vl"
    patch_size: int = 14

    @property
    def width(self) -> int:
        """Width of the residual stream; heads of Qwen3-VL may be wider together."""
        heads = self.n_heads * self.d_head
        return max(heads - 8, 8) if self.family.startswith("qwen3") else heads

    @property
    def own(self) -> dict:
        """Entries of the family's text config that others do not have."""
        experts = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        if not self.family.startswith("qwen3"):
            return {}
        return {"head_dim": self.d_head} | (experts if self.family == "qwen3_vl_moe" else {})

    @property
    def tower(self) -> dict:
        """A vision config of the family."""
        width = self.width
        common = {"depth": 2, "num_heads": 2, "initializer_range": 0.15}
        common["patch_size"] = self.patch_size
        if self.family == "qwen2_vl":
            return common | {"embed_dim": 32, "mlp_ratio": 2, "hidden_size": width}
        if self.family.startswith("qwen3"):
            levels = {"depth": 3, "deepstack_visual_indexes": [0, 2]}
            sizes = {"hidden_size": 32, "intermediate_size": 48, "num_position_embeddings": 16}
            return common | levels | sizes | {"out_hidden_size": width}
        own = {"hidden_size": 32, "intermediate_size": 48, "fullatt_block_indexes": [1]}
        return common | own | {"out_hidden_size": width}


def random_model(sizes: Sizes, ids: dict, pad: int, end: int, dtype, seed: int):
    """A random model in eval mode, with norms that are not 1 and biases that are not 0."""
    width = sizes.width
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sizes.mrope_section}
    kind_of_config, kind = FAMILIES[sizes.family]
    config = kind_of_config(
        text_config={
            "vocab_size": sizes.n_vocabulary,
            "hidden_size": width,
            "intermediate_size": 2 * width + 6,
            "num_hidden_layers": sizes.n_layers,
            "num_attention_heads": sizes.n_heads,
            "num_key_value_heads": sizes.n_kv_heads,
            "max_position_embeddings": 512,
            "initializer_range": 0.15,
            "rope_parameters": rope,
            "bos_token_id": pad,
            "eos_token_id": end,
            "pad_token_id": pad,
            "tie_word_embeddings": sizes.is_tied,
            **sizes.own,
        },
        vision_config=sizes.tower,
        tie_word_embeddings=sizes.is_tied,
        **ids,
    )
    torch.manual_seed(seed)
    return _uneven(kind(config)).to(dtype).eval()


def _uneven(model):
    """The model with norms that are not 1 and biases that are not 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                offset = 0.3 * torch.randn_like(parameter)
                # Some families count the weight from 1, and it begins at 0.
                parameter.copy_(torch.where(parameter == 0, offset, parameter * (1 + offset)))
            elif name.endswith("mm_input_projection_weight"):
                parameter.normal_(std=0.3)
                # Each token is a mean of patches, which would all be much alike.
                model.model.vision_tower.embeddings.patch_embedding.weight.mul_(9)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


def vlm(model, processor) -> VLM:
    """The model as `load_model` would return it."""
    return VLM(model, processor, "random", "plain", fingerprint(model))


def sample(index: int = 0, family: str = "sum"):
    """A scene on a non-square canvas."""
    scenes = (digits.make_sample("test", i, families=(family,)) for i in range(index, 1000))
    return next(s for s in scenes if s.image.width != s.image.height)


def batch(processor, index: int = 0, padding: int = 0, dtype=torch.float64):
    """The processor's batch for one non-square scene with its text, left-padded by hand."""
    tensors = prompts.teacher_forced(processor, sample(index), None).batch
    tensors = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in tensors.items()
    }
    fills = {
        "input_ids": processor.tokenizer.pad_token_id,
        "attention_mask": 0,
        "mm_token_type_ids": 0,
        "token_type_ids": 0,
    }
    for name in fills.keys() & tensors.keys():
        fill = fills[name]
        pad = torch.full((1, padding), fill, dtype=tensors[name].dtype)
        tensors[name] = torch.cat([pad, tensors[name]], dim=1)
    return tensors


def unpadded(model, inputs, n_padding: int) -> dict:
    """The batch without so many tokens on the left, at the positions that the model gave them."""
    names = set(prompts.TEXT_INPUTS) & inputs.keys()
    plain = inputs | {name: inputs[name][:, n_padding:] for name in names}
    if families.parts(model).n_axes == 1:  # these models count padding, in rotary float32
        plain["position_ids"] = torch.arange(n_padding, inputs["input_ids"].shape[1])[None]
    return plain


def random_references(inputs, model, seed=0):
    """Two references of random content about as large as real content."""
    n_visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
    torch.manual_seed(seed)
    vision, text = model.config.vision_config, model.config.text_config
    n_levels = len(getattr(vision, "deepstack_visual_indexes", ()))
    width = text.hidden_size * (1 + min(n_levels, text.num_hidden_layers))
    return {name: torch.randn(n_visual, width, dtype=model.dtype) for name in ("one", "two")}
