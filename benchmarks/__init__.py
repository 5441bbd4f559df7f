"""Measurements of what Millrace promises; see `python -m benchmarks`."""
