"""How evenly a policy with experts uses them, measured once per step."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polopt.models import LanguageModel
from polopt.models.experts import Routing
from polopt.types import Array, Trajectories

ROWS = 32  # of a rollout, evenly spaced: enough to see a collapse, and a fraction of an update


def router_metrics(
    model: LanguageModel, params: Any, trajectories: Trajectories
) -> dict[str, float]:
    """Metrics named as in the run's schema, of at most `ROWS` rows.

    Args:
      model: a handle with experts.
      params: its parameters.
      trajectories: whose prompts and completions are read.
    """
    N = len(trajectories.length)
    rows = np.linspace(0, N - 1, min(N, ROWS)).astype(int)
    tokens, length = (np.asarray(x)[rows] for x in (trajectories.tokens, trajectories.length))
    measured = _measured(model, params, tokens, length)
    return {f"router/{name}": float(x) for name, x in jax.device_get(measured).items()}


@functools.partial(jax.jit, static_argnums=0)
def _measured(model: LanguageModel, params: Any, tokens: Array, length: Array) -> dict[str, Array]:
    assert model.config.experts is not None
    real = jnp.arange(tokens.shape[1])[None] < length[:, None]
    return balance(model.routing(params, tokens), real, model.config.experts.count)


def balance(routings: Sequence[Routing], real: Array, experts: int) -> dict[str, Array]:
    """What layers with experts do with the tokens that are `real bool[N,T]`.

    Returns:
      "entropy": mean of the routers' distributions, nats; "max_load": the tokens of the busiest
      expert of all layers, over what each would have if all had as many; "unused": the share of
      experts that no token was sent to.
    """
    weight = real.astype(jnp.float32)
    loads = jnp.stack([_load(routing.chosen, weight, experts) for routing in routings])
    entropy = jnp.stack([routing.entropy for routing in routings]).mean(0)
    return {
        "entropy": jnp.sum(entropy * weight) / jnp.sum(weight),
        "max_load": jnp.max(loads) * experts,
        "unused": jnp.mean(loads == 0),
    }


def _load(chosen: Array, weight: Array, experts: int) -> Array:
    """f32[E]: the share of what was sent that each expert got."""
    sent = jnp.broadcast_to(weight[..., None], chosen.shape)
    counts = jnp.bincount(chosen.reshape(-1), weights=sent.reshape(-1), length=experts)
    return counts / jnp.sum(sent)
