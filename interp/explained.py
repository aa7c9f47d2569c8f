"""One line to an answer: what a model says about an image, and what of the image makes it say so.

ex = interp.explain(vlm, "photo.jpg", "What is on the table?")
ex                      # the text, and how much of its answer's logit the image carries
ex.show()               # in a notebook: a page to click on, every token with its map and its paths
ex.save("answer.html")  # the same page as one file
ex.figure()             # the picture, the map and the paths as a figure
ex.table()              # every token of the text
ex.top_heads(), ex.top_sources()
ex.of("table").paths    # the same for another token, a phrase or an index
ex.of(image=1).show()   # the map over the second of several images
"""

import logging
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from interp import extract
from interp.data.images import Given, open_image
from interp.data.sample import Sample
from interp.extract.question import check_pair
from interp.gathering import Gathered, everything
from interp.inputs.completions import Completion
from interp.inputs.prompts import given_text
from interp.maps.grid import token_map
from interp.maps.map import Map, whose_text
from interp.maps.named import Wanted, target_indices
from interp.model.vlm import VLM
from interp.pages.contents import Answer, named
from interp.pages.page import contents, page
from interp.pages.path_graph import PathGraph, path_graph
from interp.store.opening import to_netcdf
from interp.store.spreadsheets import inert

LONGEST_STRIP = 48  # tokens that are legible side by side
log = logging.getLogger("interp.explain")


def explain(
    vlm: VLM,
    image: Given | Sequence[Given] | None,
    question: str,
    *,
    earlier: Sequence[tuple[str, str]] = (),
    completion: Completion | str | None = None,
    answer: str | None = None,
    boxes=None,
    target: Wanted | None = None,
    max_new_tokens: int = 256,
) -> "Explained":
    """The model's text about an image, with its ledger and its edge effects.

    Args:
        vlm: as `interp.load_model` or `interp.wrap` gives it.
        image: a path, a file's content, an array or a PIL image; a list of several; or None for a
            question about text alone.
        question: in plain words.
        earlier: earlier turns, (question, reply) each; images stand in the first turn.
        completion: the text to explain, as `vlm.answer` gives it or as a string; the model's own
            greedy text by default.
        answer: the right answer, where somebody knows it.
        boxes: evidence, [(x0, y0, x1, y1), …] in 0..1, where somebody knows it.
        target: the tokens that `map`, `paths` and the like are about, summed: an index or several,
            a role (its first token), a token or a phrase; the whole answer by default.
        max_new_tokens: limit of the model's own text.

    Raises:
        ValueError: an image, question or text that cannot be read, a text without an answer, or no
            such target.
    """
    sample = Sample(image=image, question=question, answer=answer, boxes=boxes, earlier=earlier)
    check_pair(vlm, sample)
    if completion is None:
        completion = vlm.answers([sample], max_new_tokens=max_new_tokens)[0]
    completion = given_text(vlm.processor.tokenizer, completion)
    if not completion.is_complete:
        log.warning("the text was cut off after %d tokens", len(completion.token_ids))
    ledger = extract.ledger(vlm, sample, completion=completion, detail="tokens")
    effects = extract.effects(vlm, sample, completion=completion)
    is_answer = (ledger["target_role"] == "answer").values
    explained = Explained(vlm, sample, completion, ledger, effects, np.flatnonzero(is_answer))
    return explained if target is None else explained.of(target)


