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
    segment_total,
)
from polopt.numerics import stop as sg
from polopt.transform import Column, piece
from polopt.types import Array, Context, Surrogate


def _row_term(surrogate: Surrogate, context: Context, objective: Array) -> Surrogate:
    """One number per row as the objective of each of its tokens."""
    return surrogate.with_term("policy", objective[:, None], context.mask)


def _row(x: Array, context: Context) -> Array:
    """f32[N]: what is the same on all tokens of a row."""
    return row_mean(x, context.mask)


@piece(
    "trajectory",
    reads="ratio",
    couples="group",
    formula="x_i ← x_i − sg[mean_g(x)]",
    source="GVPO, 2504.19599, eq. 8; detached as in the authors' code",
)
def group_centre(surrogate: Surrogate, context: Context) -> Surrogate:
    """Compare a row's log-ratio with the mean of its group: log Z cancels.

    The members are those of a group baseline: scored rows, an empty completion with x = 0.
    """
    x, rows = _row(surrogate.log_ratio, context), context.rows
    counted = ((rows.group >= 0) & rows.scored).astype(x.dtype)
    centred = x - sg(group_mean(x, rows.group, counted))
    log_ratio = jnp.broadcast_to(centred[:, None], surrogate.log_ratio.shape)
    return dataclasses.replace(surrogate, log_ratio=log_ratio)


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    couples="sequence",
    formula="−c · (A_i − β·x_i)²",
    source="GVPO, 2504.19599, eq. 8; A*-PO, 2505.20686, eq. 6; per β: Kimi k1.5, 2501.12599, eq. 3",
)
def squared_regression(
    surrogate: Surrogate,
    context: Context,
    *,
    beta: float = 0.1,
    coefficient: float = 0.5,
    per_beta: bool = False,
    per_token: bool = False,
) -> Surrogate:
    """Fit β times the sequence's log-ratio to its credit.

    Args:
      per_beta: divide by β, so that the gradient starts as that of A·l.
      per_token: divide a row's error by its length, as Kimi k1.5's public code does.
    """
    residual = _row(context.credit, context) - beta * _row(surrogate.log_ratio, context)
    scale = coefficient / beta if per_beta else coefficient
    if per_token:
        scale = scale / jnp.maximum(row_length(context.mask), 1)
    # A row without a score has no target.
    return _row_term(surrogate, context, -scale * context.rows.scored * residual**2)


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    couples="group",
    formula="−mean_{i<j} ((x_i − x_j)/η − (A_i − A_j))²",
    source="REBEL, 2404.16767, eq. 7",
    differs=(
        "of all pairs of a group; their mean square is 2/(n−1) times the centred sum of squares,"
        " which is what each row has its part of",
    ),
)
def pairwise_regression(surrogate: Surrogate, context: Context, *, eta: float = 1.0) -> Surrogate:
    """Fit differences of log-ratios to differences of rewards. For a mean over groups (ddof=0)."""
    rows = context.rows
    written = (rows.group >= 0) & jnp.any(context.mask, axis=1)
    paired = (written & rows.scored).astype(context.credit.dtype)
    z = _row(surrogate.log_ratio, context) / eta - _row(context.credit, context)
    n = segment_total(paired, rows.group)
    size = segment_total(written.astype(paired.dtype), rows.group)
    error = paired * (z - group_mean(z, rows.group, paired)) ** 2
    return _row_term(surrogate, context, -2 * size / jnp.maximum(n - 1, 1) * error)


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
