"""Penalties and bonuses: terms of their own beside the policy's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from polopt.divergence import k3
from polopt.numerics import token_info
from polopt.transform import Column, Transform, piece
from polopt.types import Context, Surrogate, Term


@piece(
    "trajectory",
    term="kl",
    formula="−β · k(l − l_ref)",
    source="GRPO, 2402.03300, eq. 3-4",
    repairs=("reference_drift",),
    differs=(
        "on-policy, k3's expected gradient is the forward KL's and k1's is zero: k2 has the"
        " reverse KL's",
    ),
)
def kl_penalty(
    surrogate: Surrogate,
    context: Context,
    *,
    estimator: Callable = k3,
    coefficient: float = 0.04,
    to: Column = "logp_ref",
    aggregate: Transform | None = None,
) -> Surrogate:
    """Pay for the distance from the reference inside the loss, per token."""
    penalty = estimator(surrogate.logp - context.column(to))
    term = Term(objective=-coefficient * penalty, mask=context.mask)
    info = {**surrogate.info, "policy/kl_ref": token_info(penalty, context.mask)}
    return dataclasses.replace(surrogate, terms={**surrogate.terms, "kl": term}, info=info)


@piece(
    "trajectory",
    term="entropy",
    wants=("entropy",),
    formula="c · H(π(·|s_t))",
    source="A3C, 1602.01783, sec. 4",
    repairs=("entropy_collapse",),
)
def entropy_bonus(
    surrogate: Surrogate,
    context: Context,
    *,
    coefficient: float = 0.01,
    aggregate: Transform | None = None,
) -> Surrogate:
    """Reward the entropy of the next-token distribution."""
    term = Term(objective=coefficient * context.outputs["entropy"], mask=context.mask)
    return dataclasses.replace(surrogate, terms={**surrogate.terms, "entropy": term})
