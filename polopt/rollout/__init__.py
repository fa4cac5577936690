"""Rollout: prompts in, completions and the record of how they were drawn out."""

from polopt.rollout.draw import Decoding
from polopt.rollout.lanes import Generated
from polopt.rollout.sampler import generate

__all__ = ["Decoding", "Generated", "generate"]
