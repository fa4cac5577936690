"""Tests of polopt.cli."""
