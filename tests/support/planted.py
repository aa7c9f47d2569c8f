"""Models whose path from image to logit is known by construction (METHODS.md 6, oracle 4).

Width 64, 4 heads, 2 key/value heads, 2 layers. The residual dimensions are split into B (image
content), C and D (16 each) and flags. All decoder weights are zero but those that a circuit sets;
norm weights are 1, value biases 0. The reference has the content's sign flipped: every norm on the
way keeps its size, so that the shares are exact under the live norm too.
"""

import torch

from tests.support import odd_models

B, C, D = slice(0, 16), slice(16, 32), slice(32, 48)
IS_IMAGE, IS_TEXT, IS_CARRIER = 48, 49, 50
SLOW = (7, 15)  # the rotary pair that turns least
STRONG = 300.0


def make(circuit: str, processor):
    """A planted model in float64."""
    model = odd_models.make("one_to_one", processor)
    config = model.config
    config.text_config.num_key_value_heads = 2
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    model = type(model)(config).double().eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.model.language_model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        _embed(model, processor)
        CIRCUITS[circuit](model)
    return model


def _embed(model, processor):
    merger = model.model.visual.merger.mlp[2]
    merger.weight[16:] = 0
    merger.bias[16:] = 0
    merger.bias[IS_IMAGE] = 1.0
    rows = model.model.language_model.embed_tokens.weight
    rows[:, IS_TEXT] = 1.0
    carrier = processor.tokenizer.convert_tokens_to_ids("<|vision_end|>")
    rows[carrier, IS_CARRIER] = 1.0
    model.lm_head.weight.zero_()


def _read_out(model, dims):
    model.lm_head.weight[:, dims] = torch.randn(len(model.lm_head.weight), 16).double()


def _copy(layer, source, to):
    """Head 0 of a layer copies from some dimensions to others."""
    layer.self_attn.v_proj.weight[0:16, source] = torch.randn(16, 16).double() / 4
    layer.self_attn.o_proj.weight[to, 0:16] = torch.randn(16, 16).double() / 4


def _direct(model):
    _copy(model.model.language_model.layers[0], B, C)
    _read_out(model, C)


def _ffn(model):
    first, second = model.model.language_model.layers
    _copy(first, B, C)
    second.mlp.gate_proj.weight[:16, IS_TEXT] = 1.0
    second.mlp.up_proj.weight[:16, C] = torch.randn(16, 16).double()
    second.mlp.down_proj.weight[D, :16] = torch.randn(16, 16).double()
    _read_out(model, D)


def _routing(model):
    first = model.model.language_model.layers[0].self_attn
    first.q_proj.bias[:16] = 1.0
    first.k_proj.weight[0:16, B] = torch.randn(16, 16).double()
    first.v_proj.weight[0:16, IS_TEXT] = torch.randn(16).double()
    first.o_proj.weight[C, 0:16] = torch.randn(16, 16).double()
    _read_out(model, C)


def _two_hop(model):
    first, second = (layer.self_attn for layer in model.model.language_model.layers)
    first.q_proj.weight[SLOW[0], IS_CARRIER] = STRONG
    first.k_proj.weight[SLOW[0], IS_IMAGE] = STRONG
    _copy(model.model.language_model.layers[0], B, C)
    second.q_proj.bias[SLOW[0]] = STRONG
    second.k_proj.weight[SLOW[0], IS_CARRIER] = STRONG
    _copy(model.model.language_model.layers[1], C, D)
    _read_out(model, D)


CIRCUITS = {"direct": _direct, "ffn": _ffn, "routing": _routing, "two_hop": _two_hop}
SHARES = {
    "direct": (1, 0, 0),
    "ffn": (0, 1, 0),
    "routing": (0, 1, 0),
    "two_hop": (0, 0, 1),
}
NODE_PATH = {"direct": "direct", "ffn": "ffn", "routing": "routing", "two_hop": "mediated"}
