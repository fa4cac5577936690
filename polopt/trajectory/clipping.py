"""Clips: surrogates that stop rewarding a step away from the old policy."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.numerics import token_info
from polopt.transform import piece
from polopt.types import Context, Surrogate, Term


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
    ratio, credit = surrogate.ratio, context.credit
    plain, held = ratio * credit, jnp.clip(ratio, 1 - low, 1 + high) * credit
    term = Term(objective=jnp.minimum(plain, held), mask=context.mask)
    info = {**surrogate.info, "policy/clip_fraction": token_info(held < plain, context.mask)}
    return dataclasses.replace(surrogate, terms={**surrogate.terms, "policy": term}, info=info)


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
    made = dataclasses.replace(term, objective=jnp.where(context.credit < 0, held, term.objective))
    return dataclasses.replace(surrogate, terms={**surrogate.terms, "policy": made})
