"""Score-function surrogates: a detached weight times credit times log-probability."""

from __future__ import annotations

import jax.numpy as jnp

from polopt.numerics import safe_exp, token_info
from polopt.numerics import stop as sg
from polopt.transform import piece
from polopt.types import Array, Context, Surrogate


def _weighted(surrogate: Surrogate, context: Context, weight: Array) -> Surrogate:
    """sg[weight]·A·l, and how often the weight is not the ratio."""
    weight = sg(weight)
    bounded = token_info(weight != surrogate.ratio, context.mask)
    objective = weight * context.credit * surrogate.logp
    return surrogate.with_term("policy", objective, context.mask, policy__clip_fraction=bounded)


@piece(
    "trajectory",
    reads=("logp", "ratio"),
    writes="policy",
    term="policy",
    formula="A · l",
    source="REINFORCE, Williams 1992, eq. 4",
)
def policy_gradient(surrogate: Surrogate, context: Context) -> Surrogate:
    """The plain score function: no ratio, no bound."""
    return surrogate.with_term("policy", context.credit * surrogate.logp, context.mask)


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    formula="sg[clip(r, 1−ε_lo, 1+ε_hi)] · A · l",
    source="CISPO, 2506.13585, eq. 4",
    repairs=("pivotal_tokens_clipped", "entropy_collapse"),
    differs=("verl bounds both sides by 1±ε; TRL's epsilon_high is the absolute upper bound",),
)
def detach_weight(
    surrogate: Surrogate,
    context: Context,
    *,
    low: float | None = None,
    high: float | None = None,
) -> Surrogate:
    """Weigh each token by its bounded, detached ratio: every token keeps a gradient."""
    lower = None if low is None else 1 - low
    upper = None if high is None else 1 + high
    return _weighted(surrogate, context, jnp.clip(surrogate.ratio, lower, upper))


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    formula="sg[w] · A · l,  w = 1 if A ≥ 0 else clip(r, a, b)",
    source="TOPR, 2503.14286, eq. 7",
    repairs=("negative_explosion", "staleness"),
)
def tapered_weight(
    surrogate: Surrogate, context: Context, *, low: float = 0.0, high: float = 1.0
) -> Surrogate:
    """Imitate what was good; unlearn what was bad only as far as the policy still does it."""
    taper = jnp.clip(surrogate.ratio, low, high)
    return _weighted(surrogate, context, jnp.where(context.credit >= 0, 1.0, taper))


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    formula="PPO's clip, then sg[w]·A·exp(l − sg[l]), w = 1/r if A > 0 else r;  c·A·l where w > c",
    source="ASPO, 2510.06062, eq. 8",
    repairs=("pivotal_tokens_clipped", "entropy_collapse"),
    differs=("the constant c is a public re-implementation's, not verified in the paper",),
)
def asymmetric_flip(
    surrogate: Surrogate,
    context: Context,
    *,
    low: float = 0.2,
    high: float = 0.2,
    bound: float = 3.0,
) -> Surrogate:
    """Weigh positive tokens by the reciprocal ratio: what is likely already needs no more push."""
    ratio, credit = sg(surrogate.ratio), context.credit
    up = credit > 0
    weight = jnp.where(up, safe_exp(-sg(surrogate.log_ratio)), ratio)
    # A factor of one with the gradient of l: the value stays that of a ratio.
    one = jnp.exp(surrogate.logp - sg(surrogate.logp))
    held = jnp.where(weight > bound, bound * surrogate.logp, weight * one)
    stopped = (up & (ratio > 1 + high)) | (~up & (ratio < 1 - low))
    edge = jnp.where(up, 1 / (1 + high), 1 - low)
    return surrogate.with_term(
        "policy",
        credit * jnp.where(stopped, edge, held),
        context.mask,
        policy__clip_fraction=token_info(stopped & (credit != 0), context.mask),
    )


@piece(
    "trajectory",
    reads=("logp", "ratio"),
    writes="policy",
    term="policy",
    formula="exp(A/τ) · A · l",
    source="REC, 2509.24203, sec. 4 (weights by credit)",
)
def exponential_weight(
    surrogate: Surrogate, context: Context, *, temperature: float = 1.0
) -> Surrogate:
    """Weigh each token by the exponential of its credit, without any ratio."""
    return _weighted(surrogate, context, safe_exp(context.credit / temperature))
