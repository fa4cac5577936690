"""Preferences: the better and the worse completion of a prompt, told apart by their log-ratios."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.numerics import row_mean, segment_total
from polopt.transform import piece
from polopt.types import Array, Context, Surrogate


def _margin(surrogate: Surrogate, context: Context) -> tuple[Array, Array]:
    """f32[N]: x_chosen − x_rejected of each row's group, and bool[N]: the group is a pair.

    The credit says which is which: +1 and −1, and zero on rows that are in no pair.
    """
    sign = jnp.sign(row_mean(context.credit, context.mask))
    x = row_mean(surrogate.log_ratio, context.mask)
    return segment_total(sign * x, context.rows.group), sign != 0


def _pairwise(surrogate: Surrogate, context: Context, objective: Array, paired: Array) -> Surrogate:
    """Half of the pair's objective on each of its rows: for a mean over groups with ddof=1."""
    return surrogate.with_term("policy", objective[:, None] / 2, context.mask & paired[:, None])


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    couples="group",
    formula="log σ(β·(x_w − x_l))",
    source="DPO, 2305.18290, eq. 7",
)
def pairwise_logistic(surrogate: Surrogate, context: Context, *, beta: float = 0.1) -> Surrogate:
    """The likelihood of the preference under Bradley and Terry's model."""
    margin, paired = _margin(surrogate, context)
    return _pairwise(surrogate, context, jax.nn.log_sigmoid(beta * margin), paired)


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    couples="group",
    formula="−(x_w − x_l − 1/(2β))²",
    source="IPO, 2310.12036, eq. 17",
)
def pairwise_square(surrogate: Surrogate, context: Context, *, beta: float = 0.1) -> Surrogate:
    """A margin of 1/(2β) and no more: no preference is certain."""
    margin, paired = _margin(surrogate, context)
    return _pairwise(surrogate, context, -((margin - 1 / (2 * beta)) ** 2), paired)
