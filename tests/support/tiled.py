"""Processors and configs of the families that cut images into tiles, small and of odd shape.

Tokenizers are the embedded model's with each family's own tokens added; chat templates are those
of the hub. A tile has two or three tokens along a side.
"""

from functools import cache

from transformers import (
    AutoTokenizer,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from interp.loading import CHECKPOINTS

PATCH = 7
FAMILIES = {
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration),
    "internvl": (InternVLConfig, InternVLForConditionalGeneration),
    "llava_onevision": (LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration),
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration),
}
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<IMG_CONTEXT>\n"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_AFTER_A_BLANK = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CAPITALISED = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@cache
def processor_of(family: str):
    """A family's own processor around the embedded model's tokenizer."""
    return _PROCESSORS[family]()


def config_of(family: str, text: dict, is_tied: bool):
    """A family's config with the decoder's given one."""
    tokenizer = processor_of(family).tokenizer
    image_id = processor_of(family).image_token_id
    text = text | {"vocab_size": len(tokenizer) + 13, "model_type": _DECODERS[family]}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    vision |= {"num_hidden_layers": 2, "initializer_range": 0.15}
    common = {"text_config": text, "tie_word_embeddings": is_tied}
    kind = FAMILIES[family][0]
    if family == "internvl":
        vision |= {"image_size": 28, "patch_size": PATCH, "layer_scale_init_value": 1.0}
        return kind(vision_config=vision, image_token_id=image_id, image_seq_length=4, **common)
    if family == "llava_onevision":
        vision |= {"model_type": "siglip_vision_model", "image_size": 21, "patch_size": PATCH}
        vision |= {"vision_use_head": False}
        return kind(
            vision_config=vision,
            image_token_index=image_id,
            image_grid_pinpoints=_PINPOINTS,
            vision_aspect_ratio="anyres_max_2",
            **common,
        )
    vision |= {"image_size": 28, "patch_size": PATCH}
    return kind(vision_config=vision, image_token_id=image_id, scale_factor=2, **common)


_DECODERS = {"internvl": "qwen3", "llava_onevision": "qwen2", "idefics3": "llama"}
_DECODERS["smolvlm"] = "llama"
_PINPOINTS = [[21 * rows, 21 * columns] for rows in (1, 2) for columns in (1, 2, 3)]


def _tokenizer(own: dict[str, str], others: tuple[str, ...] = ()):
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny", extra_special_tokens=own)
    tokenizer.add_special_tokens({"additional_special_tokens": list(others)})
    if "<end_of_utterance>" in others:
        tokenizer.eos_token = "<end_of_utterance>"
    return tokenizer


def _internvl():
    own = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    images = GotOcr2ImageProcessor(size={"height": 28, "width": 28}, min_patches=1, max_patches=6)
    return InternVLProcessor(
        image_processor=images,
        tokenizer=_tokenizer(own),
        video_processor=InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=_CHATML,
    )


def _llava_onevision():
    images = LlavaOnevisionImageProcessor(
        size={"height": 21, "width": 21}, image_grid_pinpoints=_PINPOINTS
    )
    return LlavaOnevisionProcessor(
        image_processor=images,
        tokenizer=_tokenizer({"image_token": "<image>", "video_token": "<video>"}),
        video_processor=LlavaOnevisionVideoProcessor(),
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=_AFTER_A_BLANK,
        vision_aspect_ratio="anyres_max_2",
    )


_MARKS = (
    *("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)),
)
_SPLIT = {"size": {"longest_edge": 84}, "max_image_size": {"longest_edge": 28}}


def _idefics3():
    return Idefics3Processor(
        Idefics3ImageProcessor(**_SPLIT),
        _tokenizer({}, _MARKS),
        image_seq_len=4,
        chat_template=_CAPITALISED,
    )


def _smolvlm():
    return SmolVLMProcessor(
        SmolVLMImageProcessor(**_SPLIT),
        _tokenizer({}, _MARKS),
        SmolVLMVideoProcessor(),
        image_seq_len=4,
        chat_template=_CAPITALISED,
    )


_PROCESSORS = {
    "idefics3": _idefics3,
    "internvl": _internvl,
    "llava_onevision": _llava_onevision,
    "smolvlm": _smolvlm,
}
