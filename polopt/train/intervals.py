"""Intervals for rates measured on a finite number of problems, and pass@k."""

import math
from collections.abc import Sequence

_Z95 = 1.959963984540054


def wilson(successes: float, trials: int, z: float = _Z95) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a proportion; 95 % by default.

    With several samples per problem, let `trials` count problems and `successes` sum their
    rates: the interval is then on the safe side. Without trials it is (0, 1).

    >>> tuple(round(x, 4) for x in wilson(10, 10))
    (0.7225, 1.0)
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in [0, trials = {trials}], not {successes}")
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    centre = rate + z * z / (2 * trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def wilson_difference(
    before: float, n_before: int, after: float, n_after: int
) -> tuple[float, float]:
    """Return Newcombe's 95 % interval (1998, method 10) of the difference of two proportions.

    It takes the samples as independent; on the same problems twice it is on the safe side.

    >>> tuple(round(x, 4) for x in wilson_difference(48 / 80, 80, 56 / 70, 70))
    (0.0524, 0.3339)
    """
    low_b, high_b = wilson(before * n_before, n_before)
    low_a, high_a = wilson(after * n_after, n_after)
    change = after - before
    return (
        change - math.hypot(after - low_a, high_b - before),
        change + math.hypot(high_a - after, before - low_b),
    )


def pass_at_k(correct: Sequence[int], samples: int, k: int) -> float:
    """Return the unbiased estimate of pass@k (arXiv 2107.03374, equation 1).

    `correct` counts the right answers of each problem among `samples`; 1 <= k <= samples.

    >>> pass_at_k([1, 0], samples=2, k=1)
    0.25
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k must lie in [1, samples = {samples}], not {k}")
    misses = [math.comb(samples - c, k) / math.comb(samples, k) for c in correct]
    return 1.0 - sum(misses) / len(misses)
