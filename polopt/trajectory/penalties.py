"""Penalties and bonuses: terms of their own beside the policy's, or taken from it."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from polopt.divergence import absolute, k3
from polopt.numerics import stop as sg
from polopt.numerics import token_info
from polopt.trajectory.masks import covariance, share_count, smallest
from polopt.transform import Column, Transform, piece
from polopt.types import Array, Context, Info, Mean, Surrogate


@piece(
    "trajectory",
    term="kl",
    formula="−β · k(l − l_ref), times r if weighted",
    source="GRPO, 2402.03300, eq. 3-4; weighted: DeepSeek-V3.2, 2512.02556, eq. 7",
    repairs=("reference_drift", "kl_misused"),
    differs=(
        "on-policy, k3's expected gradient is the forward KL's and k1's is zero: k2 has the"
        " reverse KL's, and so has k3 weighted by the ratio",
    ),
)
def kl_penalty(
    surrogate: Surrogate,
    context: Context,
    *,
    estimator: Callable = k3,
    coefficient: float = 0.04,
    to: Column = "logp_ref",
    weighted: bool = False,
    aggregate: Transform | None = None,
) -> Surrogate:
    """Pay for the distance from the reference inside the loss, per token.

    Args:
      weighted: multiply by the ratio that stands before in the chain, differentiably: unbiased in
        value and gradient also off-policy.
    """
    penalty = estimator(surrogate.logp - context.column(to))
    if weighted:
        penalty = surrogate.ratio * penalty
    measured = token_info(penalty, context.mask)
    return surrogate.with_term("kl", -coefficient * penalty, context.mask, policy__kl_ref=measured)


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
    return surrogate.with_term("entropy", coefficient * context.outputs["entropy"], context.mask)


def _start(prompts: int, *, start: Array, **bounds: Array) -> dict[str, Array]:
    return {"coefficient": jnp.asarray(start, float), "entropy": jnp.asarray(jnp.inf, float)}


def _control(
    memory: dict[str, Array],
    info: Info,
    *,
    start: Array,
    target: Array,
    step: Array,
    low: Array,
    high: Array,
) -> dict[str, Array]:
    measured = info["policy/entropy"]
    assert isinstance(measured, Mean)
    entropy = measured.value()
    moved = memory["coefficient"] + jnp.where(entropy <= target, step, -step)
    known = measured.weight > 0
    return {
        "coefficient": jnp.where(known, jnp.clip(moved, low, high), memory["coefficient"]),
        "entropy": jnp.where(known, entropy, memory["entropy"]),
    }


@piece(
    "trajectory",
    term="entropy",
    wants=("entropy",),
    clock="update",
    init=_start,
    advance=_control,
    formula="c·1[H_last ≤ H*]·H;  c ← clip(c ± δ, c_min, c_max) as H ≤ H* or not",
    source="Skywork-OR1, 2505.22312, sec. 4.2",
    repairs=("entropy_collapse",),
)
def adaptive_entropy_bonus(
    surrogate: Surrogate,
    context: Context,
    *,
    memory: dict[str, Array],
    start: float = 0.0,
    target: float = 0.2,
    step: float = 0.005,
    low: float = 0.0,
    high: float = 1.0,
    aggregate: Transform | None = None,
) -> Surrogate:
    """Reward entropy only while it is below its target, more the longer it stays there."""
    active = jnp.where(memory["entropy"] <= target, memory["coefficient"], 0)
    return surrogate.with_term("entropy", active * context.outputs["entropy"], context.mask)


@piece(
    "trajectory",
    reads="policy",
    couples="batch",
    formula="objective − c·|l − l_old| on the top share of tokens by cov_t",
    source="KL-Cov, 2505.22617, eq. 13-14",
    repairs=("entropy_collapse",),
    differs=("mean and covariance are of the optimiser step; verl's default coefficient is 0.1",),
)
def covariance_penalty(
    surrogate: Surrogate, context: Context, *, share: float = 2e-4, coefficient: float = 1.0
) -> Surrogate:
    """Hold the few tokens near the old policy whose likelihood and credit rise together most."""
    cov, term = covariance(surrogate, context), surrogate.terms["policy"]
    chosen = smallest(-sg(cov), context.known(), share_count(context, share), context.rows.id)
    penalty = jnp.where(chosen, coefficient * absolute(surrogate.log_ratio), 0)
    return surrogate.with_term("policy", term.objective - penalty, term.mask)
