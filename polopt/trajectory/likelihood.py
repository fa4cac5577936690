"""Likelihood: terms that imitate what was sampled, without any credit."""

from __future__ import annotations

from polopt.reward.filters import recorded_return
from polopt.transform import Transform, piece
from polopt.types import Array, Context, Surrogate, Trajectories


def _solved(trajectories: Trajectories, keep: Array, *, above: Array, **unused: Array) -> Array:
    """bool[N,T]: tokens of rows whose episode earned more than a threshold."""
    earned = recorded_return(trajectories)
    return keep & (trajectories.scored & (earned > above))[:, None]


@piece(
    "trajectory",
    term="likelihood",
    members=_solved,
    formula="μ · l on rows with R > r₀, divided by the number of their tokens",
    source="VAPO, 2504.05118, eq. 8",
    repairs=("never_solved",),
)
def positive_likelihood(
    surrogate: Surrogate,
    context: Context,
    *,
    coefficient: float = 0.1,
    above: float = 0.0,
    aggregate: Transform | None = None,
) -> Surrogate:
    """Imitate what was right, beside the policy's own term."""
    return surrogate.with_term("likelihood", coefficient * surrogate.logp, context.mask)


@piece(
    "trajectory",
    term="likelihood",
    formula="c · l",
    source="REC, 2509.24203 (forward KL to the sampler)",
    repairs=("staleness",),
)
def sampler_likelihood(
    surrogate: Surrogate,
    context: Context,
    *,
    coefficient: float = 0.1,
    aggregate: Transform | None = None,
) -> Surrogate:
    """Stay with the sampler by imitating all that it wrote."""
    return surrogate.with_term("likelihood", coefficient * surrogate.logp, context.mask)
