"""A loaded model: its parts, its state, and its modules as linear maps."""
