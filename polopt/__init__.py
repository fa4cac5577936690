"""polopt: LLM policy optimisation in JAX, written as the theory reads.

Names are imported on first use, so `import polopt` is instant and brings no jax.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "chain": "transform",
    "add": "transform",
    "piece": "transform",
    "reward_piece": "lift",
    "trajectory_piece": "lift",
    "Algorithm": "algorithm",
    "init": "algorithm",
    "prepare": "compose",
    "loss": "compose",
    "advance": "algorithm",
    "objective": "compose",
    "reweigh": "compose",
    "Sampling": "trajectory.sampling",
    "Companion": "trajectory.sampling",
    "Keep": "trajectory.sampling",
    "Mixture": "trajectory.sampling",
    "Prioritise": "trajectory.sampling",
    "Refill": "trajectory.sampling",
    "Update": "trajectory.sampling",
    "Trajectories": "types",
    "PolicyOutputs": "types",
    "Stop": "types",
    "score": "models.score",
    "methods": "cli.methods",
    "explain": "describe",
    "PoloptError": "errors",
}
_NAMED_APART = {"map": ("describe", "method_map")}  # a module should not shadow a builtin
_MODULES = (
    "aggregate",
    "algorithms",
    "columns",
    "divergence",
    "models",
    "modifiers",
    "numerics",
    "reward",
    "rollout",
    "tasks",
    "testing",
    "train",
    "trajectory",
    "types",
)

__all__ = [*_HOMES, *_NAMED_APART, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"polopt.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _NAMED_APART:
        home, real = _NAMED_APART[name]
        return getattr(importlib.import_module(f"polopt.{home}"), real)
    if name in _MODULES:
        return importlib.import_module(f"polopt.{name}")
    raise AttributeError(f"module 'polopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
