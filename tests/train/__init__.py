"""Tests of polopt.train."""
