"""Preflight: what has to be true before anything expensive starts, checked from where it will run."""
