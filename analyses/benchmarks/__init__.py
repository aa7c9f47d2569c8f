"""Benchmarks that run where the package cannot be installed in the ordinary way."""
