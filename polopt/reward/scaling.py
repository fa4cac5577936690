"""Scales: by what a centred return is divided."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln

from polopt.numerics import centre, group_mean, group_std, masked_sum, segment_max, segment_total
from polopt.reward.returns import episode_return, episode_weight
from polopt.transform import piece
from polopt.types import Array, Credit, Trajectories


@piece(
    "reward",
    reads="sequence",
    formula="A_i / (std_g(R) + ε)",
    source="GRPO, 2402.03300, eq. 4",
    repairs=("no_baseline",),
    invariant=("scale",),
    min_group=2,
    differs=(
        "the paper does not say which standard deviation: ddof=1 as in verl, TRL and tunix;"
        " ε is 1e-6 in verl and tunix, 1e-4 in TRL",
    ),
)
def group_std_scale(
    credit: Credit, trajectories: Trajectories, *, eps: float = 1e-6, ddof: int = 1
) -> Credit:
    """Divide by the standard deviation of the group's returns. Equal members keep credit 0."""
    std = group_std(credit.sequence, trajectories.group, episode_weight(trajectories), ddof)
    return dataclasses.replace(credit, sequence=credit.sequence / (std + eps))


@piece(
    "reward",
    reads=("sequence", "value"),
    writes="value",
    formula="(A_it − mean) / sqrt(var + ε)",
    source="REINFORCE++, 2501.03262, sec. 3",
    invariant=("shift", "scale"),
    differs=("global over the rollout batch, as in verl; ddof=1 and ε inside the root",),
)
def batch_whiten(
    credit: Credit, trajectories: Trajectories, *, eps: float = 1e-8, ddof: int = 1
) -> Credit:
    """Zero mean and unit variance over all trained tokens of the rollout batch."""
    counted = credit.keep & trajectories.action_mask & trajectories.scored[:, None]
    weight = counted * (1.0 if credit.share is None else credit.share)
    value = _whitened(credit.per_token(), weight, eps, ddof)
    return dataclasses.replace(credit, value=value)


def _whitened(x: Array, weight: Array, eps: Array, ddof: int) -> Array:
    """(x − mean) / sqrt(var + ε) under weights, zero where there is none."""
    counted, count = weight > 0, jnp.sum(weight)

    def mean_of(x: Array) -> Array:
        return masked_sum(weight * x, counted) / jnp.maximum(count, 1e-30)

    mean = mean_of(x)
    # Credits of groups sum to zero: what rounding leaves of their mean is not one. Elsewhere a
    # second pass takes the rounding out, which nearly equal credits would show enlarged.
    noise = jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x), initial=0, where=counted)
    centred = jnp.where(jnp.abs(mean) > noise, (x - mean) - mean_of(x - mean), x)
    low = jnp.min(x, initial=jnp.inf, where=counted)
    high = jnp.max(x, initial=-jnp.inf, where=counted)
    # Equal credits are zero exactly: what rounding leaves would be divided by sqrt(eps).
    centred = jnp.where(counted & (high > low), centred, 0)
    variance = jnp.sum(weight * centred**2) / jnp.maximum(count - ddof, 1)
    return centred * jax.lax.rsqrt(variance + eps)


@piece(
    "reward",
    reads="sequence",
    formula="(A_i − mean) / sqrt(var + ε), over rows",
    source="GDPO, 2601.05242, eq. 7; SPO, 2509.13232, eq. 5",
    invariant=("shift", "scale"),
    differs=("every row counts once, where `batch_whiten` counts tokens, as verl's GDPO does",),
)
def batch_whiten_sequences(
    credit: Credit, trajectories: Trajectories, *, eps: float = 1e-8, ddof: int = 1
) -> Credit:
    """Zero mean and unit variance over all rows of the rollout batch."""
    weight = episode_weight(trajectories)
    return dataclasses.replace(credit, sequence=_whitened(credit.sequence, weight, eps, ddof))


