"""Extraction alone: folded, and as the release of Saliency-R1 does it."""

from analyses.benchmarks.models import SHAPES, Setting
from analyses.benchmarks.timing import seconds


def release_arithmetic(setting: Setting, n_tokens=1024, n_visual=729, n_answer=8) -> dict:
    """Extraction alone for one layer and the head, folded and as Saliency-R1's release does it.

    The release gets all attention weights by attending to an identity matrix, projects the weighted
    values of every visual token through W_o, and sends each result through the whole output
    embedding.
    """
    import torch

    from interp.algebra.ledger import slot_scores

    heads, kv_heads, width, _, vocabulary, _, _ = SHAPES[setting.shape]
    d_head, dtype, device = width // heads, getattr(torch, setting.dtype), setting.device
    torch.manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=dtype, device=device)

    query, key = random(1, heads, n_tokens, d_head), random(1, kv_heads, n_tokens, d_head)
    values, w_o = random(1, kv_heads, n_tokens, d_head), random(width, width) / width**0.5
    head_rows = random(vocabulary, width) / width**0.5
    targets = torch.arange(n_answer, device=device)
    rows = torch.arange(n_tokens - n_answer, n_tokens, device=device)
    visual = slice(1, 1 + n_visual)
    group = heads // kv_heads
    maps = {}

    def release():
        eye = torch.eye(n_tokens, dtype=dtype, device=device).expand(1, heads, -1, -1).contiguous()
        keys = key.repeat_interleave(group, 1)
        weights = torch.nn.functional.scaled_dot_product_attention(query, keys, eye, is_causal=True)
        weighted = torch.einsum(
            "htv,hvd->tvhd",
            weights[0][:, rows, visual],
            values[0].repeat_interleave(group, 0)[:, visual],
        )
        written = weighted.reshape(n_answer, n_visual, width) @ w_o.T
        maps["release"] = torch.stack(
            [(one @ head_rows.T)[:, target] for one, target in zip(written, targets, strict=True)]
        )

    def folded():
        back = (head_rows[targets] @ w_o).reshape(n_answer, heads, d_head)
        scores = query[0][:, rows].reshape(kv_heads, group * n_answer, d_head) @ key[0].mT
        scores = scores.reshape(heads, n_answer, n_tokens) * d_head**-0.5
        later = torch.arange(n_tokens, device=device) > rows.reshape(-1, 1)
        weights = scores.masked_fill(later, -torch.inf).softmax(dim=-1)
        direct = weights.permute(1, 0, 2) * slot_scores(back, values)
        maps["folded"] = direct.sum(dim=1)[:, visual]

    release(), folded()
    slow = sorted(seconds(release, device) for _ in range(3))[1]
    fast = sorted(seconds(folded, device) for _ in range(21))[10]
    error = (maps["release"] - maps["folded"]).abs().max() / maps["release"].abs().max()
    return {
        "speedup": slow / fast,
        "folded_seconds": fast,
        "release_seconds": slow,
        "largest_relative_difference": float(error),
    }
