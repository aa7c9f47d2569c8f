"""Source sets: which rows of a sequence are cut or replaced together."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from interp.extract.question import Query, whole_numbers
from interp.vocabulary import SINKLESS, SOURCE_SETS


def source_sets(
    query: Query,
    sources: Iterable[str] | Mapping | None,
    is_sink: Bool[Tensor, " token"] | None,
) -> tuple[tuple[str, ...], Bool[Tensor, "source_set token"]]:
    """Names and members of source sets, by name (see `named_sets`) or as lists of rows.

    Without `sources`, all that the sample has; one without its sinks only where it has any. There
    are none of those where sinks are not known.

    Raises:
        ValueError: an unknown name, a set that this sample cannot have, unknown or duplicate rows.
    """
    sets = named_sets(query, is_sink)
    if sources is None:
        sources = _usual_sets(sets)
    if not isinstance(sources, Mapping):
        # Looked through twice; one name is a name, not its letters.
        sources = (sources,) if isinstance(sources, str) else tuple(sources)
    if isinstance(sources, Mapping):
        members = {name: _row_mask(query, name, rows) for name, rows in sources.items()}
    else:
        for name in sources:
            if name not in sets or not sets[name].any():
                possible = sorted(k for k in sets if sets[k].any())
                has = f"source sets of {possible}" if possible else "rows"
                why = "" if query.is_visual.any() else ", of text alone"
                raise ValueError(
                    f"expected {has} for this sample{why}, got {name!r}; pass sets of your own as "
                    "sources={name: [rows]}, or source=[rows] where there is one"
                )
        members = {name: sets[name] for name in sources}
    if not members:
        raise ValueError(
            "expected at least one source set, got none: of these tokens nothing is known but "
            "their rows; pass sources={name: [rows]}"
        )
    stacked = torch.from_numpy(np.stack(list(members.values())))
    return tuple(members), stacked.to(query.rows.device)


def named_sets(query: Query, is_sink: Bool[Tensor, " token"] | None) -> dict[str, np.ndarray]:
    """Boolean membership by name; evidence and background only where there are boxes.

    Image and evidence also without their sinks, as "image-nosink" and "evidence-nosink"; of several
    images each by its number, "image 0" being the first.
    """
    role = np.array(query.tokens.role)
    sets = {name: role == name for name in ("image", "earlier", "question", "thinking")}
    if query.has_boxes and sets["image"].any():
        sets["evidence"] = query.tokens.is_evidence
        sets["background"] = sets["image"] & ~sets["evidence"]
    images = np.unique(query.tokens.image[query.tokens.is_visual])
    if len(images) > 1:
        sets |= {f"image {number}": query.tokens.image == number for number in images}
    if is_sink is None:
        return sets
    is_other = ~is_sink.cpu().numpy()
    visual = [name for name in ("image", "evidence") if name in sets]
    return sets | {name + SINKLESS: sets[name] & is_other for name in visual}


def _usual_sets(sets: Mapping[str, np.ndarray]) -> list[str]:
    """Sets with members, each of several images too; without sinks where that differs."""
    names = [name for name in SOURCE_SETS if name in sets and sets[name].any()]
    names += [name for name in sets if name.startswith("image ")]
    without = [name + SINKLESS for name in names if name + SINKLESS in sets]
    differing = [n for n in without if (sets[n] != sets[n.removesuffix(SINKLESS)]).any()]
    return names + [name for name in differing if sets[name].any()]


def visual_sets(query: Query, is_sink: Bool[Tensor, " token"]) -> list[str]:
    """Image, and evidence where there are boxes; either without its sinks where it has any."""
    sets = named_sets(query, is_sink)
    return [name for name in _usual_sets(sets) if name.startswith(("image", "evidence"))]


def _row_mask(query: Query, name: str, rows) -> np.ndarray:
    rows = whole_numbers(rows, f"rows of source set {name!r}").tolist()
    mask = np.zeros(len(query.tokens.ids), dtype=bool)
    unknown = [r for r in rows if not 0 <= r < len(mask) or query.tokens.role[r] == "padding"]
    if unknown or len(set(rows)) != len(rows) or not rows:
        raise ValueError(
            f"expected distinct rows in 0..{len(mask) - 1} outside the padding for source set "
            f"{name!r}, got {unknown or rows}"
        )
    mask[rows] = True
    return mask
