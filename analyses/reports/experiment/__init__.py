"""Which training moves what a model uses: the runs of docs/EXPERIMENT.md, and its rule."""