@dataclass(frozen=True, repr=False)
class Explained:
    """A model's text about an image, and what of the image makes the model write it."""

    vlm: VLM
    sample: Sample
    completion: Completion
    ledger: xr.Dataset
    """With detail "tokens"; see `interp.extract.ledger`."""
    effects: xr.Dataset
    """Edge effects of all source sets; see `interp.extract.effects`."""
    target: Wanted
    image: int = 0
    """Which of several images the maps are over."""

    @property
    def text(self) -> str:
        """The text that is explained."""
        return self.completion.text

    @property
    def tokens(self) -> list[str]:
        """Its tokens of thinking and answer, which are the targets."""
        return self.ledger["target_token"].values.tolist()

    @property
    def indices(self) -> list[int]:
        """Which of the tokens `map`, `paths` and the like are about."""
        return target_indices(self.ledger, self.target)

    def of(self, target: Wanted | None = None, *, image: int | None = None) -> "Explained":
        """The same text, with another token, phrase or index in question, or another image.

        Raises:
            ValueError: no such target or image.
        """
        target = self.target if target is None else target
        image = self.image if image is None else image
        target_indices(self.ledger, target)
        if image not in range(max(1, len(self.sample.images))):
            raise ValueError(
                f"expected an image in 0..{len(self.sample.images) - 1}, got {image!r}"
            )
        return replace(self, target=target, image=image)

    @cached_property
    def map(self) -> Map:
        """Effect of every patch on the target, (row, column), signed, integrated first order.

        It sums to what the target loses when its row cannot read the image (METHODS.md 3.4).
        """
        found = extract.maps(
            self.vlm,
            self.sample,
            kinds=("effect",),
            only=self.indices,
            completion=self.completion,
        )
        return found.vlm.map(range(len(self.indices)), "effect", image=self.image)

    @property
    def direct_map(self) -> Map:
        """Direct contribution of every patch to the target, Eq. 1 of Saliency-R1."""
        return token_map(self.ledger, self.target, image=self.image)

    @property
    def paths(self) -> pd.DataFrame:
        """Logits that the target loses without each source set: in all, and along each path."""
        chosen = self.effects.isel(target=self.indices).sum("target", skipna=False)
        table = chosen["effect"].to_pandas()
        return table.assign(total=chosen["total"].to_pandas())

    def table(self) -> pd.DataFrame:
        """A row per token: its probability, its logit, and what the images give it.

        Without an image it is what the question gives.
        """
        is_source = (self.ledger["source_role"] == self.source_set).values
        effects = self.effects.sel(source_set=self.source_set)
        return pd.DataFrame(
            {
                "token": self.tokens,
                "role": self.ledger["target_role"].values,
                "probability": np.exp(self.ledger["log_probability"].values),
                "logit": self.ledger["logit"].values,
                f"{self.source_set} directly": self.ledger["direct"].values[:, is_source].sum(1),
                f"{self.source_set} in all": effects["total"].values,
            }
        )

    def top_heads(self, n: int = 10) -> pd.DataFrame:
        """The heads that write most into the target's logit: in all, and from the images."""
        rows = self.ledger["target_position"].values[self.indices].tolist()
        full = extract.ledger(
            self.vlm, self.sample, completion=self.completion, positions=rows
        ).sum("target")
        is_source = (self.ledger["source_role"] == self.source_set).values
        table = pd.DataFrame(
            {
                "written": full["direct"].sum("source").to_series(),
                f"from the {self.source_set}": full["direct"]
                .isel(source=is_source)
                .sum("source")
                .to_series(),
            }
        )
        return _largest(table, "written", n).reset_index()

    def top_sources(self, n: int = 10) -> pd.DataFrame:
        """The tokens that give most to the target directly (Eq. 1), with their place.

        Several images, and several views of one, are told apart by columns of their own.
        """
        direct = self.ledger["direct"].isel(target=self.indices).sum("target")
        names = {"source_token": "token", "source_role": "role"}
        names |= {one: one for one in ("image", "view") if int(self.ledger[one].max()) > 0}
        names |= {"row": "row", "column": "column"}
        table = pd.DataFrame({title: self.ledger[name].values for name, title in names.items()})
        return _largest(table.assign(direct=direct.values), "direct", n)

    def datasets(self, **options) -> dict[str, xr.Dataset]:
        """Everything that a page shows, as labelled datasets; options as for `everything`."""
        return self._gathered(**options).datasets

    def _gathered(self, **options) -> Gathered:
        return everything(self.vlm, self.sample, completion=self.completion, **options)

    def as_answer(self, **options) -> Answer:
        """Everything that a page shows, for `interp.page`; options as for `everything`."""
        gathered = self._gathered(**options)
        return Answer(
            named(gathered.datasets),
            sample=self.sample,
            chosen=self.indices,
            image=self.image,
            left_out=gathered.left_out,
        )

    def show(self, **options):
        """The page to click on, for a notebook; needs anywidget.

        Args:
            options: of `interp.gathering.everything`: kinds, partner, n_heads, pixels, graph.

        Raises:
            ValueError: as the calls that it stands on.
        """
        from interp.pages.widget import widget

        return widget(contents(self.as_answer(**options)))

    def graph(self, partner=None) -> PathGraph:
        """The graph of paths: tokens as nodes, exact interventions as arrows; see `PathGraph`.

        Args:
            partner: as for `interp.gathering.everything`, for the arrow through the words.
        """
        found = self.datasets(partner=partner, kinds=("direct",), n_heads=1)
        return path_graph(found["edges"], found.get("node_effects"), found.get("words"))

    def figure(self) -> Figure:
        """The picture, the map over its patches, the paths and the text, in one figure."""
        import matplotlib.pyplot as plt

        from interp import plots

        with plt.rc_context():  # the caller's own figures keep their style
            plots.use_style()
            return self._figure()

    def _figure(self) -> Figure:
        import matplotlib.pyplot as plt

        from interp import plots

        figure = plt.figure(figsize=(10, 4.2), layout="constrained")
        if self.sample.images:
            axes = figure.subplot_mosaic("abc;ddd", height_ratios=(3, 1), width_ratios=(1, 1, 0.8))
            self._draw_map(axes, figure)
            self._draw_strip(axes["d"])
        else:
            axes = {"c": figure.add_subplot()}
        plots.paths(self.paths.loc[self.source_set], axes["c"])
        axes["c"].set_xlabel(
            f"lost when its row cannot\nread the {self.source_set}\n"
            f"[logit, {self.ledger.attrs['gauge']}]"
        )
        question = textwrap.fill(self.sample.question, 90)
        answer = textwrap.fill(self.completion.answer, 90, max_lines=3)
        figure.suptitle(f"{question}\n→ {answer}   ({self.source})")
        return figure

    def _draw_map(self, axes: dict, figure: Figure) -> None:
        """The picture, and the map beside it with its colour bar."""
        from interp import plots

        image, saliency = open_image(self.sample.images[self.image]), self.map
        boxes = np.zeros((0, 4)) if self.sample.boxes is None else self.sample.boxes
        plots.scene(image, boxes, axes["a"])
        if len(self.sample.images) > 1:
            axes["a"].set_title(f"image {self.image} of {len(self.sample.images)}, counted from 0")
        aspect = image.height / image.width
        plots.signed_map(saliency, boxes, axes["b"], limit=saliency.limit, aspect=aspect)
        pictures = [axes["a"], axes["b"]]
        bar = figure.colorbar(
            axes["b"].images[0],
            ax=pictures,
            location="bottom",
            shrink=0.5,
            anchor=(1, 0),
            aspect=30,
        )
        name = textwrap.shorten(self.named, 40)
        bar.set_label(f"effect of each patch on {name!r} [logit, {self.ledger.attrs['gauge']}]")

    def _draw_strip(self, ax) -> None:
        """The text's last tokens, the target among them."""
        stop = max(LONGEST_STRIP, self.indices[-1] + 1)
        shown = slice(stop - LONGEST_STRIP, stop)
        self.ledger.isel(target=shown).vlm.strip(ax=ax)
        is_whole = len(self.tokens) <= LONGEST_STRIP
        which = "each token" if is_whole else f"tokens {shown.start} to {shown.stop - 1}"
        whose = "the image gives" if len(self.sample.images) == 1 else "all images give"
        ax.set_title(f"what {whose} directly (Eq. 1) to {which}")

    def save(self, path: str | Path, **options) -> Path:
        """Writes the page, to a path that ends with .html; otherwise a folder of the numbers.

        The folder has ledger, effects and map as NetCDF, the tables as CSV and the figure as PNG.
        Text alone has no map.

        Args:
            path: a file, which is replaced if it is there, or a folder to make.
            options: of the page, as for `show`.

        Raises:
            ValueError: the folder is there already; or options for a folder.
        """
        if Path(path).suffix.lower() in (".html", ".htm"):
            return page(self.as_answer(**options), path)
        if options:
            raise ValueError(
                f"expected options with a path that ends with .html, got {str(path)!r} with "
                f"{sorted(options)}"
            )
        return self._save_numbers(Path(path))

    def _save_numbers(self, folder: Path) -> Path:
        import matplotlib.pyplot as plt

        if folder.exists():
            raise ValueError(f"expected a folder to make, got {str(folder)!r}, which is there")
        folder.mkdir(parents=True)
        arrays = {"ledger": self.ledger, "effects": self.effects}
        if self.sample.images:
            arrays["map"] = self.map.to_dataset(name="map")
        for name, dataset in arrays.items():
            to_netcdf(dataset, folder / f"{name}.nc")
        for name, table in (("tokens", self.table()), ("paths", self.paths.reset_index())):
            inert(table).to_csv(folder / f"{name}.csv", index=False)
        figure = self.figure()
        figure.savefig(folder / "explained.png")
        plt.close(figure)
        return folder

    @property
    def source(self) -> str:
        """Whose text it is, in words, and whether it was cut off."""
        return whose_text(self.ledger.attrs)

    @property
    def source_set(self) -> str:
        """Source set of `table`, `show` and the sentence: images, or the question of text alone."""
        return "image" if self.sample.images else "question"

    @property
    def named(self) -> str:
        """The target's tokens as text."""
        return "".join(self.tokens[k] for k in self.indices).strip()

    def __repr__(self) -> str:
        lost = self.paths.loc[self.source_set]
        total, direct, ffn, norm = (lost[n] for n in ("total", "direct", "ffn", "norm"))
        rest = total - direct - ffn - norm
        n, gauge = len(self.indices), self.ledger.attrs["gauge"]
        return (
            f"{self.sample.question}\n→ {self.text!r} ({self.source})\n"
            f"When its own row cannot read the {self.source_set}, {self.named!r} loses "
            f"{total:.2f} logits ({gauge}{f', sum over {n} tokens' if n > 1 else ''}): "
            f"{direct:.2f} directly (Eq. 1), "
            f"{ffn:.2f} through FFNs, {norm:.2f} by the final norm, {rest:.2f} otherwise."
        )


def _largest(table: pd.DataFrame, column: str, n: int) -> pd.DataFrame:
    """The rows with the largest absolute values in a column."""
    order = np.argsort(-table[column].abs().to_numpy(), kind="stable")
    return table.iloc[order[:n]]
