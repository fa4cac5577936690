"""The whole idea on one page: the two moments of a method, and the loss between them.

prepare   reward side and weights, once per rollout batch, global, without gradient
loss      trajectory side, inside the gradient, on any slice of the prepared rows

loss(θ) = − Σ_terms Σ_{n,t} weight[n,t] · objective[n,t](θ)
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from polopt.aggregate import Window
from polopt.algorithm import (
    CLOCKS,
    Algorithm,
    State,
    needs,
    pieces,
    single_step,
    terms,
    wants,
)
from polopt.columns import name_of
from polopt.errors import PoloptError
from polopt.numerics import row_length, token_info
from polopt.transform import (
    Transform,
    run,
    takes,
    walk,
)
from polopt.types import (
    Array,
    Context,
    Credit,
    Info,
    Mean,
    PolicyOutputs,
    Prepared,
    Rows,
    Surrogate,
    Term,
    Trajectories,
)

# Columns that every batch has: `logp_behaviour` undoes the filters of the sampler.
RECORDED = ("logp_sampler", "log_keep", "logp_behaviour")

# ---------------------------------------------------------------- prepare


def prepare(
    alg: Algorithm,
    trajectories: Trajectories,
    *,
    state: State | None = None,
    key: Array | None = None,
    step_of: Array | None = None,
) -> tuple[Prepared, State]:
    """Credit and weights of a whole rollout batch. Pure, global, constant in the loss.

    Args:
      trajectories: the batch; recorded columns that the pieces need must be there.
      state: memory from `init`; not needed for methods without memory.
      key: for pieces that draw; addressed by row id and position.
      step_of: i32[N] in [0, N), the optimiser step of each row; one step for all if not given.

    Raises:
      PoloptError: a needed column is missing, or memory or a key is.
    """
    state = state if state is not None else {clock: {} for clock in CLOCKS}
    _check_columns(alg, trajectories, step_of)
    trajectories = _clean(trajectories)
    credit, rollout = _reward_side(alg, trajectories, state, key)
    keep = credit.keep & trajectories.action_mask
    value = jnp.where(keep & trajectories.scored[:, None], credit.per_token(), 0)
    before = {
        path: transform.hooks.before(trajectories, credit, **transform.arguments())
        for path, transform in walk(alg.trajectory, "trajectory")
        if transform.hooks.before
    }
    step = jnp.zeros_like(trajectories.id) if step_of is None else step_of
    members = {name: _members(writers, trajectories, keep) for name, writers in terms(alg).items()}
    if credit.share is not None:
        members = {name: credit.share * counted for name, counted in members.items()}
    rows = Rows(
        credit=jax.lax.stop_gradient(value),
        mask=keep,
        scored=trajectories.scored,
        members=members,
        weights={},
        before=before,
        columns={**_columns(alg, trajectories), **credit.targets},
        group=trajectories.group,
        turn=trajectories.turn,
        id=trajectories.id,
        step=step,
    )
    shared = {"memory": state["update"], "key": key}
    prepared = reweigh(alg, Prepared(rows=rows, shared=shared), step)
    return prepared, {**state, "rollout": rollout}


def reweigh(alg: Algorithm, prepared: Prepared, step_of: Array) -> Prepared:
    """The same credit with the denominators of another assignment of rows to optimiser steps."""
    window = Window(
        step=jnp.where(_real(prepared.rows), step_of, -1),
        group=prepared.rows.group,
        turn=prepared.rows.turn,
    )
    weights = {}
    for name, writers in terms(alg).items():
        how = next((t.aggregate for t in writers if t.aggregate is not None), alg.aggregate)
        weights[name] = how.fn(prepared.rows.members[name], window, **how.arguments())
    rows = dataclasses.replace(prepared.rows, weights=weights, step=step_of)
    return dataclasses.replace(prepared, rows=rows)


def _real(rows: Rows) -> Array:
    return rows.group >= 0


def _check_columns(alg: Algorithm, trajectories: Trajectories, step_of: Array | None) -> None:
    known = set(trajectories.columns) | set(RECORDED)
    optional = {"logp_old"} if single_step(alg) and step_of is None else set()
    early = set(needs(alg, "reward"))
    early |= {n for _, t in walk(alg.trajectory) if t.hooks.before for n in t.needs}
    missing = [n for n in needs(alg) if n not in known and (n in early or n not in optional)]
    if missing:
        users = [t.name for _, t in pieces(alg) if missing[0] in t.needs]
        raise PoloptError(
            f"{users[0]} needs the column {missing[0]!r}: put it into "
            f"Trajectories.columns (there are {', '.join(sorted(known))})"
        )


def _clean(trajectories: Trajectories) -> Trajectories:
    """Zero what stands outside the action mask, so that a NaN planted there changes nothing.

    All that was recorded of a token is among the columns afterwards.
    """
    mask = trajectories.action_mask

    def clean(x: Array) -> Array:
        if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        inside = mask.reshape(mask.shape + (1,) * (x.ndim - 2))
        return jnp.where(inside, _full(x), 0)

    real = jnp.arange(mask.shape[1])[None] < trajectories.length[:, None]
    # A row without actions is paid at its prompt; every other reward stands at an action.
    earned = trajectories.scored[:, None] & real & (mask | (row_length(mask) == 0)[:, None])
    parts = {name: jnp.where(earned, _full(x), 0) for name, x in trajectories.reward_parts.items()}
    sampler, kept = clean(trajectories.logp_sampler), clean(trajectories.log_keep)
    always = dict(zip(RECORDED, (sampler, kept, sampler + kept), strict=True))
    columns = {**jax.tree.map(clean, trajectories.columns), **always}
    return dataclasses.replace(
        trajectories, reward_parts=parts, logp_sampler=sampler, log_keep=kept, columns=columns
    )


def _full(x: Array) -> Array:
    """At least float32: bfloat16 columns are computed with, never in."""
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


def _reward_side(
    alg: Algorithm, trajectories: Trajectories, state: State, key: Array | None
) -> tuple[Credit, dict[str, Any]]:
    rollout = dict(state["rollout"])

    def call(path: str, transform: Transform, credit: Credit) -> Credit:
        extra = _extras(path, transform, state, key)
        out = transform.fn(credit, trajectories, **transform.arguments(), **extra)
        if transform.card.clock == "rollout":
            out, rollout[path] = out
        return out

    total = sum(trajectories.reward_parts.values(), jnp.zeros(trajectories.tokens.shape))
    start = Credit(reward=total, keep=trajectories.action_mask)
    return run(alg.reward, start, call, _add_credits, "reward"), rollout


def _extras(path: str, transform: Transform, state: State, key: Array | None) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if takes(transform.fn, "memory"):
        memory = state.get(transform.card.clock or "", {})
        if path not in memory:
            raise PoloptError(f"{transform.name} keeps memory: pass state=polopt.init(alg)")
        extra["memory"] = memory[path]
    if takes(transform.fn, "key"):
        if key is None:
            raise PoloptError(f"{transform.name} draws at random: pass key=jax.random.key(seed)")
        extra["key"] = jax.random.fold_in(key, zlib.crc32(path.encode()))
    return extra


def _add_credits(start: Credit, outs: list[Credit], weights: tuple) -> Credit:
    keep = outs[0].keep
    for out in outs[1:]:
        keep = keep & out.keep
    targets = {name: x for out in outs for name, x in out.targets.items()}
    shares = [out.share for out in outs if out.share is not None]
    share = shares[0] if shares else None
    made = dataclasses.replace(start, keep=keep, targets=targets, share=share)
    if all(out.value is None for out in outs):
        total = sum(w * out.sequence for w, out in zip(weights, outs, strict=True))
        return dataclasses.replace(made, sequence=total)
    total = sum(w * out.per_token() for w, out in zip(weights, outs, strict=True))
    return dataclasses.replace(made, sequence=None, value=total)


def _columns(alg: Algorithm, trajectories: Trajectories) -> dict[str, Array]:
    known = trajectories.columns
    return {name: known[name] for name in needs(alg, "trajectory") if name in known}


def _members(writers: list[Transform], trajectories: Trajectories, keep: Array) -> Array:
    for transform in writers:
        if transform.hooks.members:
            return transform.hooks.members(trajectories, keep, **transform.arguments())
    return keep


# ---------------------------------------------------------------- loss


def loss(alg: Algorithm, outputs: PolicyOutputs, prepared: Prepared) -> tuple[Array, Info]:
    """The loss of any slice of the prepared rows: slices sum to the whole, without a mean.

    Args:
      outputs: what the current models say of the same rows.

    Returns:
      The scalar to minimise, and mergeable measurements.

    Raises:
      PoloptError: outputs of another shape than the rows, or without a column that a piece wants.
    """
    rows = prepared.rows
    _check_outputs(alg, outputs, rows.mask.shape)
    outputs = _clean_outputs(outputs, rows.mask)
    zero = jnp.zeros_like(outputs.logp)
    start = Surrogate(logp=outputs.logp, log_ratio=zero, ratio=zero + 1)
    columns = dict(rows.columns)
    # One optimiser step per batch: prepare has checked it.
    if "logp_old" in needs(alg, "trajectory") and "logp_old" not in columns:
        columns["logp_old"] = jax.lax.stop_gradient(outputs.logp)
    rows = dataclasses.replace(rows, columns=columns)
    shared = prepared.shared

    def call(path: str, transform: Transform, surrogate: Surrogate) -> Surrogate:
        extra = _extras(path, transform, {"update": shared["memory"]}, shared["key"])
        context = Context(
            credit=rows.credit,
            mask=rows.mask,
            rows=rows,
            outputs=outputs.columns,
            before=rows.before.get(path, {}),
            shared=shared,
        )
        return transform.fn(surrogate, context, **transform.arguments(), **extra)

    done = run(alg.trajectory, start, call, _add_surrogates, "trajectory")
    total, info = zero.sum(), dict(done.info)
    if "entropy" in outputs.columns:
        info["policy/entropy"] = token_info(outputs.columns["entropy"], rows.mask)
    for name, term in done.terms.items():
        objective, weight = weighted(term, rows.weights[name])
        total -= objective
        info[f"objective/{name}"] = Mean(sum=objective, weight=weight)
    return total, info


def weighted(term: Term, weights: Array) -> tuple[Array, Array]:
    """Σ weight·objective over the term's mask, and the weight of the slice."""
    counted = term.mask & (weights > 0)
    return jnp.sum(jnp.where(counted, weights * term.objective, 0)), jnp.sum(weights)


