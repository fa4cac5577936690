"""Ratios between the current policy and the one that the data is credited to."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.numerics import (
    SEQUENCE_LIMIT,
    masked_sum,
    row_mean,
    safe_exp,
    token_info,
    turn_total,
)
from polopt.numerics import stop as sg
from polopt.transform import Column, piece
from polopt.types import Array, Context, Max, Surrogate

_LIMIT = "log-ratios are held in ±20 (tokens) or ±10 (sequences), gradient zero beyond, as in verl"


def _with_ratio(
    surrogate: Surrogate, context: Context, log_ratio: Array, ratio: Array
) -> Surrogate:
    measured = jnp.where(context.mask, sg(ratio), 0)
    drift = safe_exp(sg(log_ratio)) - 1 - sg(log_ratio)
    info = {
        "policy/ratio_max": Max(max=jnp.max(measured)),
        "policy/kl": token_info(drift, context.mask),
    }
    return dataclasses.replace(
        surrogate, log_ratio=log_ratio, ratio=ratio, info={**surrogate.info, **info}
    )


def _with_row_ratio(surrogate: Surrogate, context: Context, log_ratio: Array) -> Surrogate:
    """One log-ratio per row, `[N]`, on each of its tokens."""
    ratio = safe_exp(log_ratio, SEQUENCE_LIMIT)
    whole = (jnp.broadcast_to(x[:, None], surrogate.logp.shape) for x in (log_ratio, ratio))
    return _with_ratio(surrogate, context, *whole)


@piece(
    "trajectory",
    reads="logp",
    writes="ratio",
    formula="r_it = exp(l_it − l_old,it)",
    source="PPO, 1707.06347, eq. 6",
    differs=(_LIMIT,),
)
def token_ratio(surrogate: Surrogate, context: Context, *, to: Column = "logp_old") -> Surrogate:
    """One ratio per token."""
    log_ratio = surrogate.logp - context.column(to)
    return _with_ratio(surrogate, context, log_ratio, safe_exp(log_ratio))


@piece(
    "trajectory",
    reads="logp",
    writes="ratio",
    couples="sequence",
    formula="s_i = exp((1/L_i) Σ_t (l_it − l_old,it))",
    source="GSPO, 2507.18071, eq. 7",
    repairs=("token_ratio_noise",),
    differs=(_LIMIT,),
)
def sequence_ratio(surrogate: Surrogate, context: Context, *, to: Column = "logp_old") -> Surrogate:
    """One ratio per row: the geometric mean of its token ratios."""
    mean = row_mean(surrogate.logp - context.column(to), context.mask)
    return _with_row_ratio(surrogate, context, mean)


@piece(
    "trajectory",
    reads="logp",
    writes="ratio",
    couples="sequence",
    formula="s_it = sg[s_i] · exp(l_it − sg[l_it])",
    source="GSPO, 2507.18071, eq. 14 (GSPO-token)",
    repairs=("token_ratio_noise", "sequence_ratio_token_credit"),
    differs=(_LIMIT,),
)
def sequence_ratio_token_grad(
    surrogate: Surrogate, context: Context, *, to: Column = "logp_old"
) -> Surrogate:
    """The value of the sequence's ratio with the gradient of the token's own log-probability."""
    logp = surrogate.logp
    mean = row_mean(sg(logp) - context.column(to), context.mask)
    log_ratio = jnp.broadcast_to(mean[:, None], logp.shape) + (logp - sg(logp))
    return _with_ratio(
        surrogate,
        context,
        log_ratio,
        safe_exp(mean, SEQUENCE_LIMIT)[:, None] * jnp.exp(logp - sg(logp)),
    )


@piece(
    "trajectory",
    reads="logp",
    writes="ratio",
    couples="sequence",
    formula="ρ_i = exp(Σ_t (l_it − l_old,it))",
    source="importance sampling of whole sequences; TOPR, 2503.14286, eq. 3",
    differs=(_LIMIT,),
)
def product_ratio(surrogate: Surrogate, context: Context, *, to: Column = "logp_old") -> Surrogate:
    """One ratio per row: the product of its token ratios, unbiased and of large variance."""
    total = masked_sum(surrogate.logp - context.column(to), context.mask, axis=1)
    return _with_row_ratio(surrogate, context, total)


@piece(
    "trajectory",
    reads="logp",
    writes="ratio",
    couples="sequence",
    formula="r_ik = exp((1/L_ik) Σ_{t in turn k} (l_it − l_old,it))",
    source="Turn-PPO, 2512.17008",
    repairs=("token_ratio_noise",),
    differs=(_LIMIT, "the abstract does not say which mean: geometric, as GSPO's"),
)
def turn_ratio(surrogate: Surrogate, context: Context, *, to: Column = "logp_old") -> Surrogate:
    """One ratio per turn: the geometric mean of its token ratios."""
    turn = jnp.where(context.mask, context.rows.turn, -1)
    total = turn_total(surrogate.logp - context.column(to), turn)
    log_ratio = total / jnp.maximum(turn_total(jnp.ones_like(total), turn), 1)
    return _with_ratio(surrogate, context, log_ratio, safe_exp(log_ratio, SEQUENCE_LIMIT))


@piece(
    "trajectory",
    reads="ratio",
    formula="r ← min(r, δ)",
    source="INTELLECT-2, 2505.07291, sec. 3.4 (two-sided GRPO)",
    repairs=("negative_explosion", "ratio_explosion"),
)
def ratio_cap(surrogate: Surrogate, context: Context, *, bound: float = 4.0) -> Surrogate:
    """Bound the ratio from above before the pessimistic clip, which leaves negative credit free."""
    return dataclasses.replace(surrogate, ratio=jnp.minimum(surrogate.ratio, bound))
