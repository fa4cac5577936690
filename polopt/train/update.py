"""The pure update: `(state, given, trajectories, prepared, rows, layout) -> (state, info)`, a step.

The gradient function has no collective in it. Rows that are independent are pulled through the
model micro-batch by micro-batch. Where rows are coupled through the current policy, the
*cotangent form* is exact whatever the loss: score the step's rows once without gradient, take
`c = ∂loss/∂outputs` on the whole step, and pull `Σ c·outputs` through the model by micro-batch.
Under `pmap` gradients are summed over devices once, outside `grad`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from polopt.algorithm import Algorithm, State, advance, coupling, wants
from polopt.compose import loss
from polopt.models.layout import Layout
from polopt.models.score import score
from polopt.train.models import together
from polopt.train.rows import in_order, side_by_side, take, take_prepared
from polopt.transform import Want
from polopt.types import (
    Array,
    Count,
    Info,
    Max,
    Mean,
    PolicyOutputs,
    Prepared,
    Trajectories,
    record,
)

Modules = dict[str, Any]  # {"policy": LanguageModel, "critic": ValueModel, "teacher": ...}
Params = dict[str, Any]  # some of the same names


@record
class TrainState:
    """What one optimiser step reads and writes."""

    params: Params  # of the models that are trained: what moves of them
    opt_state: Any
    memory: State
    step: Array  # i32, optimiser steps taken
    skipped: Array  # i32, of those, skipped for a gradient that was not finite


def init_state(
    params: Params, optimizer: optax.GradientTransformation, memory: State
) -> TrainState:
    """The state before the first step; all is copied, so the caller's arrays stay alive."""
    params, memory = jax.tree.map(jnp.copy, (params, memory))
    return TrainState(
        params=params,
        opt_state=optimizer.init(params),
        memory=memory,
        step=jnp.int32(0),
        skipped=jnp.int32(0),
    )


def make_update(
    alg: Algorithm,
    modules: Modules,
    optimizer: optax.GradientTransformation,
    *,
    axis: str | None = None,
    shards: int = 1,
    remat: bool = False,
) -> Callable[..., tuple[TrainState, Info]]:
    """One optimiser step on some rows of a prepared batch, to be jitted or pmapped.

    The step is `(state, given, trajectories, prepared, splits, layout) -> (state, info)`, where
    `given` has the parameters of models that are read but not trained ("teacher", "reference") and
    the bases of those that are trained by adapters, often {}; `splits i32[k,m]` are the numbers of
    the rows, of a micro-batch each (one forward and backward pass); and `layout` says where the
    tokens of each are computed (`plan` of these splits; None: in rows, padded). How rows are split
    changes rounding only.

    Args:
      modules: static handles of the models that the loss reads, by name: those with parameters in
        the state are trained, the others are constants.
      axis: the pmap axis over which the splits of a step are spread, if any.
      shards: equal blocks of splits that are computed side by side; divides k.
      remat: recompute each layer in the backward pass.
    """

    def update(
        state: TrainState,
        given: Params,
        trajectories: Trajectories,
        prepared: Prepared,
        splits: Array,
        layout: Layout | None = None,
    ) -> tuple[TrainState, Info]:
        # Memory on the update clock moves between the steps of a batch.
        shared = {**prepared.shared, "memory": state.memory["update"]}
        prepared = dataclasses.replace(prepared, shared=shared)
        form = _coupled if coupling(alg) in ("group", "batch") else _independent
        parts = side_by_side(splits, layout, shards)
        how = {"shards": shards, "remat": remat}
        outputs = functools.partial(_outputs, alg, modules, given, how)
        grads, info = form(alg, outputs, state.params, trajectories, prepared, parts, axis)
        # Summed over the rows of a step, but averaged over the steps of a batch.
        info = {**info, "policy/loss": _one(info["policy/loss"].value())}
        return apply_gradient(alg, optimizer, state, grads, info)

    return update


Split = tuple[Array, Layout | None]  # rows of a micro-batch, and where they are computed
Outputs = Callable[[Params, Trajectories, Layout | None], PolicyOutputs]  # of trained parameters


def _outputs(
    alg: Algorithm,
    modules: Modules,
    given: Params,
    how: Mapping[str, Any],
    params: Params,
    batch: Trajectories,
    layout: Layout | None,
) -> PolicyOutputs:
    everyone = together(given, params)
    models = {name: (module, everyone[name]) for name, module in modules.items()}
    want = ("logp", *wants(alg))
    return score(models, batch, want, trained=tuple(params), layout=layout, **how)


def _independent(
    alg: Algorithm,
    outputs_of: Outputs,
    params: Params,
    trajectories: Trajectories,
    prepared: Prepared,
    splits: Split,
    axis: str | None,
) -> tuple[Params, Info]:
    def part(params: Params, split: Split) -> tuple[Array, Info]:
        rows, layout = split
        batch = take(trajectories, rows)
        outputs = outputs_of(params, batch, layout)
        value, info = loss(alg, outputs, take_prepared(prepared, rows))
        return value, {**info, **_gap(outputs, batch), "policy/loss": Count(count=value)}

    def one(split: Split) -> tuple[Params, Info]:
        return jax.grad(part, has_aux=True)(params, split)

    grads, info = _sum_over(one, splits)
    return _all_sum(grads, axis), _all_merge(info, axis)


