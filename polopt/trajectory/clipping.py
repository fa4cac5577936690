"""Clips: surrogates that stop rewarding a step away from the old policy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from polopt.numerics import SEQUENCE_LIMIT, masked_sum, row_mean, safe_exp, token_info
from polopt.numerics import stop as sg
from polopt.transform import Column, piece
from polopt.types import Array, Context, Mean, Surrogate


def _pessimistic(surrogate: Surrogate, context: Context, low: Array, high: Array) -> Surrogate:
    """min(r·A, clip(r, low, high)·A), with bounds on the ratio itself."""
    ratio, credit = surrogate.ratio, context.credit
    plain, held = ratio * credit, jnp.clip(sg(ratio), low, high) * credit
    clipped = held < plain
    return surrogate.with_term(
        "policy",
        jnp.where(clipped, held, plain),
        context.mask,
        policy__clip_fraction=token_info(clipped, context.mask),
    )


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    formula="r·A",
    source="PPO, 1707.06347, eq. 6 (L^CPI)",
)
def unclipped(surrogate: Surrogate, context: Context) -> Surrogate:
    """The importance-weighted surrogate without any bound."""
    return surrogate.with_term("policy", surrogate.ratio * context.credit, context.mask)


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    formula="min(r·A, clip(r, 1−ε_lo, 1+ε_hi)·A)",
    source="PPO, 1707.06347, eq. 7; decoupled bounds: DAPO, 2503.14476, eq. 8",
    repairs=("ratio_explosion",),
)
def clip(
    surrogate: Surrogate, context: Context, *, low: float = 0.2, high: float = 0.2
) -> Surrogate:
    """The pessimistic clipped surrogate: no gradient from a ratio that has gone far enough."""
    return _pessimistic(surrogate, context, 1 - low, 1 + high)


@piece(
    "trajectory",
    reads="policy",
    formula="max(objective, c·A) where A < 0",
    source="1912.09729, eq. 5",
    repairs=("negative_explosion",),
    differs=("verl applies it always with c=3; here it is a link of its own",),
)
def dual_clip(surrogate: Surrogate, context: Context, *, bound: float = 3.0) -> Surrogate:
    """Bound the surrogate of negative credit from below: a large ratio has no gradient."""
    term = surrogate.terms["policy"]
    held = jnp.maximum(term.objective, bound * context.credit)
    objective = jnp.where(context.credit < 0, held, term.objective)
    return surrogate.with_term("policy", objective, term.mask)


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    formula="r_lo = (1+√max(0, 1−4ε_lo/q))/2,  r_hi = min((1+√(1+4ε_hi/q))/2, r_max),  q = π_old",
    source="DCPO, 2509.02333, eq. 6-8",
    repairs=("pivotal_tokens_clipped", "entropy_collapse"),
    differs=("ε are those of the authors' README; their run scripts override them",),
)
def probability_clip(
    surrogate: Surrogate,
    context: Context,
    *,
    low: float = 0.16,
    high: float = 0.2,
    largest: float = 10.0,
    to: Column = "logp_old",
) -> Surrogate:
    """Clip where |r−1|·π exceeds ε: rare tokens have wider bounds than common ones."""
    inverse = safe_exp(-context.column(to))
    lower = (1 + jnp.sqrt(jnp.maximum(1 - 4 * low * inverse, 0))) / 2
    upper = jnp.minimum((1 + jnp.sqrt(1 + 4 * high * inverse)) / 2, largest)
    return _pessimistic(surrogate, context, lower, upper)


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    couples="batch",
    formula="c_hi, then c_lo, raised until Σ_{A>0} q|o| ≥ ρ₀·Σ q|o|,"
    "  o = min(r·A, clip(r)·A), q = π_old",
    source="BAPO, 2510.18927, eq. 7 and algorithm 1",
    repairs=("negative_explosion", "entropy_collapse"),
    differs=(
        "the authors' script compares positive with negative tokens, without q, from other bounds",
        "the sums are over the optimiser step",
    ),
)
def adaptive_clip(
    surrogate: Surrogate,
    context: Context,
    *,
    share: float = 0.4,
    low: float = 0.6,
    low_end: float = 0.9,
    low_step: float = 0.02,
    high: float = 1.2,
    high_end: float = 3.0,
    high_step: float = 0.05,
    to: Column = "logp_old",
) -> Surrogate:
    """Clip with bounds on the ratio that are raised until positive credit has its share."""
    ratio, credit = sg(surrogate.ratio), context.credit
    likely = safe_exp(context.column(to))

    def missing(bounds: tuple[Array, Array]) -> Array:
        held = jnp.minimum(ratio * credit, jnp.clip(ratio, *bounds) * credit)
        size = likely * jnp.abs(held)
        positive = masked_sum(size, context.mask & (credit > 0))
        return positive < share * masked_sum(size, context.mask)

    def unbalanced(bounds: tuple[Array, Array]) -> Array:
        low, high = bounds
        return missing(bounds) & ((low < low_end) | (high < high_end))

    def widen(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        raised = jnp.minimum(low + low_step, low_end)
        widened = jnp.minimum(high + high_step, high_end)
        first = high < high_end
        return jnp.where(first, low, raised), jnp.where(first, widened, high)

    start = (jnp.asarray(low, ratio.dtype), jnp.asarray(high, ratio.dtype))
    lower, upper = jax.lax.while_loop(unbalanced, widen, start)
    made = _pessimistic(surrogate, context, lower, upper)
    one = jnp.any(context.mask).astype(ratio.dtype)
    info = {
        "policy/clip_low": Mean(sum=one * lower, weight=one),
        "policy/clip_high": Mean(sum=one * upper, weight=one),
    }
    return dataclasses.replace(made, info={**made.info, **info})


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    couples="sequence",
    formula="A_i · exp((1/L_i) Σ_t c_it),  c = sgn(A)·min(sgn(A)·d, sgn(A)·clip(d, −ε_lo, ε_hi))",
    source="GMPO, 2507.20673, eq. 4",
    repairs=("token_ratio_noise", "ratio_explosion"),
    differs=("verl's bounds are clip_ratio, 0.2 unless set; the paper's are 0.4 in log space",),
)
def geometric_mean_surrogate(
    surrogate: Surrogate, context: Context, *, low: float = 0.4, high: float = 0.4
) -> Surrogate:
    """The geometric mean of a row's token ratios, each clipped in log space before the mean."""
    d, sign = surrogate.log_ratio, jnp.sign(context.credit)
    held = sign * jnp.minimum(sign * d, sign * jnp.clip(d, -low, high))
    ratio = safe_exp(row_mean(held, context.mask), SEQUENCE_LIMIT)[:, None]
    objective = row_mean(context.credit, context.mask)[:, None] * ratio
    clipped = token_info(held != jnp.abs(sign) * d, context.mask)
    return surrogate.with_term(
        "policy",
        objective,
        context.mask,
        policy__clip_fraction=clipped,
    )
