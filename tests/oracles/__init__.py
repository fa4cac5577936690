"""Slow float64 NumPy oracles, written from the papers without sight of the implementation."""
