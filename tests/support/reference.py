"""The slow way: every W_o W_v h vector formed by name, one row at a time, in plain loops.

Shares no code with `interp`. Clean keys and values come from forward hooks on an eager forward of
the whole sequence; a row is then computed again from the weights, with or without some values. What
was computed once for a forward is kept: gauges, norms and targets read the same vectors.

Where families differ it asks the config: Qwen3-VL norms queries and keys by head, has heads that
are wider than its stream, and adds levels of the image behind its first layers; Gemma 3 has norms
behind attention and FFN too, a weight that counts from 1, its own factor on scores, and windows.
"""

from functools import wraps
from itertools import permutations

import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb


def kept(compute):
    """Keeps what was computed of a forward, by all other arguments."""

    @wraps(compute)
    def once(clean, *args, **kwargs):
        key = (
            compute.__name__,
            *map(_hashable, args),
            *sorted((name, _hashable(value)) for name, value in kwargs.items()),
        )
        if key not in clean.known:
            with torch.no_grad():
                clean.known[key] = compute(clean, *args, **kwargs)
        return clean.known[key]

    return once


def _hashable(value):
    return tuple(value) if isinstance(value, list | range) else value


class Clean:
    """An eager forward of the whole sequence, all modules' inputs and outputs kept by hooks.

    With `replaced`, {row: embedding}, those rows enter the language model with another embedding;
    where levels are added too, {row: embedding and levels in one vector}, or the embedding alone,
    which keeps the clean levels.
    """

    def __init__(self, model, batch, replaced=None):
        self.model = model
        self.lm = getattr(model.model, "language_model", None) or model.model.text_model
        self.kept, self.known = {}, {}
        handles = [
            module.register_forward_hook(self._keep(name), with_kwargs=True)
            for name, module in self.lm.named_modules()
        ]
        if replaced:
            handles.append(self.lm.register_forward_pre_hook(_put(replaced), with_kwargs=True))
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
        self.d_head = getattr(self.text, "head_dim", None) or (
            self.text.hidden_size // self.text.num_attention_heads
        )

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

    def added(self, layer, row):
        """The vector that is added to the stream at a row behind a layer; 0 in most families."""
        arguments = self.kept[""][1]
        levels = arguments.get("deepstack_visual_embeds") or []
        if layer >= len(levels) or not arguments["visual_pos_masks"][0, row]:
            return torch.zeros_like(self.embeddings[row])
        return levels[layer][int(arguments["visual_pos_masks"][0, :row].sum())]

    def final(self, row):
        return self.kept["norm"][0][0][0, row]

    @property
    def is_gemma(self):
        return self.text.model_type.startswith("gemma3")

    def gamma(self, norm):
        return 1 + norm.weight if self.is_gemma else norm.weight

    def rms(self, x):
        return torch.sqrt((x**2).mean(-1, keepdim=True) + self.text.rms_norm_eps)

    def scale(self, heads):
        """1 / rms of all that heads have put out, where a norm stands behind them."""
        return 1 / self.rms(heads)[0] if self.is_gemma else 1.0

    @kept
    def scale_at(self, layer, row):
        """`scale` at a row of the clean forward."""
        return self.scale(self.output(f"layers.{layer}.self_attn")[0, row])

    def ffn_at(self, layer, row):
        name = "post_feedforward_layernorm" if self.is_gemma else "mlp"
        return self.output(f"layers.{layer}.{name}")[0, row]

    def ffn_of(self, layer, mid):
        """The FFN's write of a layer, where the stream behind attention is `mid`."""
        module = self.layers[layer]
        if self.is_gemma:
            put_out = module.mlp(module.pre_feedforward_layernorm(mid))
            return module.post_feedforward_layernorm(put_out)
        # Experts want a batch of sequences.
        return module.mlp(module.post_attention_layernorm(mid)[None, None])[0, 0]

    def seen_by(self, layer, row):
        """The positions that a row sees in a layer, its own among them."""
        window = len(self.mask) + 1
        if self.is_gemma and self.text.layer_types[layer] == "sliding_attention":
            window = self.text.sliding_window
        return [p for p in range(row + 1) if self.mask[p] and row - p < window]

    def gauge_row(self, target, gauge, foil=None):
        weight = self.model.lm_head.weight
        if gauge == "centered":
            return weight[target] - weight.mean(0)
        return weight[target] - weight[foil] if gauge == "contrast" else weight[target]

    def readout(self, row_residual, g):
        return self.gamma(self.lm.norm) * g / self.rms(row_residual)

    @kept
    def output_matrix(self, layer, head):
        """W_o of one head, (d_model, d_head)."""
        columns = slice(head * self.d_head, (head + 1) * self.d_head)
        return self.layers[layer].self_attn.o_proj.weight[:, columns]

    @kept
    def head_matrix(self, layer, head):
        """W_o of one head, times the weight of a norm behind attention."""
        matrix = self.output_matrix(layer, head)
        if self.is_gemma:
            matrix = self.gamma(self.layers[layer].post_attention_layernorm)[:, None] * matrix
        return matrix

    @kept
    def value(self, layer, head, row):
        """W_v n(h) without the bias, for the head's group; and the bias."""
        return self.value_of(layer, head, self.output(f"layers.{layer}.input_layernorm")[0, row])

    @kept
    def written(self, layer, head, row):
        """W_o W_v n(h), without the bias."""
        return self.head_matrix(layer, head) @ self.value(layer, head, row)[0]

    def value_at(self, layer, head, _row, normed):
        """`value_of` for a row that is played; a test may put another in its place."""
        return self.value_of(layer, head, normed)

    @torch.no_grad()
    def value_of(self, layer, head, normed):
        """W_v of a normed state without the bias; and the bias."""
        group = head // (self.text.num_attention_heads // self.text.num_key_value_heads)
        projection = self.layers[layer].self_attn.v_proj
        rows = slice(group * self.d_head, (group + 1) * self.d_head)
        none = projection.weight.new_zeros(self.d_head)
        bias = none if projection.bias is None else projection.bias[rows]
        return projection.weight[rows] @ normed, bias


