"""The graph of paths: its arrows are the interventions that they name."""

import networkx as nx
import numpy as np
import pytest

import interp
from interp.gathering import graph_sources
from interp.pages import path_graph


@pytest.fixture(scope="module")
def graph(shown):
    names = ("edges", "node_effects", "words")
    return path_graph(*(shown.datasets[name] for name in names))


def test_arrows_of_a_token_are_the_effect_of_cutting_it(graph, shown):
    """Asked for one at a time, in another way: by the public call about exact patch maps' rows."""
    explained = shown.explained
    rows = graph_sources(explained.ledger)
    target = explained.indices[0]
    node = str(int(explained.ledger["target_position"][target]) + 1)
    for name in ("question", "evidence", "51"):
        alone = interp.extract.effects(
            explained.vlm,
            explained.sample,
            completion=explained.completion,
            sources={"only": rows[name]},
        ).isel(target=target, source_set=0)
        is_own = (graph.arrows["source"] == name) & (graph.arrows["target"] == node)
        own = graph.arrows[is_own].set_index("path")["logit"]
        own = own.drop(["words", "other positions"], errors="ignore")
        for path, value in alone["effect"].to_series().items():
            assert own[path] == pytest.approx(value, abs=1e-5)
        assert own.sum() == pytest.approx(float(alone["total"]), abs=1e-4)


def test_other_positions_alone_hold_another_image(graph, shown):
    """The public call with the game's own definition: the row reads the clean image itself."""
    nodes = shown.datasets["node_effects"].isel(reference=0)
    assert nodes.attrs["reference"] == "the image of digits-test-0-000006-twin"
    others = graph.arrows[graph.arrows["path"] == "other positions"]
    for k, place in enumerate((nodes["target_position"].values + 1).astype(str)):
        for name in nodes["source_set"].values.tolist():
            own = others[(others["target"] == place) & (others["source"] == name)]
            expected = nodes["mediated_alone"].isel(target=k).sel(source_set=name)
            assert own["logit"].sum() == pytest.approx(float(expected), abs=1e-6)


def test_the_words_arrow_is_the_games(graph, shown):
    words = graph.arrows[graph.arrows["path"] == "words"]
    share = shown.datasets["words"]["words_owen"].sel(
        drawn="greedy", norm="live", player="words", gauge="centered"
    )
    assert words["logit"].tolist() == [float(share)] and words["source"].tolist() == ["image"]


def interventions(arrows):
    """|logit| by tail, head and kind of intervention: all paths of a row's own reading are one."""
    kind = arrows["path"].where(arrows["path"].isin(["other positions", "words"]), "own row")
    keys = [arrows["source"], arrows["target"], kind]
    return arrows["logit"].groupby(keys).sum().abs()


def test_pruning_keeps_the_largest_and_counts_the_rest(graph):
    kept = graph.pruned(0.8)
    rest = graph.left_out(kept)
    whole, mine = interventions(graph.arrows), interventions(kept.arrows)
    for node in graph.arrows["target"].unique():
        own, size = mine.xs(node, level=1), whole.xs(node, level=1)
        assert own.sum() >= 0.8 * size.sum() - 1e-9
        assert own.sum() - own.min() < 0.8 * size.sum()
        np.testing.assert_allclose(sorted(own)[::-1], sorted(size)[::-1][: len(own)])
        assert rest.loc[node, "n"] + len(own) == int((size > 0).sum())
        assert rest.loc[node, "absolute"] + own.sum() == pytest.approx(size.sum())
        assert rest.loc[node, "largest"] <= own.min()
    # What is kept is kept with all its paths, small ones too.
    own_row = kept.arrows[~kept.arrows["path"].isin(["other positions", "words"])]
    assert (own_row.groupby(["source", "target"]).size() == 5).all()
    assert len(interventions(graph.pruned(1.0).arrows)) == int((whole > 0).sum())
    assert len(graph.pruned(0.0).arrows) == 0
    with pytest.raises(ValueError, match=r"expected a share in 0\.\.1, got 1\.5"):
        graph.pruned(1.5)


def test_graphml_comes_back(graph, tmp_path):
    back = nx.read_graphml(graph.to_graphml(tmp_path / "graph.graphml"), force_multigraph=True)
    assert set(back.nodes) == set(graph.nodes.index)
    logits = sorted(one["logit"] for *_, one in back.edges(data=True))
    np.testing.assert_allclose(logits, sorted(graph.arrows["logit"]), rtol=1e-12)
    assert {back.nodes[name]["text"] for name in back.nodes} >= {"green", " top", "question"}


def test_tokens_that_no_xml_can_hold_are_replaced(graph, tmp_path):
    odd = path_graph.__globals__["PathGraph"](graph.nodes.assign(text="a\x00b\x0bc￿"), graph.arrows)
    back = nx.read_graphml(odd.to_graphml(tmp_path / "x.graphml"), force_multigraph=True)
    assert {back.nodes[name]["text"] for name in back.nodes} == {"a�b�c�"}


def test_explained_gives_it(shown):
    made = shown.explained.graph(shown.explained.sample.twin)
    assert made.nodes.index.tolist()[0] == "system"
    assert "words" not in set(made.arrows["path"])  # a sample that is explained has no twin
    assert set(made.arrows["target"]) == set(made.nodes.index[made.nodes["is_target"]])
