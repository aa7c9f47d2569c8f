"""Shared by the tests: random models, planted circuits, the slow reference, commands in process."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
