"""Methods of the couplings that no shipped method has yet, and methods that break one law each."""

import dataclasses

import jax
import jax.numpy as jnp

from polopt import Algorithm, chain, piece, reward_piece, trajectory_piece
from polopt.aggregate import sequence_mean, token_mean
from polopt.numerics import masked_sum, segment_total
from polopt.reward import group_mean_baseline, outcome_return
from polopt.trajectory import clip, token_ratio
from polopt.types import Term


def _replaced(surrogate, objective, mask):
    term = Term(objective=objective, mask=mask)
    return dataclasses.replace(surrogate, terms={**surrogate.terms, "policy": term})


@piece(
    "trajectory", reads="logp", writes="policy", term="policy", couples="group", needs=("logp_old",)
)
def group_regression(surrogate, context, *, beta: float = 0.3):
    """−½ (A − β (s − mean_g s))², s the row's log-ratio: rows of a group depend on each other."""
    inside = context.mask.any(axis=1).astype(surrogate.logp.dtype)
    s = masked_sum(surrogate.logp - context.column("logp_old"), context.mask, axis=1)
    # Labels of a slice are not below its number of rows: compare them instead.
    same = (context.rows.group[:, None] == context.rows.group[None]) * inside[None]
    mean = (same @ s) / jnp.maximum(same.sum(axis=1), 1)
    error = context.credit - beta * jnp.where(context.mask, (s - mean)[:, None], 0)
    return _replaced(surrogate, -(error**2) / 2, context.mask)


@piece("trajectory", reads="policy", couples="batch")
def near_the_mean(surrogate, context, *, width: float = 0.5):
    """Keep the tokens whose log-probability is near the batch's mean under the current policy."""
    logp = jax.lax.stop_gradient(surrogate.logp)
    mean = masked_sum(logp, context.mask) / jnp.maximum(context.mask.sum(), 1)
    term = surrogate.terms["policy"]
    return _replaced(surrogate, term.objective, term.mask & (jnp.abs(logp - mean) < width))


def _algorithm(name, *trajectory, reward=(), aggregate=None):
    return Algorithm(
        name=name,
        reward=chain(outcome_return(), group_mean_baseline(), *reward),
        trajectory=chain(*trajectory),
        aggregate=aggregate or token_mean(),
    )


def regression() -> Algorithm:
    return _algorithm("regression", group_regression(), aggregate=sequence_mean())


def covariance() -> Algorithm:
    return _algorithm("covariance", token_ratio(), clip(), near_the_mean())


# ------------------------------------------------------------------ one broken law each


@reward_piece
def over_rows(sequence, group):
    """Divides by the number of rows, padding among them."""
    return sequence / sequence.shape[0]


@piece("trajectory", reads="ratio", writes="policy", term="policy")
def early_mean(surrogate, context):
    """Divides by the tokens of the slice at hand: a mean of means."""
    objective = surrogate.ratio * context.credit / jnp.maximum(context.mask.sum(), 1)
    return _replaced(surrogate, objective, context.mask)


@trajectory_piece
def doubled(ratio, credit):
    return 2 * ratio * credit


@piece("trajectory", reads="ratio", writes="policy", term="policy", needs=("logp_ref",))
def reads_everything(surrogate, context):
    """Sums a column over the whole row, and forgets the mask of its own term."""
    pull = jnp.sum(surrogate.logp, axis=1, keepdims=True)
    return _replaced(
        surrogate, surrogate.ratio * context.credit + pull, jnp.ones_like(context.mask)
    )


@piece("reward", reads="sequence", invariant=("shift", "scale"))
def squared(credit, trajectories):
    """Declares what it is not."""
    return dataclasses.replace(credit, sequence=credit.sequence**2)


@piece("reward", reads="sequence")
def by_spread(credit, trajectories):
    """Divides by the group's spread without a floor."""
    spread = segment_total(credit.sequence**2, trajectories.group)
    return dataclasses.replace(credit, sequence=credit.sequence / spread)


@piece("trajectory", reads="logp", writes="policy", term="policy", needs=("logp_old",))
def unbounded(surrogate, context):
    """An exponential that overflows."""
    ratio = jnp.exp(surrogate.logp - context.column("logp_old"))
    return _replaced(surrogate, ratio * context.credit, context.mask)


@piece("trajectory", reads="ratio", writes="policy", term="policy")
def on_the_host(surrogate, context, *, switch: float = 0.5):
    """A hyper-parameter in Python control flow: neither jit nor vmap can follow."""
    sign = 1 if switch > 0 else -1
    return _replaced(surrogate, sign * surrogate.ratio * context.credit, context.mask)


def fresh() -> Algorithm:
    """A new function each time: an equal algorithm that is not equal."""

    @trajectory_piece
    def plain(ratio, credit):
        return ratio * credit

    return _algorithm("fresh", token_ratio(), plain())


BROKEN = {
    "over_rows": (
        "partition",
        lambda: _algorithm("over_rows", token_ratio(), clip(), reward=[over_rows()]),
    ),
    "early_mean": ("partition", lambda: _algorithm("early_mean", token_ratio(), early_mean())),
    "doubled": ("on_policy", lambda: _algorithm("doubled", token_ratio(), doubled())),
    "squared": (
        "invariances",
        lambda: _algorithm("squared", token_ratio(), clip(), reward=[squared()]),
    ),
    "by_spread": (
        "degenerate",
        lambda: _algorithm("by_spread", token_ratio(), clip(), reward=[by_spread()]),
    ),
    "unbounded": ("extremes", lambda: _algorithm("unbounded", unbounded())),
    "fresh": ("composition", fresh),
}
