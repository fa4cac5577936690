"""Pass@k: credit for the best of k samples, not for the average one.

Every piece looks at the group as a sample from which subsets of k are drawn, and gives each row
what it adds to them; sums over subsets are binomials, never enumerated.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from polopt.errors import PoloptError
from polopt.numerics import centre, group_std, segment_total
from polopt.reward.returns import best_of_others, episode_weight
from polopt.transform import piece
from polopt.types import Array, Credit, Trajectories


def log_binomial(n: Array, k: Array | float) -> Array:
    """log C(n, k), −inf where k > n or k < 0.

    >>> round(float(jnp.exp(log_binomial(jnp.float32(5), 2))), 4)
    10.0
    """
    n, k = jnp.broadcast_arrays(jnp.asarray(n, float), jnp.asarray(k, float))
    possible = (k >= 0) & (k <= n)
    n, k = jnp.where(possible, n, 0), jnp.where(possible, k, 0)
    lgamma = jax.lax.lgamma
    return jnp.where(possible, lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1), -jnp.inf)


@piece(
    "reward",
    reads="sequence",
    formula="A_i = R_i − max_{j≠i} R_j on the one best row, 0 elsewhere",
    source="2503.19595, sec. 4 (best minus second best)",
    repairs=("sharpening",),
    min_group=2,
    differs=("verl divides by the group's standard deviation unless told otherwise: `scaled`",),
)
def best_minus_second(
    credit: Credit,
    trajectories: Trajectories,
    *,
    scaled: bool = False,
    eps: float = 1e-6,
    ddof: int = 1,
) -> Credit:
    """Credit the best row alone, by how much it beats the second best."""
    weight, group = episode_weight(trajectories), trajectories.group
    R = credit.sequence
    spread = centre(R, group, weight) != 0
    gain = jnp.where(spread, jnp.maximum(R - best_of_others(R, trajectories), 0), 0)
    if scaled:
        gain = gain / (group_std(R, group, weight, ddof) + eps)
    return dataclasses.replace(credit, sequence=gain)


@piece(
    "reward",
    reads="sequence",
    formula="A⁺ = (1−ρ)/σ,  A⁻ = (1−ρ−C(G−c−1,k−1)/C(G−1,k−1))/σ,"
    "  ρ = 1−C(G−c,k)/C(G,k), σ = √(ρ(1−ρ))",
    source="Pass@k Training, 2508.10751, eq. 12-15",
    repairs=("sharpening",),
    min_group=2,
    differs=("a group smaller than k has no credit",),
)
def analytic_pass_at_k(
    credit: Credit,
    trajectories: Trajectories,
    *,
    k: int = 4,
    above: float = 0.5,
    eps: float = 1e-6,
) -> Credit:
    """The expected group-normalised credit over all subsets of k, where k=1 is GRPO.

    Args:
      above: the return beyond which a row is right.
    """
    weight, group = episode_weight(trajectories), trajectories.group
    right = (credit.sequence > above).astype(weight.dtype)
    G, c = segment_total(weight, group), segment_total(weight * right, group)
    failed = jnp.exp(log_binomial(G - c, k) - jnp.maximum(log_binomial(G, k), -1e30))
    alone = log_binomial(G - c - 1, k - 1) - jnp.maximum(log_binomial(G - 1, k - 1), -1e30)
    sigma = jnp.sqrt(jnp.maximum(failed * (1 - failed), 0))
    made = (failed - (1 - right) * jnp.exp(alone)) / (sigma + eps)
    mixed = (weight > 0) & (c > 0) & (c < G) & (max(k, 2) <= G)
    return dataclasses.replace(credit, sequence=jnp.where(mixed, made, 0))


def _running_sum(x: Array, start: Array) -> Array:
    """Inclusive sums along `x[M]` that begin anew where `start`."""

    def combine(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return a[0] | b[0], b[1] + jnp.where(b[0], 0, a[1])

    return jax.lax.associative_scan(combine, (start, x))[1]


@piece(
    "reward",
    reads="sequence",
    formula="A_i = 1/C(G,k) · Σ_{I∋i, |I|=k} (max_I R − max_{I∖i} R)",
    source="PKPO, 2505.15201, eq. 33",
    repairs=("sharpening",),
    min_group=2,
    differs=(
        "published for a sum over the group: under a mean the credit is G times smaller",
        "a group smaller than k has no credit",
    ),
)
def max_at_k(credit: Credit, trajectories: Trajectories, *, k: int = 4) -> Credit:
    """What a row adds to the maximum of the subsets of k that hold it, for any real rewards.

    Raises:
      PoloptError: k < 2, where nothing is left to compare with.
    """
    if k < 2:
        raise PoloptError(f"max_at_k: k is {k}; give 2 or more, or use leave_one_out_baseline()")
    weight, group = episode_weight(trajectories), trajectories.group
    R, size = centre(credit.sequence, group, weight), segment_total(weight, group)
    label = jnp.where(weight > 0, group, group.shape[0])
    order = jnp.lexsort((R, label))
    R, size, weight, label = R[order], size[order], weight[order], label[order]
    start = jnp.concatenate([jnp.ones(1, bool), label[1:] != label[:-1]])
    below = jnp.round(_running_sum(weight, start) - weight)
    # Beyond the row before it, a row gains the gap in all subsets whose others lie below the gap.
    gap = jnp.where(start, 0, R - jnp.roll(R, 1))
    share = jnp.exp(log_binomial(below, k - 1) - jnp.maximum(log_binomial(size, k), -1e30))
    known = (k <= jnp.round(size)) & (label < group.shape[0])
    gain = _running_sum(jnp.where(known, share * gap, 0), start)
    return dataclasses.replace(credit, sequence=jnp.zeros_like(gain).at[order].set(gain))
