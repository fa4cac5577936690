"""Masks: tokens that the policy's term leaves out of its numerator, because of where they moved."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from polopt.numerics import (
    masked_quantile,
    masked_sum,
    row_mean,
    safe_exp,
    token_info,
    uniform_by_identity,
)
from polopt.numerics import stop as sg
from polopt.transform import Column, piece
from polopt.types import Array, Context, Surrogate

_TINY = 1e-8  # of the authors' code, where 1 − p may be zero


def _masked(surrogate: Surrogate, context: Context, keep: Array) -> Surrogate:
    term = surrogate.terms["policy"]
    dropped = token_info(term.mask & ~keep, context.mask)
    return surrogate.with_term(
        "policy", term.objective, term.mask & keep, policy__masked_fraction=dropped
    )


@piece(
    "trajectory",
    reads="policy",
    formula="M = 0 where A ≥ 0 and r > 1+ε_hi, or A ≤ 0 and r < 1−ε_lo",
    source="REC, 2509.24203, eq. 12 (one-side); the gradient of PPO's clip",
    repairs=("ratio_explosion",),
)
def one_side_mask(
    surrogate: Surrogate, context: Context, *, low: float = 0.2, high: float = 0.2
) -> Surrogate:
    """Stop tokens that have moved far enough in the direction of their credit."""
    ratio, credit = sg(surrogate.ratio), context.credit
    far = ((credit > 0) & (ratio > 1 + high)) | ((credit < 0) & (ratio < 1 - low))
    return _masked(surrogate, context, ~far)


@piece(
    "trajectory",
    reads="policy",
    formula="M = 1[1−ε_lo ≤ r ≤ 1+ε_hi]",
    source="REC, 2509.24203 (two-side)",
    repairs=("ratio_explosion", "staleness"),
)
def two_side_mask(
    surrogate: Surrogate, context: Context, *, low: float = 0.2, high: float = 0.2
) -> Surrogate:
    """Leave out every token that has moved far, whatever its credit."""
    ratio = sg(surrogate.ratio)
    return _masked(surrogate, context, (ratio >= 1 - low) & (ratio <= 1 + high))


@piece(
    "trajectory",
    reads="policy",
    formula="two-side, or A ≥ 0 and r ≤ 1−ε'_lo, or A ≤ 0 and r ≥ 1+ε'_hi",
    source="REC, 2509.24203 (ring)",
    repairs=("ratio_explosion", "staleness"),
)
def ring_mask(
    surrogate: Surrogate,
    context: Context,
    *,
    low: float = 0.2,
    high: float = 0.2,
    outer_low: float = 0.6,
    outer_high: float = 2.0,
) -> Surrogate:
    """As two-side, but tokens that went far the wrong way come back in."""
    ratio, credit = sg(surrogate.ratio), context.credit
    near = (ratio >= 1 - low) & (ratio <= 1 + high)
    back = ((credit >= 0) & (ratio <= 1 - outer_low)) | ((credit <= 0) & (ratio >= 1 + outer_high))
    return _masked(surrogate, context, near | back)


def total_variation(p: Array, q: Array) -> Array:
    """|p − q|: the total variation between "this token" and "another one"."""
    return jnp.abs(p - q)


def binary_kl(p: Array, q: Array) -> Array:
    """KL(q ‖ p) between "this token" and "another one"."""
    rest = (1 - q) * jnp.log((1 - q + _TINY) / (1 - p + _TINY))
    return q * (jnp.log(q) - jnp.log(p)) + rest


@piece(
    "trajectory",
    reads="policy",
    formula="M = 0 where D(π_old, π) > δ and the token moved in the direction of its credit",
    source="DPPO, 2602.04879, eq. 9-12",
    repairs=("ratio_explosion", "pivotal_tokens_clipped"),
    differs=("binary forms only: top-K forms need the old policy's K likeliest tokens",),
)
def divergence_mask(
    surrogate: Surrogate,
    context: Context,
    *,
    distance: Callable = total_variation,
    low: float = 0.15,
    high: float = 0.15,
    to: Column = "logp_old",
) -> Surrogate:
    """Stop tokens by how far probability itself has moved, not by the ratio."""
    logp, old = sg(surrogate.logp), context.column(to)
    p, q = safe_exp(jnp.minimum(logp, 0)), safe_exp(jnp.minimum(old, 0))
    far = distance(p, q)
    up = (context.credit > 0) & (far > high) & (p > q)
    down = (context.credit <= 0) & (far > low) & (p < q)
    return _masked(surrogate, context, ~(up | down))


def covariance(surrogate: Surrogate, context: Context) -> Array:
    """f32[N,T]: (A − mean A)·(l − mean l) over the step's tokens of known reward, detached."""
    counted = context.known()
    count = jnp.maximum(jnp.sum(counted), 1)

    def centred(x: Array) -> Array:
        return x - masked_sum(x, counted) / count

    return centred(context.credit) * centred(sg(surrogate.logp))


