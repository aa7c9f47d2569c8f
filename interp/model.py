"""A vision-language model with its processor, and where its parts are.

The only file that knows module paths of Hugging Face models. A new family is one more entry of
`SPECS`: the class of its config and a function from the model to its `Parts`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from threading import RLock

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from interp import inputs

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


# What a model is while it is read (its mode, its attention) is seen by all threads.
_ONE_AT_A_TIME = RLock()


@dataclass(frozen=True)
class Parts:
    """The modules and sizes that the capture and the algebra need."""

    language_model: nn.Module
    """Takes inputs_embeds, position_ids (three axes) and attention_mask; has layers and norm."""
    output_embedding: nn.Module
    image_token_id: int
    patches_per_token: int
    n_vocabulary: int
    """Rows of the output embedding, padding rows included."""
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    n_activations: int
    """Numbers per token that the widest module keeps at once, in tower or decoder."""
    n_tower_heads: int
    max_positions: int
    epsilon: float
    """Of the final norm."""

    @property
    def attn_implementation(self) -> str:
        """The caller's; not what a replay in another thread may have put in its place."""
        with _ONE_AT_A_TIME:
            return self.language_model.config._attn_implementation

    @property
    def norm_weight(self) -> Float[Tensor, " d_model"]:
        """γ of the final norm."""
        return self.language_model.norm.weight


def _qwen2_5_vl(model: nn.Module) -> Parts:
    text, vision = model.config.text_config, model.config.vision_config
    patches_per_token = vision.spatial_merge_size**2
    decoder = 4 * text.hidden_size + 3 * text.intermediate_size
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    tower = patches_per_token * (6 * vision.hidden_size + 3 * vision.intermediate_size + pixels)
    return Parts(
        language_model=model.model.language_model,
        output_embedding=model.lm_head,
        image_token_id=model.config.image_token_id,
        patches_per_token=patches_per_token,
        n_vocabulary=model.lm_head.out_features,
        n_layers=text.num_hidden_layers,
        n_heads=text.num_attention_heads,
        n_kv_heads=text.num_key_value_heads,
        d_head=text.hidden_size // text.num_attention_heads,
        n_activations=text.hidden_size + max(decoder, tower),
        n_tower_heads=vision.num_heads,
        max_positions=text.max_position_embeddings,
        epsilon=text.rms_norm_eps,
    )


SPECS: dict[str, Callable[[nn.Module], Parts]] = {"qwen2_5_vl": _qwen2_5_vl}


def base_model(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside a peft wrapper, its adapted layers in place."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def parts(model: nn.Module) -> Parts:
    """Where the parts of a model are.

    Raises:
        ValueError: an unknown architecture, a layer that does not attend to the whole context, or
            sharded weights.
    """
    model = base_model(model)
    family = model.config.model_type
    if family not in SPECS:
        raise ValueError(
            f"expected an architecture of {sorted(SPECS)}, got {family!r}; "
            "add its spec to interp/model.py"
        )
    kinds = set(model.config.text_config.layer_types)
    if kinds != {"full_attention"}:
        raise ValueError(
            f"expected full attention in every layer, got {sorted(kinds)}; "
            "set use_sliding_window=False in the text config"
        )
    empty = next((name for name, p in model.named_parameters() if p.numel() == 0), None)
    if empty is not None:
        raise ValueError(
            f"expected gathered parameters, got size zero for {empty}; "
            "gather sharded weights (ZeRO-3, FSDP) before extracting"
        )
    return SPECS[family](model)


def image_embeddings(model: nn.Module, pixel_values: Tensor, grids: Tensor) -> Tensor:
    """What the vision tower gives the language model for some images, (visual token, d_model)."""
    base = base_model(model)
    with undisturbed(model), torch.no_grad():
        found = base.model.get_image_features(
            pixel_values=pixel_values.to(model.device), image_grid_thw=grids.to(model.device)
        )
        return torch.cat(tuple(found.pooler_output))


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; training modes and the rotary offset of generation as before outside.

    In training mode LoRA's dropout makes a replay wrong by 0.3, and gradient checkpointing leaves
    no cache. A caller's autocast, or one that mixed precision has put into the model's forward,
    would round the float32 algebra down, and inference mode would forbid the vector-Jacobian
    products of the readout: all are off inside. Threads wait for one another.
    """
    with _ONE_AT_A_TIME, _eval_mode(model):
        yield


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    inner = base_model(model).model
    modes = [(module, module.training) for module in model.modules()]
    offset = inner.rope_deltas
    wrapped = {m: m.forward for m in (model, base_model(model)) if "_original_forward" in vars(m)}
    for one in wrapped:
        one.forward = one._original_forward
    model.eval()
    device, with_grad = next(model.parameters()).device.type, torch.is_grad_enabled()
    try:
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(with_grad),
            torch.autocast(device, enabled=False),
        ):
            yield
    finally:
        inner.rope_deltas = offset
        for one, forward in wrapped.items():
            one.forward = forward
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class VLM:
    """A loaded model with its processor; the first argument of every extraction."""

    model: nn.Module
    processor: object
    name: str
    """Hub id, folder or embedded name it was loaded by."""
    prompt: str
    """Key of `PROMPTS`: the system prompt of every question."""
    fingerprint: str
    """Of the base model's weights as loaded."""
    revision: str = ""
    adapter: str = ""

    @property
    def device(self) -> torch.device:
        """Where inputs have to be."""
        return self.model.device

    def answer(self, image, question: str, *, max_new_tokens: int = 256):
        """The model's own greedy text for one image and question, a `Completion`."""
        return self.answers([(image, question)], max_new_tokens=max_new_tokens)[0]

    def answers(self, pairs: list[tuple], *, max_new_tokens: int = 256) -> list:
        """`answer` for several (image, question) pairs in one left-padded batch."""
        batch = inputs.prompts(self.processor, pairs, PROMPTS[self.prompt]).to(self.device)
        with undisturbed(self.model), torch.no_grad():
            generated = self.model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                use_cache=True,
                # Greedy means greedy: a checkpoint's own settings would penalise repetition.
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
            )
        new = generated[:, batch["input_ids"].shape[1] :]
        return [inputs.completion(self.processor.tokenizer, row) for row in new.tolist()]


def fingerprint(model: nn.Module, *, adapter: bool = False) -> str:
    """A hash over names, shapes and sampled values of the weights: the base's, or the adapter's.

    A base model has the same one inside a peft wrapper and without.
    """
    named = sorted(
        (name.removeprefix("base_model.model.").replace(".base_layer", ""), tensor)
        for name, tensor in model.state_dict().items()
        if ("lora_" in name) == adapter
    )
    digest = sha256("".join(f"{name}{tuple(t.shape)}" for name, t in named).encode())
    sampled = []
    for _, tensor in named:
        flat = tensor.detach().reshape(-1)
        step = max(len(flat) // 16, 1)
        sampled.append(flat[::step][:16].float().to(named[0][1].device))
    digest.update(torch.cat(sampled).cpu().numpy().tobytes() if sampled else b"")
    return digest.hexdigest()[:16]
