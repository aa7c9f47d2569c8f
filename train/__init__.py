"""Training: thin commands over TRL, and what they need."""
