"""Every method that ships, with settings at which a batch of ten tokens meets all of its parts."""

import functools
from collections.abc import Callable
from typing import Any

from polopt import algorithms
from polopt.algorithm import Algorithm
from polopt.reward import max_at_k

SETTINGS: dict[str, dict[str, Any]] = {
    "dapo": {"max_length": 6, "cache": 4},
    "cispo": {"high": 0.2},
    "entropy_top_quantile": {"max_length": 6, "cache": 4},
    "dppo_tv": {"max_length": 8},
    "dppo_kl": {"max_length": 8},
    "passk_grpo": {"credit": max_at_k(k=2)},
}
# What multiplies -weight·credit in the on-policy gradient, where it is not one by design.
FACTORS: dict[str, float | None] = {
    "entropy_top_quantile": None,  # most tokens have no gradient
    # Regressions: the credit is a target, from which the reference's log-ratio is taken.
    "dro": None,
    "rebel": None,
    "gvpo": None,
    "kimi_pmd": None,
    "flowrl": None,
    "a_star_po": None,
    # Preferences: the credit says which of two rows is the better one.
    "dpo": None,
    "ipo": None,
    "online_dpo": None,
}
FACTORIES: dict[str, Callable[[], Algorithm]] = {
    key: functools.partial(getattr(algorithms, key), **SETTINGS.get(key, {}))
    for key in algorithms.__all__
}
