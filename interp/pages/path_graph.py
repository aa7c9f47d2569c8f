"""A graph of paths: tokens as nodes, exact interventions as arrows, pruned by share."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from interp.pages.packing import exact
from interp.vocabulary import EDGE_PATHS

OWN_ROW, OTHERS, WORDS = "own row", "other positions", "words"
"""Kinds of intervention: METHODS.md 3.1; 3.2, mediated alone; 3.7, an Owen value of player 4."""
INTERVENTION = ("source", "target", "kind")


@dataclass(frozen=True)
class PathGraph:
    """Which tokens an answer's tokens depend on, along which paths, in logits.

    Arrows of an edge's paths say what the row at the head loses when it cannot read the tail;
    through other positions, when these alone hold what another image would have put there; through
    the words, an average over orders (the Owen value of the words). Each is exact; arrows into one
    node need not sum to the effect of all of them together.
    """

    nodes: pd.DataFrame
    """By name: text, role, and whether arrows end there. A token's name is its position in the
    sequence, that of a group of tokens is its role or source set."""
    arrows: pd.DataFrame
    """A row for each: the nodes at its tail and head ("source", "target"), "path", and "logit",
    which is lost at its head along the path."""

    def pruned(self, share: float = 0.9) -> "PathGraph":
        """The largest arrows into each node, as many as make up a share of Σ|logit| there.

        All paths of a row that cannot read a token are one intervention: they are added before
        arrows are compared, and stay or go together.

        Raises:
            ValueError: a share outside 0..1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"expected a share in 0..1, got {share!r}")
        sizes = self._sizes()
        sizes = sizes.sort_values(["target", "size"], ascending=[True, False], kind="stable")
        by_target = sizes.groupby("target", sort=False)["size"]
        before = by_target.cumsum() - sizes["size"]
        kept = sizes[(before < share * by_target.transform("sum")) & (sizes["size"] > 0)]
        keys = pd.MultiIndex.from_frame(kept[list(INTERVENTION)])
        mine = pd.MultiIndex.from_frame(self._keyed()[list(INTERVENTION)])
        arrows = self.arrows[mine.isin(keys)].reset_index(drop=True)
        used = {*arrows["source"], *arrows["target"]}
        return PathGraph(self.nodes[self.nodes.index.isin(used)], arrows)

    def left_out(self, pruned: "PathGraph") -> pd.DataFrame:
        """Interventions into each node that are not in another graph: n, Σ|logit|, the largest."""
        columns = list(INTERVENTION)
        sizes, kept = self._sizes(), pruned._sizes()
        is_kept = pd.MultiIndex.from_frame(sizes[columns]).isin(
            pd.MultiIndex.from_frame(kept[columns])
        )
        rest = sizes[~is_kept & (sizes["size"] > 0)].groupby("target")["size"]
        table = rest.agg(n="size", absolute="sum", largest="max")
        return table.reindex(self.nodes.index[self.nodes["is_target"]], fill_value=0)

    def _keyed(self) -> pd.DataFrame:
        """The arrows with their kind of intervention: the row's own reading, or another."""
        is_own = self.arrows["path"].isin(EDGE_PATHS)
        return self.arrows.assign(kind=self.arrows["path"].where(~is_own, OWN_ROW))

    def _sizes(self) -> pd.DataFrame:
        """|logit| of every intervention."""
        sums = self._keyed().groupby(list(INTERVENTION), sort=False)["logit"].sum()
        return sums.abs().rename("size").reset_index()

    def to_graphml(self, path: str | os.PathLike) -> Path:
        """Writes the graph as GraphML, an edge for every arrow; networkx and Gephi read it."""
        import networkx as nx  # half a second, which whoever explains should not wait for

        graph = nx.MultiDiGraph()
        for name, node in self.nodes.iterrows():
            graph.add_node(name, text=_xml(node["text"]), role=node["role"])
        for arrow in self.arrows.to_dict("records"):
            facts = {key: arrow[key] for key in ("path", "logit")}
            graph.add_edge(arrow["source"], arrow["target"], **facts)
        nx.write_graphml(graph, path)
        return Path(path)


def path_graph(
    edges: xr.Dataset, node_effects: xr.Dataset | None = None, words: xr.Dataset | None = None
) -> PathGraph:
    """The graph out of datasets of one text.

    Args:
        edges: `interp.extract.effects` of single tokens, whose source sets are named by position,
            and of groups of tokens; `Explained.graph` asks for them.
        node_effects: of the image, for arrows through other positions, of its first reference.
        words: the four-path game, for the arrow through the words; in the gauge of `edges`, or in
            "contrast" where that is "raw".

    Raises:
        ValueError: source sets named by a position that is not in the text.
    """
    tables = [_edges(edges)]
    if node_effects is not None:
        tables.append(_mediated(node_effects))
    if words is not None:
        tables.append(_through_words(words, edges))
    arrows = pd.concat(tables, ignore_index=True)
    return PathGraph(_nodes(edges, arrows), arrows)


