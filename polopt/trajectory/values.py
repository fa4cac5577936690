"""Regressions of models that are trained beside the policy: the critic, the process reward."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from polopt.numerics import masked_sum, token_info
from polopt.reward.filters import recorded_return
from polopt.reward.turns import action_turn
from polopt.transform import Transform, piece
from polopt.types import Array, Context, Credit, Surrogate, Trajectories


def every_token(turn: Array) -> Array:
    """bool[N,T]: the critic speaks at every token of the policy."""
    return turn >= 0


def _regressed(trajectories: Trajectories, keep: Array, *, at: Callable, **unused: Array) -> Array:
    return keep & at(action_turn(trajectories))


@piece(
    "trajectory",
    term="value",
    members=_regressed,
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
    at: Callable = every_token,
    aggregate: Transform | None = None,
) -> Surrogate:
    """Regress the critic on the returns that `gae` left, pessimistically near its old value.

    Args:
      at: `every_token` or `polopt.reward.turns.turn_starts`, where the critic has a target.
    """
    value, old = context.outputs["value"], context.column("value")
    returns = context.column("returns")
    error = (value - returns) ** 2
    if value_clip is not None:
        near = old + jnp.clip(value - old, -value_clip, value_clip)
        error = jnp.maximum(error, (near - returns) ** 2)
    # Where the reward is not known, neither is the return.
    mask = (context.rows.members["value"] > 0) & context.rows.scored[:, None]
    measured = token_info(error, mask)
    return surrogate.with_term("value", -coefficient * error / 2, mask, critic__error=measured)


def _labels(trajectories: Trajectories, credit: Credit, **hyper: Array) -> dict[str, Array]:
    label = recorded_return(trajectories) > hyper["above"]
    return {"label": jnp.broadcast_to(label[:, None], trajectories.action_mask.shape)}


@piece(
    "trajectory",
    term="process",
    before=_labels,
    needs=("logp_ref",),
    wants=("logp_prm",),
    couples="sequence",
    formula="c · log σ(±β Σ_t (l_prm − l_ref)),  + where the outcome is right",
    source="PRIME, 2502.01456, eq. 5",
    repairs=("sparse_credit",),
)
def process_reward_loss(
    surrogate: Surrogate,
    context: Context,
    *,
    beta: float = 0.05,
    coefficient: float = 1.0,
    above: float = 0.5,
    aggregate: Transform | None = None,
) -> Surrogate:
    """Train the implicit process reward model to tell right outcomes from wrong ones.

    Args:
      above: the return beyond which an outcome is right.
    """
    d = context.outputs["logp_prm"] - context.column("logp_ref")
    score = beta * masked_sum(d, context.mask, axis=1)[:, None]
    signed = jnp.where(context.before["label"], score, -score)
    objective = coefficient * jax.nn.log_sigmoid(signed)
    return surrogate.with_term("process", objective, context.known())
