"""How tokens weigh against each other: weights `[N,T]` computed once, over one optimiser step.

The loss is `−Σ weight·objective`, a plain sum, so any split of a step sums to the same gradient.
`mask [N,T]` says how much each token counts: 0, 1, or a share where it stands in several rows.
A *window* is the rows of one optimiser step. Rows without a masked-in token are not rows: they
enter no denominator, unless `count_empty` counts them as TRL does. Names follow the catalogue.
"""

from __future__ import annotations

import jax.numpy as jnp

from polopt.numerics import row_length, segment_total
from polopt.transform import piece
from polopt.types import Array, record


@record
class Window:
    """What the denominators read. Groups lie whole within a step."""

    step: Array  # i32[N], -1 on rows that belong to no step
    group: Array  # i32[N]
    turn: Array  # i32[N,T]


def _inverse(x: Array) -> Array:
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1), 0)


def _rows(mask: Array, window: Window, count_empty: bool) -> Array:
    """[N]: how many rows the row's step has: those with tokens, or all."""
    real = window.step >= 0 if count_empty else row_length(mask) > 0
    return segment_total(real.astype(float), window.step)


@piece(
    "aggregate",
    formula="1 / Σ_i L_i",
    source="DAPO, 2503.14476, eq. 8",
    repairs=("length_bias",),
)
def token_mean(mask: Array, window: Window) -> Array:
    """Every token of the step weighs the same (global, never per micro-batch)."""
    total = segment_total(row_length(mask), window.step)
    return mask * _inverse(total)[:, None]


@piece("aggregate", formula="1 / (R · L_i)", source="GRPO, 2402.03300, eq. 3")
def sequence_mean(mask: Array, window: Window, *, count_empty: bool = False) -> Array:
    """Mean over rows of the mean over each row's tokens."""
    return mask * _inverse(_rows(mask, window, count_empty) * row_length(mask))[:, None]


@piece("aggregate", formula="1 / R", source="REINFORCE, Williams 1992")
def sequence_sum_mean(mask: Array, window: Window, *, count_empty: bool = False) -> Array:
    """Mean over rows of the sum over each row's tokens."""
    return mask * _inverse(_rows(mask, window, count_empty))[:, None]


@piece("aggregate", formula="1 / L_i", source="DCPO, 2509.02333")
def sequence_mean_sum(mask: Array, window: Window) -> Array:
    """Sum over rows of the mean over each row's tokens."""
    return mask * _inverse(row_length(mask))[:, None]


@piece(
    "aggregate",
    formula="1 / (R · L)",
    source="Dr. GRPO, 2503.20783, sec. 3.2",
    repairs=("length_bias",),
)
def constant_length(
    mask: Array, window: Window, *, length: float, count_empty: bool = False
) -> Array:
    """Mean over rows of the sum over tokens divided by one constant length."""
    return mask * _inverse(_rows(mask, window, count_empty))[:, None] / length


@piece("aggregate", formula="1 / (K_total · L_turn)", source="Turn-PPO, 2512.17008")
def turn_mean(mask: Array, window: Window) -> Array:
    """Mean over the step's turns of the mean over each turn's tokens."""
    inside = jnp.where(window.turn >= 0, mask, 0)
    turn = jnp.maximum(window.turn, 0)
    row = jnp.arange(mask.shape[0])[:, None]
    count = jnp.zeros(mask.shape).at[row, turn].add(inside)
    turns = segment_total(jnp.sum(count > 0, axis=1, dtype=float), window.step)
    return inside * _inverse(turns[:, None] * count[row, turn])


@piece(
    "aggregate",
    formula="1 / (#groups · (G − ddof) · L_i)",
    couples="none",
    source="GVPO, 2504.19599, eq. 8",
)
def group_mean(mask: Array, window: Window, *, ddof: int = 1) -> Array:
    """Mean over groups of the sum over members divided by `G − ddof`; each member a token mean.

    A group of `ddof` members or fewer weighs nothing, but is counted among the groups.
    """
    real = (row_length(mask) > 0).astype(float)
    size = segment_total(real, window.group)
    counted = real * (size > ddof)
    groups = segment_total(real * _inverse(size), window.step)
    return mask * (counted * _inverse(groups * (size - ddof) * row_length(mask)))[:, None]


@piece("aggregate", formula="1", source="verl 0.9.1, token-sum")
def token_sum(mask: Array, window: Window) -> Array:
    """Every token weighs one."""
    return mask * 1.0
