"""Tables of a game over families, from bootstrap draws: its cells and its gates. Needs no model."""

import numpy as np
import pandas as pd
import xarray as xr

from analyses.reports.direct_vs_indirect.rule import GATE, MOST_NEGATIVE, OVERALL
from interp import stats


def joined(by_family: xr.DataArray, overall: xr.DataArray) -> xr.DataArray:
    """The families' values, and behind them those over families."""
    return xr.concat([by_family, overall.assign_coords(stratum=OVERALL)], "stratum")


def over_families(draws: xr.DataArray, complete: list[str]) -> xr.DataArray:
    """The families' means and, behind them, the unweighted mean of those with all cells."""
    overall = draws.sel(stratum=complete) if complete else draws[:1] * np.nan
    return joined(draws, overall.mean("stratum"))


def gate_table(draws: xr.Dataset, n: xr.DataArray, by: str, complete: list[str]) -> pd.DataFrame:
    """A row per family, reference or partner kind, and gauge, under the live norm, with sinks."""
    at = {"norm": "live"} | ({"sinks": "with"} if "sinks" in draws.dims else {})
    te, size, negative, small = (
        over_families(draws[name].sel(at, drop=True), complete)
        for name in ("te", "size", "negative", "small")
    )
    rows, sizes = stats.interval_of(te), stats.interval_of(size)
    rows["size"], rows["size_upper"] = sizes["estimate"], sizes["upper"]
    rows["negative"] = negative.isel(draw=0, drop=True)
    rows["small"] = small.isel(draw=0, drop=True)
    rows["n"] = n.sel(at, drop=True)
    frame = as_rows(rows)
    passes = (frame.lower >= GATE) & (frame.negative <= MOST_NEGATIVE)
    return frame.assign(passes=passes)


def cell_table(
    draws: xr.Dataset, n: xr.DataArray, readings: tuple, complete: list[str]
) -> pd.DataFrame:
    """A row per family and cell: Δ and its strict reading, TE, and the share."""
    total = over_families(draws["te"], complete)
    columns = {"te": total}
    for name, reading in zip(("delta", "strict_delta"), readings, strict=True):
        part = over_families(reading(draws) if callable(reading) else draws[reading], complete)
        columns[name] = 2 * part - total
        columns[name.replace("delta", "share")] = part / total
        columns[name.replace("delta", "part")] = part
    # All at once: most of the time is xarray's own, by array.
    ends = stats.interval_of(xr.concat(columns.values(), xr.Variable("quantity", list(columns))))
    merged = xr.Dataset(
        {
            f"{name}{end}": ends[of].isel(quantity=k, drop=True)
            for k, name in enumerate(columns)
            for of, end in (("estimate", ""), ("lower", "_lower"), ("upper", "_upper"))
        }
    )
    merged["n"] = n
    return as_rows(merged)


def as_rows(rows: xr.Dataset) -> pd.DataFrame:
    """The rows of a table, whose columns are named alike in both games."""
    dims = ("stratum", "reference", "partner", "gauge", "norm", "sinks", "player")
    frame = rows.to_dataframe(dim_order=[dim for dim in dims if dim in rows.dims])
    names = {"stratum": "family"}
    names |= {} if "player" in rows.dims else {"reference": "by", "partner": "by"}
    return frame.reset_index().rename(columns=names)


def cell_name(cell: dict) -> str:
    """A cell in words: reference or partner, gauge, norm, and whether it is without sinks."""
    end = ", no sinks" if cell.get("sinks") == "without" else ""
    return f"{cell['by']}, {cell['gauge']}, {cell['norm']}{end}"