def _put(replaced):
    def hook(_module, args, kwargs):
        embeddings = kwargs["inputs_embeds"].clone()
        width, changed = embeddings.shape[-1], {}
        for row, content in replaced.items():
            embeddings[0, row] = content[:width]
        if kwargs.get("deepstack_visual_embeds"):
            levels = [level.clone() for level in kwargs["deepstack_visual_embeds"]]
            visual = kwargs["visual_pos_masks"][0].nonzero()[:, 0].tolist()
            for row, content in replaced.items():
                for level, own in zip(levels, content[width:].view(-1, width), strict=False):
                    level[visual.index(row)] = own
            changed["deepstack_visual_embeds"] = levels
        return args, {**kwargs, "inputs_embeds": embeddings, **changed}

    return hook


@torch.no_grad()
def ledger(clean: Clean, row: int, target: int, gauge: str = "centered", foil=None):
    """direct (layer, head, source), value_bias (layer, head), ffn (layer), embed, logit."""
    n_layers, n_heads = clean.text.num_hidden_layers, clean.text.num_attention_heads
    u = clean.readout(clean.final(row), clean.gauge_row(target, gauge, foil))
    direct = torch.zeros(n_layers, n_heads, len(clean.mask), dtype=u.dtype)
    value_bias = torch.zeros(n_layers, n_heads, dtype=u.dtype)
    ffn = torch.stack([u @ clean.ffn_at(n, row) for n in range(n_layers)])
    for layer in range(n_layers):
        for head in range(n_heads):
            matrix = clean.head_matrix(layer, head)
            for source in range(row + 1):
                weight = clean.attentions[layer][0, head, row, source] * clean.scale_at(layer, row)
                value, bias = clean.value(layer, head, source)
                direct[layer, head, source] = weight * (u @ (matrix @ value))
                value_bias[layer, head] += weight * (u @ (matrix @ bias))
    logits = clean.logits[row]
    shift = {"raw": 0.0, "centered": logits.mean(), "contrast": logits[foil] if foil else 0.0}[
        gauge
    ]
    entered = clean.embeddings[row] + sum(clean.added(n, row) for n in range(n_layers))
    return direct, value_bias, ffn, u @ entered, logits[target] - shift


