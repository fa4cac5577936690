"""The table of methods, and from what a user types to the method meant."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from polopt.errors import PoloptError, UsageError, did_you_mean

if TYPE_CHECKING:
    from polopt.algorithm import Algorithm

METHODS: dict[str, tuple[str, str]] = {
    "reinforce": ("polopt.algorithms:reinforce", "the policy gradient itself: raw return"),
    "a2c": ("polopt.algorithms:a2c", "a learned critic as baseline, one update per rollout"),
    "ppo": ("polopt.algorithms:ppo", "critic and clipped ratios: several updates per rollout"),
    "rloo": ("polopt.algorithms:rloo", "baseline: mean of the other completions of the prompt"),
    "remax": ("polopt.algorithms:remax", "baseline: reward of the greedy completion"),
    "reinforce_pp": ("polopt.algorithms:reinforce_pp", "no groups: credit whitened over the batch"),
    "grpo": ("polopt.algorithms:grpo", "credit relative to the group's mean and spread, no critic"),
    "dr_grpo": ("polopt.algorithms:dr_grpo", "GRPO without its length and difficulty biases"),
    "dapo": ("polopt.algorithms:dapo", "clip-higher, dynamic sampling, token mean, length shaping"),
    "gspo": ("polopt.algorithms:gspo", "one ratio per sequence, as the reward is per sequence"),
    "cispo": ("polopt.algorithms:cispo", "clips the weight, not the gradient: no token is dropped"),
}
"""Key -> (factory as module:name, purpose). Everything else about a method is in its factory."""


def find_algorithm(spec: str) -> "Algorithm | Callable[..., Algorithm]":
    """Return what `spec` names: the factory of a key of `METHODS`, or a user's own object.

    A user's is ``file.py:name`` or ``module:name``, a factory or a ready `Algorithm`.
    """
    if spec in METHODS:
        module, _, name = METHODS[spec][0].partition(":")
        return getattr(importlib.import_module(module), name)
    if ":" not in spec:
        hint = did_you_mean(spec, METHODS) or "; polopt methods lists them"
        raise UsageError(
            f"no method {spec!r}" + ("; your own is file.py:name" if spec.endswith(".py") else hint)
        )
    from polopt.algorithm import Algorithm
    from polopt.tasks.load import load_object

    found = load_object(spec)
    if not callable(found) and not isinstance(found, Algorithm):
        raise PoloptError(
            f"algorithm {spec!r} is a {type(found).__name__}, neither a "
            "polopt.Algorithm nor a function that makes one"
        )
    return cast("Algorithm | Callable[..., Algorithm]", found)