def _check_outputs(alg: Algorithm, outputs: PolicyOutputs, shape: tuple[int, ...]) -> None:
    missing = [want for want in wants(alg) if name_of(want) not in outputs.columns]
    if missing:
        users = [t.name for _, t in pieces(alg) if missing[0] in t.wants]
        raise PoloptError(
            f"{users[0]} reads {name_of(missing[0])!r} of the current models: put it into "
            "PolicyOutputs.columns"
        )
    for name, x in {"logp": outputs.logp, **outputs.columns}.items():
        if x.shape[:2] != shape[: max(x.ndim, 1)]:
            raise PoloptError(
                f"outputs of {name!r} have shape {x.shape}, the rows {shape}: entry "
                "[n,t] speaks of tokens[n,t], there are no shifted copies"
            )


def _clean_outputs(outputs: PolicyOutputs, mask: Array) -> PolicyOutputs:
    def clean(x: Array) -> Array:
        if x.ndim < 2:  # one number per row, such as a learned log-partition
            return jnp.where(jnp.any(mask, axis=1), _full(x), 0)
        inside = mask.reshape(mask.shape + (1,) * (x.ndim - 2))
        return jnp.where(inside, _full(x), 0)

    return jax.tree.map(clean, outputs)


def _add_surrogates(start: Surrogate, outs: list[Surrogate], weights: tuple) -> Surrogate:
    total: dict[str, Term] = {}
    for weight, out in zip(weights, outs, strict=True):
        for name, term in out.terms.items():
            if term is start.terms.get(name):
                continue  # not this branch's
            objective = jnp.where(term.mask, weight * term.objective, 0)
            mask = term.mask
            if name in total:
                objective, mask = objective + total[name].objective, mask | total[name].mask
            total[name] = Term(objective=objective, mask=mask)
    info = {name: entry for out in outs for name, entry in out.info.items()}
    return dataclasses.replace(outs[-1], terms={**start.terms, **total}, info=info)


def objective(alg: Algorithm) -> Callable[[PolicyOutputs, Trajectories], tuple[Array, Info]]:
    """`f(outputs, trajectories) -> (loss, info)`: everything in one pure call.

    For people with their own loop: the batch is one optimiser step, credit and weights are
    computed inside. For micro-batches, call `prepare` once and `loss` on slices.
    """

    def f(outputs: PolicyOutputs, trajectories: Trajectories) -> tuple[Array, Info]:
        prepared, _ = prepare(alg, trajectories)
        return loss(alg, outputs, prepared)

    return f
