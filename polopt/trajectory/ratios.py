"""Ratios between the current policy and the one that the data is credited to."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.numerics import SEQUENCE_LIMIT, row_mean, safe_exp, token_info
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
    log_ratio = jnp.broadcast_to(mean[:, None], surrogate.logp.shape)
    return _with_ratio(surrogate, context, log_ratio, safe_exp(log_ratio, SEQUENCE_LIMIT))
