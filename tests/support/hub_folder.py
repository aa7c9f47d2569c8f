"""Folders of Qwen2.5-VL and Qwen3-VL as the hub has them, with narrow random weights and real ids.

`tokenizer.json` is Qwen2.5's tokenizer, cut to the merges that the tests' texts need; each token
keeps its id of the full vocabulary. Qwen3's is the same with the tags of thinking as tokens of
their own. Config, generation config, image processor and what the chat template makes of our
messages are the hub's.
"""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

import interp
from interp.data.sample import Sample
from interp.inputs import prompts
from interp.model.vlm import PROMPTS
from tests.support.teaching import overfit

TOKENIZER = Path(__file__).parent / "tokenizer.json"
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen3-VL has no system prompt of its own.
SYSTEM = (
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
PLACES = ("chat_template.json", "chat_template.jinja", "tokenizer_config.json")
"""Files in which checkpoints keep their chat template."""

_IDS = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
}
_GENERATION = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.000001,
    "transformers_version": "4.49.0",
}
_IMAGES = {
    "min_pixels": 3136,
    "max_pixels": 50176,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}


def config(hidden: int = 64, layers: int = 2, heads: int = 4, kv_heads: int = 2) -> dict:
    """The 3B's config.json as the hub has it, with other widths and depths."""
    half = hidden // heads // 2
    section = [half // 4, (half - half // 4) // 2, half - half // 4 - (half - half // 4) // 2]
    return _IDS | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": hidden * 43 // 8,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 2,
            "hidden_act": "silu",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "in_chans": 3,
            "out_hidden_size": hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": section},
        "vocab_size": 151936,
    }


def config_3(hidden: int = 64, layers: int = 3, heads: int = 4, kv_heads: int = 2) -> dict:
    """Qwen3-VL-4B's config.json as the hub has it, with other widths and depths."""
    d_head = 2 * hidden // heads  # heads that are wider together than the stream, as the 4B's are
    third = d_head // 2 // 3
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": _IDS["image_token_id"],
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "dtype": "bfloat16",
            "eos_token_id": 151645,
            "head_dim": d_head,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "initializer_range": 0.02,
            "intermediate_size": hidden * 19 // 5,
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv_heads,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [d_head // 2 - 2 * third, third, third],
                "rope_type": "default",
            },
            "rope_theta": 5000000,
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": 151936,
        },
        "tie_word_embeddings": True,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": _IDS["video_token_id"],
        "vision_config": {
            "deepstack_visual_indexes": [0, 1],
            "depth": 3,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 64,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 128,
            "model_type": "qwen3_vl",
            "num_heads": 4,
            "num_position_embeddings": 2304,
            "out_hidden_size": hidden,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": _IDS["vision_end_token_id"],
        "vision_start_token_id": _IDS["vision_start_token_id"],
    }


