"""`ds.vlm`: maps and pictures of the datasets of `interp.extract`, for notebooks.

    ds = interp.extract.maps(vlm, sample)
    ds.vlm.map("answer", "bottleneck")                # (row, column), signed
    ds.vlm.plot("answer")                             # over the sample's image, with its boxes
    ds.vlm.strip()                                    # what the image gives to every token

It reads what is in the dataset and computes no model; `import interp` registers it. What draws is
imported when something is drawn.
"""

import numpy as np
import xarray as xr

from interp.data.images import open_image
from interp.data.sample import at_hand
from interp.maps.grid import holistic, one_map, token_map
from interp.maps.map import Map, whose_text
from interp.maps.named import Wanted

TOLD = ("gauge", "text_source", "text_is_complete")
"""What a map says of the dataset that it is from."""


@xr.register_dataset_accessor("vlm")
class Pictures:
    """Maps out of a ledger or a dataset of maps."""

    def __init__(self, dataset: xr.Dataset):
        self._dataset = dataset

    @property
    def kinds(self) -> list[str]:
        """Kinds of map that are in the dataset."""
        if "map" in self._dataset:
            return self._dataset["kind"].values.tolist()
        if "direct" in self._dataset and "source" in self._dataset["direct"].dims:
            return ["direct"]
        return []

    def map(
        self, target: Wanted = "answer", kind: str | None = None, *, image: int | None = None
    ) -> Map:
        """One map over (row, column), signed; with kind "holistic" all targets of a role in one.

        Args:
            target: its index, a role (its first target; all of them if holistic), its token, or a
                phrase or several indices, whose maps are added.
            kind: one of `kinds`, the first by default, or "holistic".
            image: which of several images, counted from 0.

        Raises:
            ValueError: no map in the dataset, or not this one, naming the call that makes it.
        """
        if not self.kinds:
            raise ValueError(
                f"expected a dataset with maps, got {sorted(map(str, self._dataset.data_vars))}; "
                'interp.extract.maps(vlm, sample) makes one, or ledger(..., detail="tokens")'
            )
        found = self._map(target, kind, image)
        told = {name: self._dataset.attrs[name] for name in TOLD if name in self._dataset.attrs}
        found.attrs |= told
        return found

    def _map(self, target: Wanted, kind: str | None, image: int | None) -> Map:
        if kind == "holistic":
            return self._holistic(target, image)
        kind = kind or self.kinds[0]
        if "map" in self._dataset:
            return one_map(self._dataset, target, kind, image=image)
        if kind != "direct":
            raise ValueError(
                f"expected the kind 'direct' of a ledger, got {kind!r}; "
                f"interp.extract.maps(..., kinds=({kind!r},)) makes it"
            )
        return token_map(self._dataset, target, image=image)

    def _holistic(self, role: Wanted, image: int | None) -> Map:
        if "map" not in self._dataset or role not in ("answer", "thinking"):
            raise ValueError(
                "expected a dataset of interp.extract.maps and the role 'answer' or 'thinking' for "
                f"the kind 'holistic', got the kinds {self.kinds} and the target {role!r}"
            )
        kind = "bottleneck" if "bottleneck" in self.kinds else self.kinds[0]
        return holistic(self._dataset, kind, role, image=image)

    def plot(
        self,
        target: Wanted = "answer",
        kind: str | None = None,
        *,
        image=None,
        boxes=None,
        ax=None,
        limit: float = 0.0,
    ):
        """A map as a picture: its positive part over the image, or signed without one.

        Args:
            target, kind: as for `map`.
            image: as a `Sample` has it, drawn in grey below, upright; by default the explained
                sample's, for as long as somebody holds the sample; False for none. A number is
                which of several images.
            boxes: (x0, y0, x1, y1) in 0..1; by default the explained sample's, likewise.
            ax: where to draw; a new figure by default.
            limit: end of the colour scale, to compare maps; 0 for the map's own largest value.

        Raises:
            ValueError: as `map`; a target that has no map of this kind; or an unreadable image.
        """
        import matplotlib.pyplot as plt

        from interp import plots

        number = image if isinstance(image, int) and not isinstance(image, bool) else None
        saliency = self.map(target, kind, image=number)
        if bool(saliency.isnull().all()):
            raise ValueError(
                f"expected a target that has such a map, got {target!r}, for which it is not "
                "defined (see is_defined)"
            )
        sample = at_hand(self._dataset.attrs.get("data_hash", ""))
        if sample is not None:
            image = sample.image if image is None else image
            image = sample.images[number] if number is not None else image
            boxes = sample.boxes if boxes is None else boxes
        is_new = ax is None
        ax = plt.subplots(figsize=(3.8, 3.2), layout="constrained")[1] if is_new else ax
        boxes = np.zeros((0, 4)) if boxes is None else np.asarray(boxes, dtype=float).reshape(-1, 4)
        top = limit or saliency.limit
        if image is None or isinstance(image, int):
            aspect = saliency.sizes["row"] / saliency.sizes["column"]
            plots.signed_map(saliency, boxes, ax, limit=top, aspect=aspect)
        else:
            plots.overlay(open_image(image), saliency, boxes, ax, limit=limit)
        if is_new:
            is_over = len(ax.images) > 1
            self._tell(ax, ax.images[-1], ", where positive" if is_over else "")
        return ax

    def strip(self, kind: str | None = None, *, ax=None, limit: float = 0.0):
        """Thinking and answer tokens, coloured by what all images give to each, in logits.

        Args:
            kind, ax, limit: as for `plot`.

        Raises:
            ValueError: as `map`.
        """
        import matplotlib.pyplot as plt

        from interp import plots

        ds = self._dataset
        several = int(ds["image"].max()) if "image" in ds.coords else 0
        self.map(0, kind, image=several if several > 0 else None)  # says what is missing
        kind = kind or self.kinds[0]
        values = ds["map"].sel(kind=kind) if "map" in ds else ds["direct"]
        values = values.isel(source=(ds["image"] >= 0).values)
        values = values.sum([dim for dim in values.dims if dim != "target"], skipna=False)
        if ax is not None:
            return plots.token_strip(values, ax, limit=limit)
        width = max(3.0, 0.28 * values.sizes["target"])
        ax = plt.subplots(figsize=(width, 1.6), layout="constrained")[1]
        plots.token_strip(values, ax, limit=limit)
        self._tell(ax, ax.images[-1])
        return ax

    def _tell(self, ax, drawn, label: str = "") -> None:
        """Colour bar with unit and gauge, and whose text is explained."""
        gauge = self._dataset.attrs.get("gauge")
        unit = f"[logit, {gauge}]" if gauge else "[logit]"
        ax.figure.colorbar(drawn, ax=ax, label=f"{unit}{label}", shrink=0.8)
        source = whose_text(self._dataset.attrs)
        if source:
            ax.set_title(source, fontsize="small")
