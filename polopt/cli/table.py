"""From what a user types to the method meant."""

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from polopt.catalogue import METHODS
from polopt.errors import PoloptError, UsageError, did_you_mean

if TYPE_CHECKING:
    from polopt.algorithm import Algorithm


def find_algorithm(spec: str) -> "Algorithm | Callable[..., Algorithm]":
    """Return what `spec` names: the factory of a key of `METHODS`, or a user's own object.

    A user's is ``file.py:name`` or ``module:name``, a factory or a ready `Algorithm`.
    """
    if spec in METHODS:
        from polopt import algorithms

        return getattr(algorithms, spec)
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