def share_count(context: Context, share: Array | float) -> Array:
    """How many of the step's tokens of known reward a share is: rounded down, at least one."""
    return jnp.maximum(jnp.floor(share * jnp.sum(context.known())), 1).astype(int)


def smallest(x: Array, among: Array, count: Array, ids: Array) -> Array:
    """bool[N,T]: the `count` smallest entries of `x` among some; of equals the first by row id."""
    at = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape)
    row = jnp.broadcast_to(ids[:, None], x.shape)
    keys = (at, row, jnp.where(among, x, jnp.inf))
    order = jnp.lexsort([key.reshape(-1) for key in keys])
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
    return among & (rank.reshape(x.shape) < count)


@piece(
    "trajectory",
    reads="policy",
    couples="batch",
    formula="M = 0 on a random share of the tokens with cov_t in (ω_lo, ω_hi)",
    source="Clip-Cov, 2505.22617, eq. 11-12",
    repairs=("entropy_collapse",),
    differs=("drawn by row id and position; mean and covariance are of the optimiser step",),
)
def covariance_clip(
    surrogate: Surrogate,
    context: Context,
    *,
    key: Array,
    share: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
) -> Surrogate:
    """Take a few of the tokens out whose likelihood and credit rise together."""
    cov, term = covariance(surrogate, context), surrogate.terms["policy"]
    free = term.objective >= surrogate.ratio * context.credit  # the clip has not stopped them
    among = context.known() & free & (cov > low) & (cov < high)
    uniform = uniform_by_identity(key, context.rows.id, context.mask.shape[1])
    chosen = smallest(uniform, among, share_count(context, share), context.rows.id)
    return _masked(surrogate, context, ~chosen)


@piece(
    "trajectory",
    reads="policy",
    wants=("entropy",),
    couples="batch",
    formula="M = 1[H_t ≥ quantile(H, 1−ρ)], the mean over the tokens with M = 1",
    source="80/20, 2506.01939, eq. 6",
    repairs=("entropy_collapse",),
    differs=(
        "TRL divides by all tokens: `own_denominator=False`",
        "the quantile is of the optimiser step; the denominator is right under a token mean",
    ),
)
def entropy_quantile_mask(
    surrogate: Surrogate,
    context: Context,
    *,
    share: float = 0.2,
    own_denominator: bool = True,
) -> Surrogate:
    """Train only where the policy hesitates: the tokens of highest entropy."""
    H = sg(context.outputs["entropy"])
    keep = masked_quantile(H, context.mask, 1 - share) <= H
    made = _masked(surrogate, context, keep)
    if not own_denominator:
        return made
    term = made.terms["policy"]
    chosen = jnp.sum(keep & context.mask)
    scale = jnp.sum(context.mask) / jnp.maximum(chosen, 1)
    return made.with_term("policy", scale * term.objective, term.mask)


@piece(
    "trajectory",
    reads="policy",
    couples="sequence",
    formula="M_i = 0 if A_i < 0 and (1/L_i) Σ_t (l_μ − l) > δ",
    source="DeepSeek-V3.2, 2512.02556, eq. 9",
    repairs=("staleness", "negative_explosion", "sampler_mismatch"),
    differs=("the paper's δ is not printed: 0.5 is TRL's example",),
)
def offpolicy_sequence_mask(
    surrogate: Surrogate,
    context: Context,
    *,
    threshold: float = 0.5,
    to: Column = "logp_behaviour",
) -> Surrogate:
    """Leave out rows of negative credit that the policy would hardly write any more."""
    drift = row_mean(context.column(to) - sg(surrogate.logp), context.mask)
    credit = row_mean(context.credit, context.mask)
    gone = (credit < 0) & (drift > threshold)
    return _masked(surrogate, context, ~gone[:, None])
