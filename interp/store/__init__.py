"""Runs on disk: opening, writing, and joining samples to shards."""

from interp.store.opening import open_run, to_netcdf

__all__ = ["open_run", "to_netcdf"]
