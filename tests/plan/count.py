"""Counts that know nothing of polopt.plan: from formulas of papers, and from traced programs."""

from __future__ import annotations

import math
from typing import Any

import jax


def parameters(config: Any) -> int:
    """Weights of a decoder, as the model cards of Llama and Qwen count them."""
    D, d, M = config.hidden_size, config.head_dim, config.mlp_size
    q, kv = config.num_heads * d, config.num_kv_heads * d
    attention = D * q + 2 * D * kv + q * D
    biases = (q + 2 * kv) if config.qkv_bias else 0
    layer = attention + biases + 3 * D * M + 2 * D
    tables = 1 if config.tie_embeddings else 2
    return tables * config.vocab_size * D + config.num_layers * layer + D


def products(fn: Any, *args: Any, trips: int) -> int:
    """Operations of all matrix products of `fn(*args)`, two for a product and its sum.

    Args:
      fn: a function.
      args: its arguments, or their shapes.
      trips: how often loops run whose length is not in the program.
    """
    closed = jax.make_jaxpr(fn)(*args)
    return _products(closed.jaxpr, trips)


def _products(jaxpr: Any, trips: int) -> int:
    return sum(_of(equation, trips) for equation in jaxpr.eqns)


def _of(equation: Any, trips: int) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        (out,), left = equation.outvars, equation.invars[0].aval.shape
        return 2 * math.prod(out.aval.shape) * math.prod(left[i] for i in contracted)
    inner = [_products(found, trips) for found in _inside(params)]
    if name == "cond":
        return max(inner, default=0)
    return sum(inner) * {"scan": params.get("length", 1), "while": trips}.get(name, 1)


def _inside(params: dict[str, Any]) -> list[Any]:
    """The programs among the parameters of an operation."""
    found = []
    for value in params.values():
        for one in value if isinstance(value, list | tuple) else [value]:
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                found.append(one)
    return found