@kept
def play_row(  # noqa: PLR0915 - the whole row in one place
    clean: Clean, row: int, cut=(), mode="zero", averaged=(), other=None, swapped=()
):
    """One row computed again from the weights, the values of `cut` left out.

    In the mode "mean" a cut edge reads the mean value over the rows `averaged`, in the mode "mask"
    it has no weight. The slots `swapped` are read from the run `other`.

    Returns per layer the attention weights (head, source), times the scale of a norm behind
    attention, the row's own values (head, d_head) and what the FFN writes; and the residual before
    the final norm.
    """
    text, lm = clean.text, clean.lm
    n_heads, group = text.num_attention_heads, text.num_attention_heads // text.num_key_value_heads
    width = clean.d_head
    h = clean.embeddings[row]
    scaling = text.query_pre_attn_scalar**-0.5 if clean.is_gemma else width**-0.5
    played = []
    for number, layer in enumerate(lm.layers):
        attention = layer.self_attn
        cos, sin = clean.kept[f"layers.{number}"][1]["position_embeddings"]
        normed_all = clean.output(f"layers.{number}.input_layernorm")[0].clone()
        for p in swapped:
            normed_all[p] = other.output(f"layers.{number}.input_layernorm")[0, p]
        normed = layer.input_layernorm(h)
        normed_all[row] = normed
        q = _affine(attention.q_proj, normed[None]).view(1, 1, n_heads, width)
        k = _affine(attention.k_proj, normed_all).view(1, -1, text.num_key_value_heads, width)
        if hasattr(attention, "q_norm"):
            both = ((attention.q_norm, q), (attention.k_norm, k))
            q, k = (_normed(one, clean.gamma(one), x) for one, x in both)
        q, k = q.permute(0, 2, 1, 3), k.permute(0, 2, 1, 3)
        q, _ = apply_rotary_pos_emb(q, q, cos[:, row : row + 1], sin[:, row : row + 1])
        _, k = apply_rotary_pos_emb(k, k, cos, sin)
        put_out = torch.zeros_like(h)
        weights = torch.zeros(n_heads, len(clean.mask), dtype=h.dtype)
        own = torch.zeros(n_heads, width, dtype=h.dtype)
        for head in range(n_heads):
            seen = clean.seen_by(number, row)
            if mode == "mask":
                seen = [p for p in seen if p not in cut or p == row]
            scores = torch.stack([q[0, head, 0] @ k[0, head // group, p] for p in seen]) * scaling
            matrix = clean.output_matrix(number, head)
            for p, weight in zip(seen, torch.softmax(scores, 0), strict=True):
                weights[head, p] = weight
                value, bias = clean.value_at(number, head, p, normed_all[p])
                if p == row:
                    own[head] = value
                if p not in cut or p == row:
                    put_out = put_out + weight * (matrix @ (value + bias))
                elif mode == "mean":
                    mean = mean_value(clean, number, head, averaged)
                    put_out = put_out + weight * (matrix @ mean)
        mid = h + (layer.post_attention_layernorm(put_out) if clean.is_gemma else put_out)
        ffn = clean.ffn_of(number, mid)
        h = mid + ffn + clean.added(number, row)
        played.append((weights * clean.scale(put_out), own, ffn))
    return played, h


def _affine(module, x):
    return x @ module.weight.T + (0.0 if module.bias is None else module.bias)


def _normed(module, gamma, x):
    """RMS norm over the last axis, in float32 as the library does."""
    single = x.float()
    epsilon = getattr(module, "variance_epsilon", None) or module.eps
    scale = torch.rsqrt((single**2).mean(-1, keepdim=True) + epsilon)
    return gamma * (single * scale).to(x.dtype)


@kept
def mean_value(clean: Clean, layer, head, rows):
    """The mean of value and bias over some rows."""
    values = [sum(clean.value(layer, head, p)) for p in rows]
    return torch.stack(values).mean(0)


@torch.no_grad()
def edge_effect(
    clean: Clean, row, target, cut, gauge="centered", foil=None, mode="zero", averaged=()
):
    """Total effect of a cut and its five parts, each by its formula in METHODS.md 3.1."""
    g = clean.gauge_row(target, gauge, foil)
    first, h = play_row(clean, row)
    second, h2 = play_row(clean, row, cut, mode, averaged)
    u, u2 = clean.readout(h, g), clean.readout(h2, g)
    parts = dict.fromkeys(("direct", "value_bias", "ffn", "attention"), 0.0)
    for layer, ((a, own, f), (a2, own2, f2)) in enumerate(zip(first, second, strict=True)):
        parts["ffn"] = parts["ffn"] + u @ (f - f2)
        for head in range(clean.text.num_attention_heads):
            back = clean.head_matrix(layer, head).T @ u
            mean = mean_value(clean, layer, head, averaged) if mode == "mean" else None
            for p in range(row + 1):
                value, bias = clean.value(layer, head, p)
                if mode == "mask":
                    bias = torch.zeros_like(bias)
                if p == row:
                    before = a[head, p] * (back @ (own[head] + bias))
                    after = a2[head, p] * (back @ (own2[head] + bias))
                    parts["attention"] = parts["attention"] + before - after
                elif p in cut and mode == "mean":
                    parts["direct"] = parts["direct"] + a[head, p] * (back @ (value + bias - mean))
                    change = (a[head, p] - a2[head, p]) * (back @ mean)
                    parts["attention"] = parts["attention"] + change
                elif p in cut:
                    parts["direct"] = parts["direct"] + a[head, p] * (back @ value)
                    parts["value_bias"] = parts["value_bias"] + a[head, p] * (back @ bias)
                else:
                    change = (a[head, p] - a2[head, p]) * (back @ (value + bias))
                    parts["attention"] = parts["attention"] + change
    parts["norm"] = (u - u2) @ h2
    return u @ h - u2 @ h2, parts


@torch.no_grad()
def node_effect(clean: Clean, reference: Clean, row, target, sources, gauge="centered", foil=None):
    """Total effect of a reference and its six parts, each by its formula in METHODS.md 3.2."""
    g = clean.gauge_row(target, gauge, foil)
    all_rows = range(row)
    first, h = play_row(clean, row)
    step1, h1 = play_row(clean, row, other=reference, swapped=sources)
    _, h2 = play_row(clean, row, other=reference, swapped=all_rows)
    u, u1, u2 = (clean.readout(x, g) for x in (h, h1, h2))
    parts = dict.fromkeys(("direct", "routing", "self", "ffn"), 0.0)
    for layer, ((a, own, f), (a1, own1, f1)) in enumerate(zip(first, step1, strict=True)):
        parts["ffn"] = parts["ffn"] + u @ (f - f1)
        for head in range(clean.text.num_attention_heads):
            back = clean.head_matrix(layer, head).T @ u
            for p in range(row):
                before, now = clean.value(layer, head, p)[0], clean.value(layer, head, p)[0]
                if p in sources:
                    now = reference.value(layer, head, p)[0]
                parts["direct"] = parts["direct"] + a[head, p] * (back @ (before - now))
                parts["routing"] = parts["routing"] + (a[head, p] - a1[head, p]) * (back @ now)
            change = (a[head, row] - a1[head, row]) * (back @ own1[head])
            parts["routing"] = parts["routing"] + change
            parts["self"] = parts["self"] + a[head, row] * (back @ (own[head] - own1[head]))
    parts["norm"] = (u - u1) @ h1
    parts["mediated"] = u1 @ h1 - u2 @ h2
    return u @ h - u2 @ h2, parts


@torch.no_grad()
def value_at(clean: Clean, reference: Clean, row, sources, g, is_strict, is_live, u=None):
    """v(a', a, b) of METHODS.md 3.3 as a dict over triples of 0 and 1.

    The frozen norm is the clean run's, or `u`.
    """
    rest = [p for p in range(row) if p not in sources]
    run = {0: reference, 1: clean}
    played = {}
    for a in (0, 1):
        for b in (0, 1):
            swapped = [*(sources if a == 0 else []), *(rest if b == 0 else [])]
            played[a, b] = play_row(clean, row, other=reference, swapped=swapped)

    def write(pattern, values):
        total = 0.0
        for layer, (weights, _, _) in enumerate(played[pattern][0]):
            for head in range(clean.text.num_attention_heads):
                for p in sources:
                    total = total + weights[head, p] * run[values].written(layer, head, p)
        return total

    u = clean.readout(played[1, 1][1], g) if u is None else u
    by_triple = {}
    for q in (0, 1):
        for a in (0, 1):
            for b in (0, 1):
                state = played[a, b][1] - write((a, b), a)
                state = state + write((a, b) if is_strict else (q, b), q)
                by_triple[q, a, b] = (clean.readout(state, g) if is_live else u) @ state
    return by_triple


def shapley_values(values):
    """Mean over the six orders of what each player adds."""
    shares = [0.0, 0.0, 0.0]
    for order in permutations(range(3)):
        at = [0, 0, 0]
        for player in order:
            before = values[tuple(at)]
            at[player] = 1
            shares[player] += (values[tuple(at)] - before) / 6
    return shares


def _attention(clean: Clean, layer):
    return clean.kept[f"layers.{layer}.self_attn"][2][1][0]


def _shares(clean: Clean, layer, row):
    """Attention weights of a row, times the scale of a norm behind attention: (head, source)."""
    return _attention(clean, layer)[:, row] * clean.scale_at(layer, row)


@torch.no_grad()
def bottleneck_map(clean: Clean, row, g, thinking):
    """The bottleneck of METHODS.md 4, every written vector formed."""
    u = clean.readout(clean.final(row), g)
    saliency = torch.zeros(len(clean.mask), dtype=u.dtype)
    for layer in range(clean.text.num_hidden_layers):
        weights, shares = _attention(clean, layer), _shares(clean, layer, row)
        for head in range(clean.text.num_attention_heads):
            for p in range(len(clean.mask)):
                share = sum(shares[head, t] * weights[head, t, p] for t in thinking if t < row)
                value, _ = clean.value(layer, head, p)
                saliency[p] += share * (u @ (clean.head_matrix(layer, head) @ value))
    return saliency


@torch.no_grad()
def two_hop_map(clean: Clean, row, g, thinking, visual):
    """The two-hop map of METHODS.md 4: each pair of layers, heads and thinking token in turn."""
    u = clean.readout(clean.final(row), g)
    n_layers, n_heads = clean.text.num_hidden_layers, clean.text.num_attention_heads
    saliency = torch.zeros(len(clean.mask), dtype=u.dtype)
    for late in range(n_layers):
        gamma = clean.gamma(clean.layers[late].input_layernorm)
        for t in (one for one in thinking if one < row):
            stream = clean.kept[f"layers.{late}.input_layernorm"][0][0][0, t]
            frozen = gamma / torch.sqrt((stream**2).mean() + clean.text.rms_norm_eps)
            for p in visual:
                for early in range(late):
                    written = sum(
                        _shares(clean, early, t)[j, p] * clean.written(early, j, p)
                        for j in range(n_heads)
                    )
                    for j in range(n_heads):
                        value, _ = clean.value_of(late, j, frozen * written)
                        read = u @ (clean.head_matrix(late, j) @ value)
                        saliency[p] += _shares(clean, late, row)[j, t] * read
    return saliency


@torch.no_grad()
def released_map(clean: Clean, rows, targets, thinking, visual):
    """The released code's holistic map, from the description in papers/NOTES.md 2.

    Its answer rows predict the answer tokens; its thinking rows predict the thinking tokens, while
    the answer looks at the tokens themselves; the value bias is in; norm(w)·‖w‖ over the length of
    the state before the final norm; the whole vocabulary; ReLU after the sum over answer tokens.
    """
    total = torch.zeros(len(visual), dtype=clean.embeddings.dtype)
    for row, target in zip(rows, targets, strict=True):
        written = torch.zeros(len(visual), clean.text.hidden_size, dtype=total.dtype)
        for layer in range(clean.text.num_hidden_layers):
            weights = _attention(clean, layer)
            for head in range(clean.text.num_attention_heads):
                shares = _shares(clean, layer, row)[head, thinking]
                hops = shares @ weights[head][[t - 1 for t in thinking]]
                for k, p in enumerate(visual):
                    value = sum(clean.value(layer, head, p))
                    written[k] += hops[p] * (clean.head_matrix(layer, head) @ value)
        normed = clean.lm.norm(written) * written.norm(dim=-1, keepdim=True)
        logits = clean.model.lm_head(normed / clean.final(row).norm())
        total += logits[:, target]
    return total.clamp(min=0)
