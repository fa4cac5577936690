"""How a broken law is reported."""

from __future__ import annotations

import numpy as np

from polopt.algorithm import Algorithm


class LawBroken(AssertionError):  # noqa: N818 - it reads as what happened
    """A law does not hold.

    Attributes:
      law: name of the law.
      method: name of the algorithm.
      evidence: what was measured.
    """

    def __init__(self, law: str, method: str, evidence: str) -> None:
        self.law, self.method, self.evidence = law, method, evidence
        super().__init__(f"{method or 'the algorithm'} breaks the law {law!r}: {evidence}")


def require(law: str, alg: Algorithm, holds: bool | np.bool_, evidence: str) -> None:
    """Raise `LawBroken` unless it holds."""
    if not holds:
        raise LawBroken(law, alg.name, evidence)


def agree(
    law: str,
    alg: Algorithm,
    what: str,
    expected: np.ndarray,
    got: np.ndarray,
    tolerance: float,
    *,
    scale: float | None = None,
) -> None:
    """Raise `LawBroken` unless `|expected − got| <= tolerance · scale` everywhere.

    Args:
      scale: the largest magnitude of `expected` if not given.
    """
    expected, got = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    if scale is None:
        scale = float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected)))
    with np.errstate(invalid="ignore"):
        error = np.where(expected == got, 0.0, np.abs(expected - got))
    worst = float(np.max(error, initial=0.0))
    if not worst <= tolerance * scale:  # also where it is NaN
        at = tuple(int(i) for i in np.unravel_index(np.argmax(error), error.shape))
        where = f" at {list(at)}" if at else ""
        raise LawBroken(
            law,
            alg.name,
            f"{what} is {got[at]:.9g} instead of {expected[at]:.9g}"
            f"{where}, off by {worst:.3g} where {tolerance * scale:.3g} is allowed",
        )
