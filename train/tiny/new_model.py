"""A fresh, untrained model of about two million parameters with its processor, in a folder.

    python -m train.tiny.new_model OUT
    python -m train.tiny.new_model OUT --family qwen3_vl

The architecture, the processor and the checkpoint format are the family's own; only sizes differ,
and in Qwen3-VL the side of a cell, 28 pixels as in Qwen2.5-VL, so that both see the same scenes.
The tokenizer is a byte-level BPE with Qwen's pre-tokenization, special tokens and chat template,
its merges learnt from the embedded scenes, so that every text can still be written.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from interp.data.digits import scenes as digits

VOCABULARY = 400
SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# Qwen2's split: contractions, words with one leading mark, single digits, marks with newlines.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(texts) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the texts, with Qwen's special tokens and chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL_TOKENS[1:],
        padding_side="left",
        model_max_length=4096,
        chat_template=CHAT_TEMPLATE,
    )


FAMILIES = {
    "qwen2_5_vl": (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
    ),
    "qwen3_vl": (
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        partial(Qwen3VLVideoProcessor, patch_size=14),
    ),
}
TOWERS = {
    "qwen2_5_vl": {
        "depth": 3,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_heads": 4,
        "out_hidden_size": 128,
        "fullatt_block_indexes": [1, 2],
        "initializer_range": 0.1,
    },
    "qwen3_vl": {
        "depth": 3,
        "hidden_size": 80,  # narrower: each of the two levels has a merger of its own
        "intermediate_size": 240,
        "num_heads": 4,
        "out_hidden_size": 128,
        "num_position_embeddings": 100,
        "patch_size": 14,
        "deepstack_visual_indexes": [0, 1],
        "initializer_range": 0.1,
    },
}


def make_processor(texts, family: str = "qwen2_5_vl"):
    """The family's real image and video processors around that tokenizer."""
    tokenizer = make_tokenizer(texts)
    image = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
    _, _, kind, video = FAMILIES[family]
    return kind(image, tokenizer, video(), chat_template=CHAT_TEMPLATE)


def make_config(tokenizer: PreTrainedTokenizerFast, family: str = "qwen2_5_vl"):
    """Six layers, four query and two key/value heads, tied embeddings."""
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("endoftext", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
    }
    heads = {"head_dim": 32} if family == "qwen3_vl" else {}
    return FAMILIES[family][0](
        text_config=heads
        | {
            "vocab_size": VOCABULARY,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "initializer_range": 0.08,  # with transformers' 0.02 this width learns nothing
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": ids["endoftext"],
            "eos_token_id": ids["im_end"],
            "pad_token_id": ids["endoftext"],
            "tie_word_embeddings": True,
        },
        vision_config=TOWERS[family],
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )


def make_model(processor, seed: int = 0, family: str = "qwen2_5_vl"):
    """Random weights by seed; greedy generation that stops at the end token."""
    tokenizer = processor.tokenizer
    torch.manual_seed(seed)
    model = FAMILIES[family][1](make_config(tokenizer, family))
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def corpus(n_scenes: int = 4000):
    """Chat-formatted texts of training scenes, for the tokenizer's merges."""
    for i in range(n_scenes):
        scene = digits.make_sample("train", i, with_twin=False)
        turns = (
            "system\nYou are a helpful assistant.\nuser\n",
            scene.question,
            "\nassistant\n",
            scene.text,
        )
        yield "".join(turns)


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    parser.add_argument("--family", choices=FAMILIES, default="qwen2_5_vl", help="its family")
    arguments = parser.parse_args()
    processor = make_processor(corpus(), arguments.family)
    model = make_model(processor, arguments.seed, arguments.family)
    model.save_pretrained(arguments.out)
    processor.save_pretrained(arguments.out)
    print(f"{arguments.out}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
