"""Direct against indirect contributions of the image."""