_GENERATION_3 = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "top_k": 20,
    "top_p": 0.8,
    "repetition_penalty": 1.0,
    "temperature": 0.7,
    "transformers_version": "4.56.0",
}
_IMAGES_3 = {
    "size": {"longest_edge": 65536, "shortest_edge": 4096},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
FAMILIES = {
    "qwen2_5_vl": (config, _GENERATION, _IMAGES, "Qwen2_5_VLProcessor"),
    "qwen3_vl": (config_3, _GENERATION_3, _IMAGES_3, "Qwen3VLProcessor"),
}


def write(
    folder: Path, *, family: str = "qwen2_5_vl", seed: int = 0, sizes: dict | None = None, **files
) -> Path:
    """A folder with a random model in it; the files beside the weights stay as the hub has them.

    Args:
        folder: to write into.
        family: of `FAMILIES`.
        seed: of the weights.
        sizes: as for `config`.
        files: as for `write_files`.
    """
    write_files(folder, family=family, **files)
    own = FAMILIES[family][0](**sizes or {})
    (folder / "config.json").write_text(json.dumps(own, indent=1))
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    _save(model.to(torch.bfloat16), folder)
    return folder


def write_files(
    folder: Path,
    *,
    family: str = "qwen2_5_vl",
    template_in: str = "chat_template.json",
    are_tags_added: bool | None = None,
    are_tags_special: bool = False,
) -> None:
    """Everything but the weights.

    Args:
        folder: to write into.
        family: of `FAMILIES`.
        template_in: the file of `PLACES` that holds the chat template.
        are_tags_added: whether `<think>` and `</think>` are tokens of their own; by default as the
            family has it.
        are_tags_special: whether decoding leaves them out, then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config_of, generation, images, processor = FAMILIES[family]
    are_tags_added = family == "qwen3_vl" if are_tags_added is None else are_tags_added
    template = TEMPLATE.replace(SYSTEM, "") if family == "qwen3_vl" else TEMPLATE
    tokenizer = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 131072,
        "processor_class": processor,
    }
    if template_in == "chat_template.jinja":
        (folder / template_in).write_text(template)
    elif template_in == "chat_template.json":
        (folder / template_in).write_text(json.dumps({"chat_template": template}))
    else:
        tokenizer["chat_template"] = template
    contents = {
        "config.json": config_of(),
        "generation_config.json": generation,
        "preprocessor_config.json": images,
        "tokenizer_config.json": tokenizer,
        "tokenizer.json": _tokenizer(are_tags_added, are_tags_special),
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=1))


def _save(model, folder: Path) -> None:
    """Weights alone: the files beside them stay as the hub has them."""
    kept = {name: (folder / name).read_text() for name in ("config.json", "generation_config.json")}
    model.save_pretrained(folder)
    for name, content in kept.items():
        (folder / name).write_text(content)


def _tokenizer(are_tags_added: bool, are_special: bool) -> dict:
    tokenizer = json.loads(TOKENIZER.read_text())
    if are_tags_added:
        tags = {"<think>": 151667, "</think>": 151668}
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        tokenizer["added_tokens"] += [
            {"id": number, "content": tag, "special": are_special, **plain}
            for tag, number in tags.items()
        ]
        tokenizer["model"]["vocab"] |= tags
    return tokenizer


def teach(folder: Path, samples: list[Sample], n_rounds: int = 40) -> None:
    """Overfits the folder's model on the samples' texts, until it says them by itself.

    All rows of its output embedding share a mean, as training makes them, and stay as they are.
    A text's logits are those of the tokens that any text has and of some others.

    Raises:
        ValueError: it does not know them by heart at the end.
    """
    vlm = interp.load_model(str(folder), dtype="float32")
    texts = [prompts.teacher_forced(vlm.processor, s, PROMPTS[vlm.prompt]) for s in samples]
    decoder, rows = vlm.model.model.requires_grad_(True), vlm.model.lm_head.weight.detach()
    generator = torch.Generator().manual_seed(0)
    rows.normal_(0.05, 0.15, generator=generator)
    used = torch.cat([text.batch["input_ids"][0] for text in texts])
    others = torch.randint(len(rows), (8192,), generator=generator)
    some = torch.unique(torch.cat([used, others]))
    trained = [p for n, p in decoder.named_parameters() if "visual" not in n and "embed" not in n]

    def loss_of(text):
        n_said = len(text.tokens.ids) - text.tokens.targets()[0] + 8  # the tag before it, too
        ids = text.batch["input_ids"][0, -n_said:]
        logits = decoder(**text.batch).last_hidden_state[0, -n_said - 1 : -1] @ rows[some].T
        return torch.nn.functional.cross_entropy(logits, torch.searchsorted(some, ids))

    overfit(loss_of, texts, trained, n_steps=n_rounds * len(texts), rate=1e-2, last=0.05)
    said = vlm.answers([(sample.image, sample.question) for sample in samples])
    wrong = [s.id for s, text in zip(samples, said, strict=True) if text.answer != s.answer]
    if wrong:
        raise ValueError(f"expected texts known by heart, not those of {wrong}")
    _save(vlm.model.to(torch.bfloat16), folder)
