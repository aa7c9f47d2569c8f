"""The reports: a folder each, with the same rooms."""
