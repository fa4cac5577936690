"""The laws of policy optimisation as checks: for the methods that ship, and for a user's own.

    from polopt.testing import check_laws

    check_laws(my_method())            # raises LawBroken naming law, method and evidence

Every law is also a function of its own. All of them run on small random batches of one fixed
shape, so that a method is compiled twice in all.
"""

from polopt.testing.draw import (
    pad_trajectories,
    random_outputs,
    random_trajectories,
    take_rows,
)
from polopt.testing.laws import (
    LAWS,
    LawBroken,
    check_laws,
    composition,
    degenerate,
    extremes,
    invariances,
    masks,
    on_policy,
    partition,
)
from polopt.testing.probe import Case, Outcome, measure, measure_lanes, measure_split

__all__ = [
    "LAWS",
    "Case",
    "LawBroken",
    "Outcome",
    "check_laws",
    "composition",
    "degenerate",
    "extremes",
    "invariances",
    "masks",
    "measure",
    "measure_lanes",
    "measure_split",
    "on_policy",
    "pad_trajectories",
    "partition",
    "random_outputs",
    "random_trajectories",
    "take_rows",
]
