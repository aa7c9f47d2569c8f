"""The slow way: every W_o W_v h vector formed by name, one row at a time, in plain loops.

Shares no code with `interp`. Clean keys and values come from forward hooks on an eager forward of
the whole sequence; a row is then computed again from the weights, with or without some values.
"""

import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb


class Clean:
    """An eager forward of the whole sequence, all modules' inputs and outputs kept by hooks."""

    def __init__(self, model, batch):
        self.model, self.lm = model, model.model.language_model
        self.kept = {}
        handles = [
            module.register_forward_hook(self._keep(name), with_kwargs=True)
            for name, module in self.lm.named_modules()
        ]
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")
        with torch.no_grad():
            out = model(**batch, output_attentions=True, use_cache=False)
        model.set_attn_implementation(before)
        for handle in handles:
            handle.remove()
        self.attentions = out.attentions  # by layer: (1, head, row, source)
        self.logits = out.logits[0]
        self.mask = batch["attention_mask"][0].bool()
        self.layers = list(self.lm.layers)
        self.text = model.config.text_config

    def _keep(self, name):
        def hook(module, args, kwargs, output):
            self.kept[name] = (args, kwargs, output)

        return hook

    def output(self, name):
        value = self.kept[name][2]
        return value[0] if isinstance(value, tuple) else value

    @property
    def embeddings(self):
        return self.kept[""][1]["inputs_embeds"][0]

    def final(self, row):
        return self.kept["norm"][0][0][0, row]

    def gauge_row(self, target, gauge, foil=None):
        weight = self.model.lm_head.weight
        if gauge == "centered":
            return weight[target] - weight.mean(0)
        return weight[target] - weight[foil] if gauge == "contrast" else weight[target]

    def readout(self, row_residual, g):
        rms = torch.sqrt((row_residual**2).mean() + self.text.rms_norm_eps)
        return self.lm.norm.weight * g / rms

    def head_matrix(self, layer, head):
        """W_o of one head, (d_model, d_head)."""
        width = self.text.hidden_size // self.text.num_attention_heads
        return self.layers[layer].self_attn.o_proj.weight[:, head * width : (head + 1) * width]

    def value(self, layer, head, row, normed=None):
        """W_v n(h) without the bias, for the head's group; and the bias."""
        width = self.text.hidden_size // self.text.num_attention_heads
        group = head // (self.text.num_attention_heads // self.text.num_key_value_heads)
        projection = self.layers[layer].self_attn.v_proj
        rows = slice(group * width, (group + 1) * width)
        if normed is None:
            normed = self.output(f"layers.{layer}.input_layernorm")[0, row]
        return projection.weight[rows] @ normed, projection.bias[rows]


def ledger(clean: Clean, row: int, target: int, gauge: str = "centered", foil=None):
    """direct (layer, head, source), value_bias (layer, head), ffn (layer), embed, logit."""
    n_layers, n_heads = clean.text.num_hidden_layers, clean.text.num_attention_heads
    u = clean.readout(clean.final(row), clean.gauge_row(target, gauge, foil))
    direct = torch.zeros(n_layers, n_heads, len(clean.mask), dtype=u.dtype)
    value_bias = torch.zeros(n_layers, n_heads, dtype=u.dtype)
    ffn = torch.stack([u @ clean.output(f"layers.{n}.mlp")[0, row] for n in range(n_layers)])
    for layer in range(n_layers):
        for head in range(n_heads):
            matrix = clean.head_matrix(layer, head)
            for source in range(row + 1):
                weight = clean.attentions[layer][0, head, row, source]
                value, bias = clean.value(layer, head, source)
                direct[layer, head, source] = weight * (u @ (matrix @ value))
                value_bias[layer, head] += weight * (u @ (matrix @ bias))
    logits = clean.logits[row]
    shift = {"raw": 0.0, "centered": logits.mean(), "contrast": logits[foil] if foil else 0.0}[
        gauge
    ]
    return direct, value_bias, ffn, u @ clean.embeddings[row], logits[target] - shift


def play_row(clean: Clean, row: int, cut=()):
    """One row computed again from the weights, the values of `cut` left out.

    Returns per layer the attention weights (head, source), the row's own values (head, d_head) and
    the FFN output, and the residual before the final norm.
    """
    text, lm = clean.text, clean.lm
    n_heads, group = text.num_attention_heads, text.num_attention_heads // text.num_key_value_heads
    width = text.hidden_size // n_heads
    cos, sin = clean.kept["rotary_emb"][2]
    h = clean.embeddings[row]
    played = []
    for number, layer in enumerate(lm.layers):
        attention = layer.self_attn
        normed_all = clean.output(f"layers.{number}.input_layernorm")[0].clone()
        normed = layer.input_layernorm(h)
        normed_all[row] = normed
        q = (attention.q_proj.weight @ normed + attention.q_proj.bias).view(1, n_heads, 1, width)
        k = normed_all @ attention.k_proj.weight.T + attention.k_proj.bias
        k = k.view(1, -1, text.num_key_value_heads, width).permute(0, 2, 1, 3)
        q, _ = apply_rotary_pos_emb(q, q, cos[:, row : row + 1], sin[:, row : row + 1])
        _, k = apply_rotary_pos_emb(k, k, cos, sin)
        written = torch.zeros_like(h)
        weights = torch.zeros(n_heads, len(clean.mask), dtype=h.dtype)
        own = torch.zeros(n_heads, width, dtype=h.dtype)
        for head in range(n_heads):
            seen = [p for p in range(row + 1) if clean.mask[p]]
            scores = (
                torch.stack([q[0, head, 0] @ k[0, head // group, p] for p in seen]) / width**0.5
            )
            for p, weight in zip(seen, torch.softmax(scores, 0), strict=True):
                weights[head, p] = weight
                value, bias = clean.value(number, head, p, normed=normed_all[p])
                if p == row:
                    own[head] = value
                if p not in cut or p == row:
                    written = written + weight * (clean.head_matrix(number, head) @ (value + bias))
        mid = h + written
        ffn = layer.mlp(layer.post_attention_layernorm(mid))
        h = mid + ffn
        played.append((weights, own, ffn))
    return played, h


def edge_effect(clean: Clean, row: int, target: int, cut, gauge: str = "centered", foil=None):
    """Total effect of a cut and its five parts, each by its formula in METHODS.md 3.1."""
    g = clean.gauge_row(target, gauge, foil)
    first, h = play_row(clean, row)
    second, h2 = play_row(clean, row, cut)
    u, u2 = clean.readout(h, g), clean.readout(h2, g)
    parts = dict.fromkeys(("direct", "value_bias", "ffn", "attention"), 0.0)
    for layer, ((a, own, f), (a2, own2, f2)) in enumerate(zip(first, second, strict=True)):
        parts["ffn"] = parts["ffn"] + u @ (f - f2)
        for head in range(clean.text.num_attention_heads):
            back = clean.head_matrix(layer, head).T @ u
            for p in range(row + 1):
                value, bias = clean.value(layer, head, p)
                if p == row:
                    before = a[head, p] * (back @ (own[head] + bias))
                    after = a2[head, p] * (back @ (own2[head] + bias))
                    parts["attention"] = parts["attention"] + before - after
                elif p in cut:
                    parts["direct"] = parts["direct"] + a[head, p] * (back @ value)
                    parts["value_bias"] = parts["value_bias"] + a[head, p] * (back @ bias)
                else:
                    change = (a[head, p] - a2[head, p]) * (back @ (value + bias))
                    parts["attention"] = parts["attention"] + change
    parts["norm"] = (u - u2) @ h2
    return u @ h - u2 @ h2, parts
