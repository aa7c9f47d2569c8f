"""Random models at real widths, and inputs as a processor gives them, for benchmarks."""

from dataclasses import dataclass

# heads, key/value heads, width, FFN width, vocabulary, layers, tied embeddings
SHAPES = {
    "3b": (16, 2, 2048, 11008, 151936, 36, True),
    "7b": (28, 4, 3584, 18944, 152064, 28, False),
    "toy": (4, 2, 64, 96, 500, 2, True),
}
TEXT_TOKENS = 12
CELL = 28  # pixels of a visual token's side


@dataclass(frozen=True)
class Setting:
    """Model, machine and sizes of a measurement."""

    shape: str
    layers: int
    device: str
    dtype: str
    threads: int
    tokens: int = 741
    targets: int = 8
    sets: int = 5
    sequences: int = 1


def make_model(setting: Setting):
    """A random Qwen2.5-VL at real decoder widths with a small vision tower."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    heads, kv_heads, width, ffn, vocabulary, _, tied = SHAPES[setting.shape]
    pairs = width // heads // 2
    first, second = pairs // 4, (pairs - pairs // 4) // 2
    last = vocabulary - 1
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": ffn,
            "num_hidden_layers": setting.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [first, second, pairs - first - second],
            },
            "tie_word_embeddings": tied,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": width,
            "fullatt_block_indexes": [0],
        },
        tie_word_embeddings=tied,
        image_token_id=last,
        video_token_id=last - 1,
        vision_start_token_id=last - 2,
        vision_end_token_id=last - 3,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, setting.dtype))
    with torch.device(setting.device):
        model = Qwen2_5_VLForConditionalGeneration(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def make_batch(model, n_tokens: int):
    """An image of about n_tokens - 12 visual tokens and text behind it, as a processor gives it."""
    import torch

    side = max(int((n_tokens - TEXT_TOKENS) ** 0.5), 1)
    n_visual = side * side
    config, device = model.config, model.device
    ids = torch.randint(1, config.text_config.vocab_size - 10, (1, n_tokens), device=device)
    ids[(ids == config.image_token_id) | (ids == config.video_token_id)] = 1
    ids[0, 2 : 2 + n_visual] = config.image_token_id
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config.image_token_id).long(),
        "pixel_values": torch.randn(4 * n_visual, 1176, device=device, dtype=model.dtype),
        "image_grid_thw": torch.tensor([[1, 2 * side, 2 * side]], device=device),
    }


def as_vlm(model, n_visual: int):
    """The model with the embedded processor, whose token ids its config takes over.

    Args:
        model: a random model.
        n_visual: most visual tokens of an image.
    """
    import interp
    from interp.model.families import base_model
    from interp.model.vlm import VLM

    side = CELL * int(n_visual**0.5)
    small = interp.load_model("tiny", device="cpu", max_pixels=side**2)
    for name in ("image", "video", "vision_start", "vision_end"):
        token_id = getattr(small.model.config, f"{name}_token_id")
        setattr(base_model(model).config, f"{name}_token_id", token_id)
    return VLM(model, small.processor, "random", "plain", "random weights")


def make_sample(n_visual: int):
    """A square picture of noise, about n_visual cells large, with a question and a box."""
    import numpy as np
    from PIL import Image

    from interp.data.sample import Sample

    side = CELL * int(n_visual**0.5)
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    boxes = np.array([[0.2, 0.2, 0.6, 0.5]])
    return Sample("noise", Image.fromarray(pixels), "which digit is red?", "7", boxes=boxes)


def make_text(processor, n_tokens: int, n_answer: int = 8, number: int = 0):
    """A completion of n_tokens tokens, all thinking but the tags, the answer and the end.

    Args:
        processor: whose tokens they are.
        n_tokens, n_answer: how many.
        number: of another text of the same length; they differ from the first word on.
    """
    from interp.inputs import completions

    tokenizer = processor.tokenizer
    word, opening, closing = (
        tokenizer(text, add_special_tokens=False).input_ids
        for text in ("digit", "<think>\n", "\n</think>\n")
    )
    n_thinking = n_tokens - len(opening) - len(closing) - n_answer - 1
    first = tokenizer(str(number), add_special_tokens=False).input_ids[:1]
    words = [*first, *word[:1] * (n_thinking - 1), *closing, *word[:1] * n_answer]
    return completions.completion(tokenizer, [*opening, *words, tokenizer.eos_token_id])
