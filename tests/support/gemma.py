"""A processor and configs of Gemma 3, small and of odd shape: pieces, a window, a square image.

The tokenizer is Gemma's own kind, learnt from the scenes' texts; bytes that no text had are tokens
by their number. The chat template is the hub's.
"""

import json
from functools import cache
from tempfile import TemporaryDirectory

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GemmaTokenizer,
)

from interp.data.digits import scenes

PATCH, SIDE = 7, 3
WINDOW = 45
FAMILIES = {"gemma3": (Gemma3Config, Gemma3ForConditionalGeneration)}
TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% if messages[0]['content'] is string %}"
    "{% set first_user_prefix = messages[0]['content'] + '\n\n' %}{% else %}"
    "{% set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' %}{% endif %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set first_user_prefix = '' %}"
    "{% set loop_messages = messages %}{% endif %}{% for message in loop_messages %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_OWN = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
_FOLDER = TemporaryDirectory()
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@cache
def processor_of(_family: str = "gemma3") -> Gemma3Processor:
    """Gemma's processor around a tokenizer of its kind; images of 3 x 3 tokens."""
    texts = [scenes.make_sample("train", index) for index in range(40)]
    learnt = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    learnt.normalizer = normalizers.Replace(" ", "▁")
    learnt.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no piece spans words
    trainer = trainers.BpeTrainer(
        vocab_size=405, special_tokens=[*_OWN, *_BYTES], show_progress=False
    )
    lines = [f"{one.question}\n\n{one.thinking}\n{one.answer}\n<think></think>" for one in texts]
    learnt.train_from_iterator(lines, trainer)
    vocabulary = learnt.get_vocab()
    merges = [tuple(pair) for pair in json.loads(learnt.to_str())["model"]["merges"]]
    tokenizer = GemmaTokenizer(
        vocabulary,
        merges,
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(one, special=True) for one in _OWN[5:]]}
    )
    # Blanks and tags that belong to a text are added tokens there.
    ordinary = ("\n", "\n\n", "▁▁", "▁▁▁", "<b>", "</b>")
    tokenizer.add_tokens([AddedToken(one, normalized="▁" in one) for one in ordinary])
    made = Gemma3Processor(
        Gemma3ImageProcessor(size={"height": 42, "width": 42}),
        tokenizer,
        chat_template=TEMPLATE,
        image_seq_length=SIDE**2,
    )
    # From a folder, as people have it: TransformerLens reads the tokenizer from there again.
    made.save_pretrained(_FOLDER.name)
    return Gemma3Processor.from_pretrained(_FOLDER.name)


def config_of(_family: str, text: dict, is_tied: bool) -> Gemma3Config:
    """A config with the decoder's given one: every other layer has a window."""
    tokenizer = processor_of().tokenizer
    n_layers = text["num_hidden_layers"]
    types = ["sliding_attention" if n % 2 == 0 else "full_attention" for n in range(n_layers)]
    text = text | {
        "vocab_size": len(tokenizer) + 13,
        "layer_types": types,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": text["head_dim"] + 3,
    }
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    vision |= {"num_hidden_layers": 2, "image_size": 42, "patch_size": PATCH}
    vision |= {"vision_use_head": False, "model_type": "siglip_vision_model"}
    return Gemma3Config(
        text_config=text,
        vision_config=vision | {"initializer_range": 0.15},
        mm_tokens_per_image=SIDE**2,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        tie_word_embeddings=is_tied,
    )
