"""Advantages from a critic."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from polopt.numerics import row_length
from polopt.transform import Column, piece
from polopt.types import Array, Credit, Trajectories


def generalised_advantage(
    reward: Array, value: Array, mask: Array, last_value: Array, gamma: Array, lam: Array
) -> Array:
    """GAE over the masked-in tokens of each row (2015, 1506.02438, eq. 16).

        δ_t = r_t + γ·V_{t+1} − V_t        A_t = δ_t + γλ·A_{t+1}

    `t+1` is the next token that the policy wrote: V and A are carried through observations
    unchanged, as in verl and tunix.

    Args:
      reward, value, mask: `[N,T]`; `value[n,t]` is the value of the state before `tokens[n,t]`.
      last_value: `[N]`, the value after the last token, zero where the row terminated.

    Returns:
      `[N,T]`; entries outside the mask are meaningless.
    """

    def step(
        carry: tuple[Array, Array], column: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], Array]:
        next_value, next_advantage = carry
        r, v, counted = column
        advantage = r + gamma * next_value - v + gamma * lam * next_advantage
        advantage = jnp.where(counted, advantage, next_advantage)
        return (jnp.where(counted, v, next_value), advantage), advantage

    start = (last_value, jnp.zeros_like(last_value))
    return jax.lax.scan(step, start, (reward.T, value.T, mask.T), reverse=True)[1].T


def last_value(trajectories: Trajectories, bootstrap: Column | None) -> Array:
    """f32[N]: the value after a row's last action, zero unless a column has it."""
    if bootstrap is None:
        return jnp.zeros_like(trajectories.columns["value"][:, 0])
    return trajectories.columns[bootstrap]


@piece(
    "reward",
    reads="reward",
    writes="value",
    needs=("value",),
    formula="A_t = Σ_k (γλ)^k δ_{t+k},  δ_t = r_t + γV_{t+1} − V_t",
    source="1506.02438, eq. 16; PPO, 1707.06347, eq. 11; critic's own λ: VC-PPO, 2503.01491, eq. 8;"
    " λ by length: VAPO, 2504.05118, eq. 6",
    repairs=("no_baseline", "sparse_credit"),
    differs=(
        "a truncated row ends in value 0, as in verl and tunix, unless `bootstrap` names a"
        " column with the value of its last state",
    ),
)
def gae(
    credit: Credit,
    trajectories: Trajectories,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    critic_lam: float | None = None,
    length_factor: float | None = None,
    bootstrap: Column | None = None,
) -> Credit:
    """Credit from a critic; the target `returns = A + V` is left for the value loss.

    Args:
      critic_lam: λ of the critic's target, if it is not the policy's; 1 is the plain return.
      length_factor: λ = max(0, 1 − 1/(factor·L_i)) in place of `lam`: long rows look further.
    """
    value, mask = trajectories.columns["value"], trajectories.action_mask
    last, own_lam = last_value(trajectories, bootstrap), jnp.asarray(lam)
    if length_factor is not None:
        own_lam = jnp.maximum(1 - 1 / (length_factor * jnp.maximum(row_length(mask), 1e-6)), 0)
    advantage = generalised_advantage(credit.reward, value, mask, last, gamma, own_lam)
    target = advantage
    if critic_lam is not None:
        target = generalised_advantage(credit.reward, value, mask, last, gamma, critic_lam)
    returns = jnp.where(mask, target + value, 0)
    targets = {**credit.targets, "returns": returns}
    return dataclasses.replace(credit, value=advantage, targets=targets)
