"""Every method that ships, with settings at which a batch of ten tokens meets all of its parts."""

import functools
from collections.abc import Callable

from polopt import algorithms
from polopt.algorithm import Algorithm

SETTINGS: dict[str, dict[str, float]] = {
    "dapo": {"max_length": 6, "cache": 4},
    "cispo": {"high": 0.2},
}
# What multiplies -weight·credit in the on-policy gradient, where it is not one by design.
FACTORS: dict[str, float | None] = {}
FACTORIES: dict[str, Callable[[], Algorithm]] = {
    key: functools.partial(getattr(algorithms, key), **SETTINGS.get(key, {}))
    for key in algorithms.__all__
}
