"""Score-function surrogates: a detached weight times credit times log-probability."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.numerics import stop as sg
from polopt.numerics import token_info
from polopt.transform import piece
from polopt.types import Context, Surrogate, Term


@piece(
    "trajectory",
    reads=("logp", "ratio"),
    writes="policy",
    term="policy",
    formula="A · l",
    source="REINFORCE, Williams 1992, eq. 4",
)
def policy_gradient(surrogate: Surrogate, context: Context) -> Surrogate:
    """The plain score function: no ratio, no bound."""
    term = Term(objective=context.credit * surrogate.logp, mask=context.mask)
    return dataclasses.replace(surrogate, terms={**surrogate.terms, "policy": term})


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    formula="sg[clip(r, 1−ε_lo, 1+ε_hi)] · A · l",
    source="CISPO, 2506.13585, eq. 4",
    repairs=("pivotal_tokens_clipped", "entropy_collapse"),
    differs=("verl bounds both sides by 1±ε; TRL's epsilon_high is the absolute upper bound",),
)
def detach_weight(
    surrogate: Surrogate,
    context: Context,
    *,
    low: float | None = None,
    high: float | None = None,
) -> Surrogate:
    """Weigh each token by its bounded, detached ratio: every token keeps a gradient."""
    lower = None if low is None else 1 - low
    upper = None if high is None else 1 + high
    ratio = sg(surrogate.ratio)
    weight = jnp.clip(ratio, lower, upper)
    term = Term(objective=weight * context.credit * surrogate.logp, mask=context.mask)
    info = {**surrogate.info, "policy/clip_fraction": token_info(weight != ratio, context.mask)}
    return dataclasses.replace(surrogate, terms={**surrogate.terms, "policy": term}, info=info)