@piece(
    "reward",
    reads="sequence",
    formula="A_i / (std_batch(R) + ε)",
    source="Lite PPO, 2508.08221, sec. 4",
    repairs=("difficulty_bias",),
    invariant=("scale",),
    differs=("ε is 1e-4 in TRL", "the spread is that of the recorded returns, not of the credit"),
)
def batch_std_scale(
    credit: Credit, trajectories: Trajectories, *, eps: float = 1e-6, ddof: int = 1
) -> Credit:
    """Divide by the spread of all returns of the batch, the same for easy and hard prompts."""
    weight = episode_weight(trajectories)
    whole = jnp.where(weight > 0, 0, -1)
    returns = episode_return(credit.reward, trajectories)
    std = jnp.max(group_std(returns, whole, weight, ddof), initial=0.0)
    return dataclasses.replace(credit, sequence=credit.sequence / (std + eps))


def _beta_log_density(p: Array, a: Array, b: Array) -> Array:
    inside = jnp.clip(p, 1e-7, 1 - 1e-7)
    return (a - 1) * jnp.log(inside) + (b - 1) * jnp.log1p(-inside) - _log_beta(a, b)


def _log_beta(a: Array, b: Array) -> Array:
    """`betaln` is good to 1e-6 in every type; the difference of gammas is exact in float64 only."""
    if a.dtype == jnp.float64:
        return jax.lax.lgamma(a) + jax.lax.lgamma(b) - jax.lax.lgamma(a + b)
    return betaln(a, b)


@piece(
    "reward",
    reads="sequence",
    formula="(R_i − p_g)·min(1/Beta(p_g; α, β), 1e6),  α, β by moments of p_g over the batch",
    source="BNPO, 2506.02864, eq. 8-12; its authors' code",
    repairs=("difficulty_bias", "no_baseline"),
    min_group=2,
    differs=(
        "TRL's loss of the same name is a token mean per micro-batch, another thing: it depends on"
        " the split and breaks law 1 by definition",
    ),
)
def beta_normalise(
    credit: Credit, trajectories: Trajectories, *, low: float = 0.0, high: float = 1.0
) -> Credit:
    """Divide by the density of the group's pass rate, under a Beta fitted to all groups.

    Args:
      low, high: the range of the reward, which is mapped to [0, 1].
    """
    weight, group = episode_weight(trajectories), trajectories.group
    R = (credit.sequence - low) / (high - low)
    p = group_mean(R, group, weight)
    own = segment_total(weight, group)
    once = jnp.where(weight > 0, weight / jnp.where(own > 0, own, 1), 0)  # a group weighs one
    groups = jnp.sum(once)
    mean = jnp.sum(once * p) / jnp.maximum(groups, 1)
    variance = jnp.sum(once * (p - mean) ** 2) / jnp.maximum(groups - 1, 1)
    known = variance > 1e-12
    s = jnp.where(known, mean * (1 - mean) / jnp.where(known, variance, 1) - 1, 0)
    a, b = jnp.maximum(1 + s * mean / 3, 1), jnp.maximum(1 + s * (1 - mean) / 3, 1)
    factor = jnp.exp(jnp.minimum(-_beta_log_density(p, a, b), jnp.log(1e6)))
    return dataclasses.replace(credit, sequence=centre(R, group, weight) * factor)


@piece(
    "reward",
    reads="sequence",
    formula="A_i · B / #{rows of groups with a gradient}",
    source="GPG, 2504.02546, eq. 9",
    repairs=("dead_groups",),
    differs=("verl counts rows of non-zero reward instead, which the paper does not",),
)
def effective_sample_rescale(credit: Credit, trajectories: Trajectories) -> Credit:
    """Let the groups that have a gradient stand for those that have none."""
    weight = episode_weight(trajectories)
    spread = segment_max(jnp.abs(credit.sequence), trajectories.group) > 0
    informative = jnp.sum(jnp.where(spread, weight, 0))
    scale = jnp.where(informative > 0, jnp.sum(weight) / jnp.maximum(informative, 1e-30), 1)
    return dataclasses.replace(credit, sequence=scale * credit.sequence)
