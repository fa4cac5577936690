"""Named methods: compositions only, one function each."""

from polopt.algorithms.grpo import cispo, dapo, dr_grpo, grpo, gspo
from polopt.algorithms.ppo import a2c, ppo
from polopt.algorithms.reinforce import reinforce, reinforce_pp, remax, rloo

__all__ = [
    "a2c",
    "cispo",
    "dapo",
    "dr_grpo",
    "grpo",
    "gspo",
    "ppo",
    "reinforce",
    "reinforce_pp",
    "remax",
    "rloo",
]
