"""A model with a <Focus> token in front of all it writes (Faithful-MR1's anchor; METHODS.md 5).

    python -m train.focus tiny-cold --out runs/tiny-focus
    python -m train.sft --config train/configs/tiny-focus.yaml       # its attention on the boxes
    python -m train.merge runs/tiny-focus-sft/final --out runs/tiny-anchored
    python -m train.grpo --config train/configs/tiny-direct.yaml --output_dir runs/tiny-faithful \
      --model_name_or_path runs/tiny-anchored --map none --counterfactual in-box

The token stands in the generation prompt and before an assistant's text, by the chat template. It
is a new one in a spare row of the vocabulary, which gets the mean vector, or one that the
vocabulary has and nobody uses (--token "<|box_start|>"). Only the paper's abstract is public: this
is our reading.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import AddedToken

from interp.loading import load_model
from interp.model.adapters import keep_prompt
from interp.model.vlm import VLM
from train.refusals import in_one_line

FOCUS = "<Focus>"
# Whatever the template: assistants' messages begin with the token, and so does what comes next.
_BEFORE = (
    "{%- set focused = namespace(messages=[]) -%}{%- for m in messages -%}"
    "{%- if m['role'] != 'assistant' -%}{%- set focused.messages = focused.messages + [m] -%}"
    "{%- elif m['content'] is string -%}{%- set focused.messages = focused.messages + "
    "[dict(m, content='TOKEN' + m['content'])] -%}"
    "{%- else -%}{%- set focused.messages = focused.messages + "
    "[dict(m, content=[{'type': 'text', 'text': 'TOKEN'}] + m['content'])] -%}"
    "{%- endif -%}{%- endfor -%}{%- set messages = focused.messages -%}"
)
_BEHIND = "{%- if add_generation_prompt -%}TOKEN{%- endif -%}"


def add_focus(vlm: VLM, token: str = FOCUS) -> int:
    """Puts the token into vocabulary, weights and template, in place; its id.

    Args:
        vlm: a model, without an adapter.
        token: a new one, or a special one that the vocabulary has.

    Raises:
        ValueError: a token of text, no spare row for a new one, or a template that has it already.
    """
    tokenizer, weight = vlm.processor.tokenizer, vlm.model.get_input_embeddings().weight
    known = tokenizer.get_vocab().get(token)
    if known is not None and known not in tokenizer.added_tokens_decoder:
        raise ValueError(f"expected a special token, got {token!r}, which stands for text")
    if token in (vlm.processor.chat_template or ""):
        raise ValueError(f"expected a template without {token!r}, got one with it; it is there")
    if known is None:
        n_tokens = len(tokenizer)
        if n_tokens >= len(weight):
            raise ValueError(
                f"expected a spare row for {token!r}, got {len(weight)} rows for {n_tokens} "
                'tokens; use one that nobody uses: --token "<|box_start|>"'
            )
        added = AddedToken(token, special=True, normalized=False)
        tokenizer.add_tokens([added], special_tokens=True)
        known = tokenizer.convert_tokens_to_ids(token)
        with torch.no_grad():
            weight[known] = weight[:n_tokens].mean(dim=0)
    template = _BEFORE + vlm.processor.chat_template + _BEHIND
    vlm.processor.chat_template = tokenizer.chat_template = template.replace("TOKEN", token)
    return known


def focus_id(processor, token: str) -> int:
    """The token's id; raises ValueError where the chat template does not have it."""
    if token not in (processor.chat_template or ""):
        raise ValueError(
            f"expected a model whose chat template has {token!r}, got another; make one: "
            "python -m train.focus MODEL --out FOLDER"
        )
    return processor.tokenizer.convert_tokens_to_ids(token)


@in_one_line()
def main() -> None:
    """Loads a model, adds the token and saves model and processor."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="embedded name, hub id or folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--token", default=FOCUS, help="a new token, or a special one that is there"
    )
    options = parser.parse_args()
    vlm = load_model(options.model, device="cpu")
    if vlm.adapter:
        parser.error(f"expected a model, got the adapter {options.model}; merge it first")
    add_focus(vlm, options.token)
    vlm.model.save_pretrained(options.out)
    vlm.processor.save_pretrained(options.out)
    keep_prompt(options.out, vlm.prompt)
    print(options.out)


if __name__ == "__main__":
    main()