def _coupled(
    alg: Algorithm,
    outputs_of: Outputs,
    params: Params,
    trajectories: Trajectories,
    prepared: Prepared,
    splits: Split,
    axis: str | None,
) -> tuple[Params, Info]:
    def on_rows(params: Params, split: Split) -> PolicyOutputs:
        rows, layout = split
        return outputs_of(params, take(trajectories, rows), layout)

    mine = _flat(jax.lax.map(lambda split: on_rows(params, split), splits))
    cut = splits[0]
    rows, whole = cut.reshape(-1), mine
    gap = _all_merge(_gap(mine, take(trajectories, rows)), axis)
    if axis is not None:
        whole = jax.lax.all_gather(mine, axis, tiled=True)
        rows = jax.lax.all_gather(rows, axis, tiled=True)
    step = take_prepared(prepared, rows)
    (value, info), c = jax.value_and_grad(lambda o: loss(alg, o, step), has_aux=True)(whole)
    if axis is not None:
        start = jax.lax.axis_index(axis) * cut.size
        c = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, cut.size), c)
    c = jax.tree.map(lambda x: x.reshape(*cut.shape, *x.shape[1:]), c)

    def pull(part: tuple[Split, PolicyOutputs]) -> tuple[Params, Info]:
        split, cotangent = part
        _, back = jax.vjp(lambda p: on_rows(p, split), params)
        return back(cotangent)[0], {}

    grads, _ = _sum_over(pull, (splits, c))
    return _all_sum(grads, axis), {**info, **gap, "policy/loss": Count(count=value)}


def _flat(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _sum_over(f: Callable[[Any], tuple[Params, Info]], parts: Any) -> tuple[Params, Info]:
    """Σ of gradients and merge of infos over micro-batches, one at a time."""
    first = jax.tree.map(lambda x: x[0], parts)
    if jax.tree.leaves(parts)[0].shape[0] == 1:
        return f(first)

    def body(total: Params, part: Any) -> tuple[Params, Info]:
        grads, info = f(part)
        return jax.tree.map(jnp.add, total, grads), info

    shapes, _ = jax.eval_shape(f, first)  # traced twice but compiled once
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    grads, infos = jax.lax.scan(body, start, parts)
    return grads, jax.tree.map(_merge_stacked, infos, is_leaf=_is_entry)


def _is_entry(x: Any) -> bool:
    return isinstance(x, Mean | Max | Count)


def _merge_stacked(entry: Mean | Max | Count) -> Mean | Max | Count:
    reduce = jnp.max if isinstance(entry, Max) else jnp.sum
    return jax.tree.map(functools.partial(reduce, axis=0), entry)


def _all_sum(grads: Params, axis: str | None) -> Params:
    return grads if axis is None else jax.lax.psum(grads, axis)


def _all_merge(info: Info, axis: str | None) -> Info:
    if axis is None:
        return info

    def merge(entry: Mean | Max | Count) -> Mean | Max | Count:
        reduce = jax.lax.pmax if isinstance(entry, Max) else jax.lax.psum
        return reduce(entry, axis)

    return jax.tree.map(merge, info, is_leaf=_is_entry)


def _gap(outputs: PolicyOutputs, batch: Trajectories) -> Info:
    """|sampler's − trainer's log-probability|; speaks of the sampler on a batch's first step."""
    sampled = batch.logp_sampler + batch.log_keep
    own = batch.action_mask & (batch.version >= 0)  # the policy's
    gap = jnp.where(own, jnp.abs(jax.lax.stop_gradient(outputs.logp) - sampled), 0)
    tokens = jnp.sum(own, dtype=jnp.float32)
    return {
        "rollout/logp_gap": Mean(sum=jnp.sum(gap), weight=tokens),
        "rollout/logp_gap_max": Max(max=jnp.max(gap)),
    }


def apply_gradient(
    alg: Algorithm,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    grads: Params,
    info: Info,
) -> tuple[TrainState, Info]:
    """Step the optimiser, or leave everything as it was if the gradient is not finite."""
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    stepped = optax.apply_updates(state.params, updates)
    memory = advance(alg, state.memory, info)

    def choose(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    change = jnp.where(finite, optax.tree.norm(updates) / optax.tree.norm(state.params), 0)
    info = {**info, "update/grad_norm": _one(norm), "update/param_change": _one(change)}
    return TrainState(
        params=choose(stepped, state.params),
        opt_state=choose(opt_state, state.opt_state),
        memory=choose(memory, state.memory),
        step=state.step + 1,
        skipped=state.skipped + ~finite,
    ), info


def _one(x: Array) -> Mean:
    return Mean(sum=x, weight=jnp.ones_like(x))


def make_scorer(
    modules: Modules, want: tuple[Want, ...], *, shards: int = 1
) -> Callable[[Params, Trajectories, Array], dict[str, Array]]:
    """`(params, trajectories, splits i32[k,m], layout) -> {column: [k*m,T]}`, without gradient.

    Args:
      modules: static handles, by the names that `want` reads.
      want: columns, "logp" among them if it is wanted.
      shards: equal blocks of splits that are computed side by side; divides k.
    """

    def scorer(
        params: Params, trajectories: Trajectories, splits: Array, layout: Layout | None = None
    ) -> dict[str, Array]:
        models = {name: (module, params[name]) for name, module in modules.items()}

        def part(split: Split) -> dict[str, Array]:
            rows, layout = split
            out = score(models, take(trajectories, rows), want, layout=layout, shards=shards)
            logp = {} if out.logp is None else {"logp": out.logp}
            return {**logp, **out.columns}

        made = jax.lax.map(part, side_by_side(splits, layout, shards))
        return in_order(made, shards)

    return scorer
