"""Regressions: the policy's log-ratio is fitted to the reward, a closed form of the optimum.

Where π* ∝ π_ref·exp(R/β), β·log(π*/π_ref) = R − β·log Z: the pieces differ in what stands for Z.
They read a sequence's log-ratio, so a row has one number, written on each of its tokens.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.numerics import (
    SEQUENCE_LIMIT,
    group_mean,
    masked_sum,
    row_length,
    row_mean,
    safe_exp,
)
from polopt.numerics import stop as sg
from polopt.transform import Column, piece
from polopt.types import Array, Context, Surrogate


def _row_term(surrogate: Surrogate, context: Context, objective: Array) -> Surrogate:
    """One number per row as the objective of each of its tokens."""
    whole = jnp.broadcast_to(objective[:, None], context.mask.shape)
    return surrogate.with_term("policy", whole, context.mask)


def _row(x: Array, context: Context) -> Array:
    """f32[N]: what is the same on all tokens of a row."""
    return row_mean(x, context.mask)


@piece(
    "trajectory",
    reads="ratio",
    couples="group",
    formula="x_i ← x_i − mean_g(x)",
    source="GVPO, 2504.19599, eq. 8",
    differs=("the authors' code detaches the mean: the residuals sum to zero, so nothing changes",),
)
def group_centre(surrogate: Surrogate, context: Context) -> Surrogate:
    """Compare a row's log-ratio with the mean of its group: log Z cancels."""
    x = _row(surrogate.log_ratio, context)
    rows = context.rows
    counted = ((rows.group >= 0) & rows.scored & jnp.any(context.mask, axis=1)).astype(x.dtype)
    centred = (x - group_mean(x, rows.group, counted)) * counted
    log_ratio = jnp.broadcast_to(centred[:, None], surrogate.log_ratio.shape)
    return dataclasses.replace(surrogate, log_ratio=log_ratio)


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    couples="sequence",
    formula="−c · (A_i − β·x_i)²",
    source="GVPO, 2504.19599, eq. 8; REBEL, 2404.16767, eq. 7; A*-PO, 2505.20686, eq. 6",
)
def squared_regression(
    surrogate: Surrogate,
    context: Context,
    *,
    beta: float = 0.1,
    coefficient: float = 0.5,
    per_token: bool = False,
) -> Surrogate:
    """Fit β times the sequence's log-ratio to its credit.

    Args:
      per_token: divide a row's error by its length, as Kimi k1.5's public code does.
    """
    residual = _row(context.credit, context) - beta * _row(surrogate.log_ratio, context)
    scale = 1 / jnp.maximum(row_length(context.mask), 1) if per_token else 1.0
    # A row without a score has no target.
    known = context.rows.scored.astype(residual.dtype)
    return _row_term(surrogate, context, -coefficient * known * scale * residual**2)


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    wants=("value",),
    couples="sequence",
    formula="−c · (A_i − V(q) − β·x_i)²,  V at the first action",
    source="DRO, 2405.19107, eq. 8",
)
def value_regression(
    surrogate: Surrogate, context: Context, *, beta: float = 1.0, coefficient: float = 0.5
) -> Surrogate:
    """Fit log-ratio and the value of the prompt to the return, together."""
    first = context.mask & (jnp.cumsum(context.mask, axis=1) == 1)
    value = masked_sum(context.outputs["value"], first, axis=1)
    credit, x = _row(context.credit, context), _row(surrogate.log_ratio, context)
    residual = (credit - value - beta * x) * context.rows.scored
    return _row_term(surrogate, context, -coefficient * residual**2)


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    wants=("log_z",),
    couples="sequence",
    formula="−sg[min(ρ_i, c)] · (log Z(q) + mean_t l − β·A_i − mean_t l_ref)²",
    source="FlowRL, 2509.15207, eq. 6",
    repairs=("entropy_collapse", "sharpening"),
)
def flow_balance(
    surrogate: Surrogate,
    context: Context,
    *,
    beta: float = 15.0,
    bound: float = 10.0,
    to: Column = "logp_ref",
) -> Surrogate:
    """Match the whole distribution to exp(β·R): a balance with a learned partition."""
    mean = row_mean(surrogate.logp - context.column(to), context.mask)
    error = context.outputs["log_z"] + mean - beta * _row(context.credit, context)
    weight = sg(jnp.minimum(safe_exp(_row(surrogate.log_ratio, context), SEQUENCE_LIMIT), bound))
    return _row_term(surrogate, context, -weight * context.rows.scored * error**2)
