"""A saliency map as a labelled array that is drawn as the image stands."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from xarray.plot.accessor import DataArrayPlotAccessor

from interp.vocabulary import TEXT_SOURCE_TITLES


def whose_text(attributes: Mapping) -> str:
    """Whose text a dataset explains, and whether it was cut off; empty where nothing says so."""
    source = TEXT_SOURCE_TITLES.get(attributes.get("text_source"), "")
    is_cut = bool(source) and attributes.get("text_is_complete") == "no"
    return source + ", cut off at the limit" * is_cut


class MapPlot(DataArrayPlotAccessor):
    """xarray's `.plot` with row 0 at the top, square cells, and 0 in the middle of the colours.

    Every argument of xarray's goes before these defaults.
    """

    _da: "Map"

    def __call__(self, **kwargs):
        """The map in one Axes, as `pcolormesh`."""
        return self.pcolormesh(**kwargs)

    def pcolormesh(self, *args, **kwargs):
        """Coloured cells; see `xarray.plot.pcolormesh`."""
        return self._drawn(super().pcolormesh, args, kwargs)

    def imshow(self, *args, **kwargs):
        """An image of the cells; see `xarray.plot.imshow`."""
        return self._drawn(super().imshow, args, kwargs)

    def contourf(self, *args, **kwargs):
        """Filled contours; see `xarray.plot.contourf`."""
        return self._drawn(super().contourf, args, kwargs)

    def _drawn(self, method, args, kwargs):
        from matplotlib.ticker import MaxNLocator  # maps are made where nothing can be drawn, too

        upright = {"x": "column", "y": "row", "yincrease": False}
        is_given = {"vmin", "vmax", "levels", "norm", "center"} & kwargs.keys()
        scale = {} if is_given else {"cmap": "RdBu_r", "vmax": self._da.limit, "center": 0}
        drawn = method(*args, **upright | scale | kwargs)
        if "ax" not in kwargs:
            drawn.axes.set(aspect="equal")
        for axis in (drawn.axes.xaxis, drawn.axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        drawn.axes.grid(visible=False)
        if not drawn.axes.get_title():
            drawn.axes.set_title(self._da.told(), fontsize="small")
        return drawn


class Map(xr.DataArray):
    """A map over (row, column), row 0 at the top of the image; otherwise an `xarray.DataArray`."""

    __slots__ = ()

    @property
    def limit(self) -> float:
        """The largest absolute value; 1 for a map of nothing."""
        return float(np.abs(self).max()) or 1.0

    def told(self) -> str:
        """Whose text the map explains, and in which gauge, as far as its attributes say."""
        gauge = self.attrs.get("gauge")
        told = whose_text(self.attrs), f"gauge {gauge}" if gauge else ""
        return "; ".join(one for one in told if one)

    @property
    def plot(self) -> DataArrayPlotAccessor:
        """Draws it upright, red where it raises the logit, blue where it lowers it.

        What is no map any more, a mean over rows say, is drawn as xarray draws it.
        """
        is_map = set(self.dims) == {"row", "column"}
        return MapPlot(self) if is_map else DataArrayPlotAccessor(self)