def _edges(edges: xr.Dataset) -> pd.DataFrame:
    """An arrow for each source set, target and path, where the set lies before the target's row."""
    values = edges["effect"].transpose("target", "source_set", "path").values
    is_defined = edges["is_defined"].transpose("target", "source_set").values
    target, source, path = np.indices(values.shape).reshape(3, -1)
    table = pd.DataFrame(
        {
            "source": edges["source_set"].values.astype(str)[source],
            "target": _places(edges)[target],
            "path": edges["path"].values.astype(str)[path],
            "logit": values.ravel().astype(float),
        }
    )
    return table[is_defined[target, source] & (table["source"] != table["target"]).values]


def _mediated(node_effects: xr.Dataset) -> pd.DataFrame:
    """Arrows from a visual set through other positions, the row's own reading of it unchanged."""
    alone = node_effects["mediated_alone"].isel(reference=0).transpose("target", "source_set")
    target, source = np.indices(alone.shape).reshape(2, -1)
    table = pd.DataFrame(
        {
            "source": alone["source_set"].values.astype(str)[source],
            "target": _places(node_effects)[target],
            "path": OTHERS,
            "logit": alone.values.ravel().astype(float),
        }
    )
    return table[table["logit"].notna() & (table["logit"] != 0)]


def _through_words(words: xr.Dataset, edges: xr.Dataset) -> pd.DataFrame:
    """The arrow from the image to the answer through what the model wrote, where that is there."""
    gauge = edges.attrs.get("gauge", "contrast")
    gauge = gauge if gauge in ("contrast", "centered") else "contrast"
    share = words["words_owen"].sel(drawn="greedy", norm="live", player=WORDS, gauge=gauge)
    is_outcome = (edges["target_role"] == "answer").values
    is_outcome &= (edges["target_token"] == words["outcome_token"]).values
    places = _places(edges)[is_outcome][:1]
    return pd.DataFrame({"source": "image", "target": places, "path": WORDS, "logit": float(share)})


def _places(dataset: xr.Dataset) -> np.ndarray:
    """Names of the nodes at which targets stand: the position of each in the text."""
    return (dataset["target_position"].values + 1).astype(str)


def _nodes(edges: xr.Dataset, arrows: pd.DataFrame) -> pd.DataFrame:
    places = _places(edges)
    text = dict(zip(places, edges["target_token"].values.astype(str), strict=True))
    role = dict(zip(places, edges["target_role"].values.astype(str), strict=True))
    sources = edges["source_set"].values.astype(str).tolist()
    for name in [*sources, *arrows["source"].unique()]:
        text.setdefault(name, name)
        role.setdefault(name, name if not name.isdigit() else "template")
    groups = [name for name in role if not name.isdigit()]
    order = groups + sorted({*text} - {*groups}, key=int)
    table = pd.DataFrame(
        {"text": [text[one] for one in order], "role": [role[one] for one in order]},
        index=pd.Index(order, name="node"),
    )
    return table.assign(is_target=table.index.isin(arrows["target"].unique()))


def _xml(text: str) -> str:
    """A token without what no XML can hold."""
    return "".join(one if one in "\t\n\r" or 32 <= ord(one) < 0xFFFE else "�" for one in text)


def as_graph(datasets: Mapping[str, xr.Dataset]) -> dict:
    """The graph as a page has it: an arrow for each pair of nodes, with its paths."""
    graph = path_graph(*(datasets.get(name) for name in ("edges", "node_effects", "words")))
    paths = [*EDGE_PATHS, OTHERS, WORDS]
    wide = graph.arrows.pivot_table(
        index=["source", "target"], columns="path", values="logit", aggfunc="sum", sort=False
    ).reindex(columns=paths, fill_value=0.0)
    number = {name: k for k, name in enumerate(graph.nodes.index)}
    return {
        "nodes": graph.nodes.reset_index().to_dict("records"),
        "paths": paths,
        "from": [number[one] for one in wide.index.get_level_values("source")],
        "to": [number[one] for one in wide.index.get_level_values("target")],
        "logit": exact(wide.fillna(0.0).values),
        "gauge": datasets["edges"].attrs.get("gauge", ""),
    }
