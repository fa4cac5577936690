"""Two functions timed in turn, on a machine whose speed drifts: the ratio of each pair counts."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Compared(NamedTuple):
    """Of the pairs."""

    seconds: float  # of the first function, median
    ratio: float  # of the first to the second, median
    low: float  # end of its 95 % bootstrap interval
    high: float


def compare(first: Callable[[], object], second: Callable[[], object], pairs: int) -> Compared:
    """Time both, once each before it counts; who begins changes from pair to pair."""
    first(), second()
    ratios, times = [], []
    for i in range(pairs):
        order = (first, second) if i % 2 else (second, first)
        took = {run: _seconds(run) for run in order}
        ratios.append(took[first] / took[second])
        times.append(took[first])
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return Compared(statistics.median(times), statistics.median(ratios), float(low), float(high))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
