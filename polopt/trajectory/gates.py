"""Gates: smooth functions of the ratio where a clip has an edge."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.numerics import TOKEN_LIMIT
from polopt.numerics import stop as sg
from polopt.transform import piece
from polopt.types import Context, Surrogate


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    formula="(4/τ)·σ(τ(r−1))·A,  τ = τ₊ if A > 0 else τ₋",
    source="SAPO, 2511.20347, eq. 5-6",
    repairs=("ratio_explosion", "pivotal_tokens_clipped"),
)
def soft_gate(
    surrogate: Surrogate, context: Context, *, positive: float = 1.0, negative: float = 1.05
) -> Surrogate:
    """A sigmoid of the ratio, steepest at 1: its slope there is one for any temperature."""
    temperature = jnp.where(context.credit > 0, positive, negative)
    gate = 4 / temperature * jax.nn.sigmoid(temperature * (surrogate.ratio - 1))
    return surrogate.with_term("policy", gate * context.credit, context.mask)


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    formula="sg[e^λ · W^k · e^{−λW}] · A · l,  (k,λ) by the sign of A",
    source="VESPO, 2602.10693",
    repairs=("staleness", "ratio_explosion"),
    differs=("log W is held in ±20, as in the authors' code",),
)
def gamma_weight(
    surrogate: Surrogate,
    context: Context,
    *,
    positive_power: float = 2.0,
    positive_rate: float = 3.0,
    negative_power: float = 3.0,
    negative_rate: float = 2.0,
) -> Surrogate:
    """Weigh by a Gamma density of the ratio: far-away rows fade on both sides."""
    power = jnp.where(context.credit >= 0, positive_power, negative_power)
    rate = jnp.where(context.credit >= 0, positive_rate, negative_rate)
    x = jnp.clip(sg(surrogate.log_ratio), -TOKEN_LIMIT, TOKEN_LIMIT)
    weight = jnp.exp(rate + power * x - rate * jnp.exp(x))
    return surrogate.with_term("policy", weight * context.credit * surrogate.logp, context.mask)
