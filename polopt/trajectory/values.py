"""The critic's regression, a term beside the policy's."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.numerics import token_info
from polopt.transform import Transform, piece
from polopt.types import Context, Surrogate, Term


@piece(
    "trajectory",
    term="value",
    needs=("value",),
    wants=("value",),
    formula="−c/2 · max((V−G)², (clip(V, V_old±ε)−G)²)",
    source="PPO, 1707.06347, eq. 9; clip: openai/baselines",
    repairs=("critic_lag",),
    differs=("verl's range is 0.5, tunix's 0.2; None switches the clip off",),
)
def value_loss(
    surrogate: Surrogate,
    context: Context,
    *,
    coefficient: float = 1.0,
    value_clip: float | None = 0.2,
    aggregate: Transform | None = None,
) -> Surrogate:
    """Regress the critic on the returns that `gae` left, pessimistically near its old value."""
    value, old = context.outputs["value"], context.column("value")
    returns = context.column("returns")
    error = (value - returns) ** 2
    if value_clip is not None:
        near = old + jnp.clip(value - old, -value_clip, value_clip)
        error = jnp.maximum(error, (near - returns) ** 2)
    # Where the reward is not known, neither is the return.
    mask = context.mask & context.rows.scored[:, None]
    term = Term(objective=-coefficient * error / 2, mask=mask)
    info = {**surrogate.info, "critic/error": token_info(error, mask)}
    return dataclasses.replace(surrogate, terms={**surrogate.terms, "value": term}, info=info)
