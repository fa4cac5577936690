"""What a method makes of a batch, compiled twice: in lanes by vmap, and split into slices by scan.

Both functions take the algorithm as an argument, so equal algorithms share compiled code, and its
hyper-parameters may differ from lane to lane.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polopt.algorithm import Algorithm, init
from polopt.compose import loss, prepare
from polopt.types import (
    Array,
    Info,
    PolicyOutputs,
    Prepared,
    Trajectories,
    merge_info,
    record,
)

LANES = 8
SEED = 7  # of the key of pieces that draw
TRACES: collections.Counter[str] = collections.Counter()  # how often each function was traced


@record
class Case:
    """A batch, what the current models say of it, and the algorithm that reads both."""

    alg: Algorithm
    trajectories: Trajectories
    outputs: PolicyOutputs
    others: Array | float = 1.0  # factor on the weights of all terms but "policy"


@record
class Outcome:
    """What one call made of a case."""

    credit: Array  # f32[N,T]
    weight: Array  # f32[N,T] of the term "policy", zero where the method has no such term
    loss: Array
    info: Info
    gradient: PolicyOutputs  # of the loss, with respect to the outputs


def measure(case: Case) -> Outcome:
    """Credit, loss, info and gradient of one case. Pure."""
    prepared = _prepared(case)
    (total, info), gradient = _value_and_gradient(case.alg, case.outputs, prepared)
    weight = prepared.rows.weights.get("policy", jnp.zeros_like(prepared.credit))
    return Outcome(credit=prepared.credit, weight=weight, loss=total, info=info, gradient=gradient)


def measure_lanes(cases: Sequence[Case]) -> list[Outcome]:
    """`measure` of up to 8 cases of one shape in one vmapped, compiled call; NumPy leaves."""
    filled = [*cases, *[cases[0]] * (LANES - len(cases))]
    stacked = jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *filled)
    out = jax.tree.map(np.asarray, _lanes(stacked))
    return _unstacked(out, len(cases))


def measure_split(case: Case, slices: Array) -> Outcome:
    """The same from slices: the batch is prepared whole, the loss is taken slice by slice.

    Args:
      slices: i32[S,M], rows of each slice. Every real row stands in it once; ragged slices are
        filled up with a padding row of the batch.
    """
    credit, weight, total, infos, gradient = jax.tree.map(np.asarray, _split(case, slices))
    info = functools.reduce(merge_info, _unstacked(infos, len(slices)))
    return Outcome(
        credit=credit,
        weight=weight,
        loss=total,
        gradient=gradient,
        info=jax.tree.map(np.asarray, info),
    )


def _unstacked(tree: Any, n: int) -> list[Any]:
    leaves, structure = jax.tree.flatten(tree)
    return [structure.unflatten([leaf[i] for leaf in leaves]) for i in range(n)]


@jax.jit
def _lanes(cases: Case) -> Outcome:
    TRACES["lanes"] += 1
    return jax.vmap(measure)(cases)


@jax.jit
def _split(case: Case, slices: Array) -> tuple:
    TRACES["split"] += 1
    prepared = _prepared(case)

    def step(carry: tuple, index: Array) -> tuple:
        def of_slice(outputs: PolicyOutputs) -> tuple[Array, Info]:
            own, rows = jax.tree.map(lambda x: x[index], (outputs, prepared.rows))
            return loss(case.alg, own, dataclasses.replace(prepared, rows=rows))

        (value, info), gradient = jax.value_and_grad(of_slice, has_aux=True)(case.outputs)
        return jax.tree.map(jnp.add, carry, (value, gradient)), info

    start = jax.tree.map(jnp.zeros_like, (case.outputs.logp[0, 0], case.outputs))
    (total, gradient), infos = jax.lax.scan(step, start, slices)
    weight = prepared.rows.weights.get("policy", jnp.zeros_like(prepared.credit))
    return prepared.credit, weight, total, infos, gradient


def _prepared(case: Case) -> Prepared:
    state = init(case.alg, prompts=case.trajectories.tokens.shape[0])
    prepared, _ = prepare(case.alg, case.trajectories, state=state, key=jax.random.key(SEED))
    weights = {
        name: weight if name == "policy" else weight * case.others
        for name, weight in prepared.rows.weights.items()
    }
    return dataclasses.replace(prepared, rows=dataclasses.replace(prepared.rows, weights=weights))


def _value_and_gradient(alg: Algorithm, outputs: PolicyOutputs, prepared: Prepared) -> tuple:
    return jax.value_and_grad(lambda o: loss(alg, o, prepared), has_aux=True)(outputs)
