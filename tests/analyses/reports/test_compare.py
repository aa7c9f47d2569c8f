"""Paths of several models beside one another."""

import json

import pytest

from analyses.reports.direct_vs_indirect import compare
from analyses.reports.direct_vs_indirect.rule import OVERALL


def folder(tmp_path, model, shares, rule="a", data="digits/test"):
    """A report's folder with one share and its interval per (family, player)."""
    base = {"partner": "twin", "gauge": "contrast", "norm": "live"}
    rows = [
        base
        | {"family": family, "player": player}
        | dict(zip(("share_estimate", "share_lower", "share_upper"), ends, strict=True))
        for (family, player), ends in shares.items()
    ]
    rows += [row | {"norm": "frozen", "share_estimate": 9.0} for row in rows]
    path = tmp_path / model
    path.mkdir()
    (path / "verdict.json").write_text(json.dumps({"rule_sha256": rule, "four_paths": rows}))
    (path / "manifest.json").write_text(json.dumps({"provenance": {"model": model, "data": data}}))
    return str(path)


def test_shares_stand_beside_one_another_and_are_decided(tmp_path, capsys):
    one = folder(tmp_path, "one", {(OVERALL, "direct write"): (0.2, 0.1, 0.3)})
    more = {(OVERALL, "direct write"): (0.5, 0.31, 0.6), ("sum", "direct write"): (0.4, 0.1, 0.6)}
    other = folder(tmp_path, "other", more)
    assert compare.main([other, one]) == 0
    printed = capsys.readouterr().out
    assert f"| {OVERALL} | direct write | 50 % [31, 60] | 20 % [10, 30] |" in printed
    assert "| sum | direct write | 40 % [10, 60] | – |" in printed
    assert "in one, against other: smaller." in printed
    compare.main([one, other])
    assert "in other, against one: larger." in capsys.readouterr().out
    near = folder(tmp_path, "near", {(OVERALL, "direct write"): (0.35, 0.29, 0.6)})
    compare.main([one, near])
    assert "undecided" in capsys.readouterr().out


def test_other_rules_scenes_and_folders_are_refused(tmp_path):
    share = {(OVERALL, "direct write"): (0.2, 0.1, 0.3)}
    one = folder(tmp_path, "one", share)
    for name, own in (("rule", {"rule": "b"}), ("data", {"data": "jsonl/test"})):
        other = folder(tmp_path, name, share, **own)
        with pytest.raises(SystemExit, match=f"expected reports of one {name}"):
            compare.main([one, other])
    with pytest.raises(SystemExit, match=r"got no verdict.json"):
        compare.main([one, str(tmp_path)])
    with pytest.raises(SystemExit, match="two or more"):
        compare.main([one])
    with pytest.raises(SystemExit, match="got a report without it"):
        compare.main([one, folder(tmp_path, "none", {})])
