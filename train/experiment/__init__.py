"""The experiment of docs/EXPERIMENT.md: which training moves what a model uses."""
