"""Scripts: one per step or report."""
