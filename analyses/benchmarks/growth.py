"""Growth of extraction's cost and memory with tokens, targets, source sets and layers."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from analyses.benchmarks.models import TEXT_TOKENS, Setting, make_model
from analyses.benchmarks.timing import compared, in_turns, peak_memory, tasks

SWEEPS = {
    "tokens": (500, 1000, 2000, 4000),
    "targets": (1, 4, 16, 64),
    "sets": (1, 2, 4, 8, 16),
    "layers": (2, 4, 8),
}
BOTH = ("ledger", "effects")
MEASURED = {"tokens": BOTH, "targets": BOTH, "sets": ("effects",), "layers": BOTH}
TITLES = {
    "tokens": "Tokens of the sequence",
    "targets": "Targets",
    "sets": "Source sets",
    "layers": "Layers",
}
MARKS = {"ledger": ("ledger", "#D55E00", "o"), "effects": ("edge effects", "#0072B2", "^")}


def measure_growth(setting: Setting, repeats: int, axes: list[str]) -> list[dict]:
    """One record per axis, size and extraction: time and memory, and the forward's beside them."""
    model = model_layers = None
    records, forwards = [], {}
    for axis in axes:
        for size in SWEEPS[axis]:
            size_setting = replace(setting, **{axis: size})
            if (
                size_setting.targets > size_setting.tokens // 2
                or size_setting.tokens <= TEXT_TOKENS
            ):
                continue
            if size_setting.layers != model_layers:
                model, model_layers = None, size_setting.layers  # one at a time in memory
                model = make_model(size_setting)
            todo = tasks(model, size_setting)
            key = size_setting.tokens, size_setting.layers
            if key not in forwards:
                forwards[key] = peak_memory(size_setting, "forward")
            times = in_turns(["forward", *MEASURED[axis]], todo, repeats, size_setting.device)
            for name in MEASURED[axis]:
                timing = compared(times[name], times["forward"])
                peaks = peak_memory(size_setting, name), forwards[key]
                record = {"axis": axis, "size": size, "extraction": name} | _costs(timing, *peaks)
                records.append(record | {"estimated_bytes": estimated(size_setting, name)})
                print(_line(records[-1]), flush=True)
    return records


def _costs(timing: dict, peak: dict[str, int], forward: dict[str, int]) -> dict:
    return {
        "ratio": timing["ratio_median"],
        "ratio_lower": timing["ratio_range"][0],
        "ratio_upper": timing["ratio_range"][1],
        "seconds": timing["seconds_median"],
        "forward_seconds": timing["forward_seconds_median"],
        "memory_ratio": peak["peak"] / forward["peak"],
        "needed_bytes": peak["peak"] - peak["before"],
        "forward_needed_bytes": forward["peak"] - forward["before"],
    }


def estimated(setting: Setting, name: str) -> int:
    """Bytes that the budget of `interp.extract.each` reckons with."""
    import torch

    from interp.capture.memory import Load, needed
    from interp.model import families

    with torch.device("meta"):
        parts = families.parts(make_model(replace(setting, device="meta")))
    n_variants = 1 + setting.sets if name == "effects" else 1
    size = torch.empty(0, dtype=getattr(torch, setting.dtype)).element_size()
    return needed(parts, [Load(setting.tokens, setting.targets, n_variants)], size)


def _line(row: dict) -> str:
    return (
        f"{row['axis']} {row['size']}, {row['extraction']}: {row['ratio']:.3f} of the forward "
        f"[{row['ratio_lower']:.3f}, {row['ratio_upper']:.3f}], memory {row['memory_ratio']:.3f}, "
        f"needs {row['needed_bytes'] / 2**20:.0f} MiB (forward "
        f"{row['forward_needed_bytes'] / 2**20:.0f}, estimate {row['estimated_bytes'] / 2**20:.0f})"
    )


def _draw_axis(frame: pd.DataFrame, top, bottom) -> None:
    """Ratios along one axis: time with its range into one Axes, memory into another."""
    from matplotlib.ticker import NullLocator, ScalarFormatter

    for name, table in frame.groupby("extraction", sort=False):
        label, color, marker = MARKS[name]
        reach = [table.ratio - table.ratio_lower, table.ratio_upper - table.ratio]
        style = {"color": color, "marker": marker, "linewidth": 1.2}
        top.errorbar(table["size"], table.ratio, reach, label=label, capsize=3, **style)
        bottom.plot(table["size"], table.memory_ratio, **style)
    for ax in (top, bottom):
        ax.axhline(1, color="#999999", linestyle="--", linewidth=1)
        ax.set_xscale("log", base=2)
        ax.set_xticks(sorted(frame["size"].unique()))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_locator(NullLocator())


def draw_growth(records: list[dict], path: Path, title: str) -> None:
    """A figure of time ratios above and memory below, a table as CSV, each beside `path`."""
    import matplotlib.pyplot as plt

    from analyses.reports import drawing
    from interp import plots

    plots.use_style()
    frame = pd.DataFrame(records)
    frame.to_csv(path.with_suffix(".csv"), index=False, float_format="%.6g")
    names = frame["axis"].unique().tolist()
    size = (2.6 + 2.0 * len(names), 5.0)
    figure, axes = plt.subplots(
        2, len(names), figsize=size, sharex="col", sharey="row", squeeze=False
    )
    for column, axis in enumerate(names):
        _draw_axis(frame[frame.axis == axis], *axes[:, column])
        axes[1, column].set_xlabel(TITLES[axis])
    axes[0, 0].set_ylabel("Time, ratio to\na plain forward")
    axes[1, 0].set_ylabel("Peak memory, ratio to\na plain forward")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title="median; whiskers: least and largest",
        ncols=2,
        loc="outside lower center",
    )
    figure.suptitle(title, fontsize=9)
    drawing.save({path.stem: figure}, path.parent)
