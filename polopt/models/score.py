"""`score`: what models say of trajectories, token by token."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
from jax import Array

from polopt.columns import HEADS, Column, by_name, models_of, name_of
from polopt.errors import PoloptError
from polopt.models.axes import FSDP, TENSOR
from polopt.models.head import Head, default_chunk, head_columns, select_rows
from polopt.models.layout import Layout
from polopt.models.spread import ROWS, constrain, gathered_blocks
from polopt.types import PolicyOutputs, Trajectories


class Language(Protocol):
    """What `score` asks of a policy, teacher or reference: `LanguageModel` has it.

    A module may say in which type its logits are multiplied by an attribute `compute_dtype`
    (without one it is the type of the unembedding), by what they are softly capped by
    `logit_softcap`, and that its unembedding is not trained by `fixed_unembedding`. With
    `states(params, layout)` it can be scored over a layout, and a critic with
    `values(params, layout)`.
    """

    def hidden(self, params: Any, tokens: Array) -> Array:
        """[N,T,D]: the state after each token, final norm applied."""
        ...

    def unembedding(self, params: Any) -> Array:
        """[V,D]: logits are `hidden @ unembedding.T`."""
        ...


class Partition(Protocol):
    """What `score` asks of a learned log-partition: `PartitionModel` has it."""

    def log_partition(self, params: Any, state: Array) -> Array:
        """f32[N] of the policy's states `[N,D]` after the prompts."""
        ...


class Value(Protocol):
    """What `score` asks of a critic: `ValueModel` has it."""

    def value(self, params: Any, tokens: Array) -> Array:
        """f32[N,T]: entry [n,t] is the value of the state before `tokens[n,t]`."""
        ...


def score(
    models: Mapping[str, tuple[Any, Any]],
    trajectories: Trajectories,
    want: Sequence[str | Column] = ("logp",),
    *,
    chunk: int | None = None,
    shards: int = 1,
    trained: Sequence[str] = ("policy",),
    layout: Layout | None = None,
    remat: bool = False,
) -> PolicyOutputs:
    """Columns of every action token under the models, differentiable in those that are trained.

    Entry [n,t] speaks of `tokens[n,t]` given all tokens before it, with logits divided by
    `temperature[n]` and a float32 softmax. Entries outside `action_mask`, at or after `length`, and
    at t = 0 (which nothing predicts) are exactly zero with exactly zero gradient, and the head
    spends nothing on them: its work follows the number of scored tokens, its memory is one chunk of
    logits. Pure; works under jit, vmap, pmap, scan and reverse-mode grad (once: neither forward
    mode nor second derivatives).

    Args:
      models: {name: (module, params)}. Columns read "policy", "teacher", "reference" or any other
        name that they mention; "value" reads "critic", and "log_z" reads "policy" and "partition".
        A module has `hidden` and `unembedding` (`Language`), a critic has `value` (`Value`), a
        partition `log_partition` (`Partition`). Modules are static: close over them in jit.
      trajectories: the record; `tokens i32[N,T]`, `action_mask`, `length` and `temperature` are
        read.
      want: "logp", "logp_ref", "logp_teacher", "logp_prm", "entropy", "sum_prob_sq", "value",
        "log_z", or a `Column` from `polopt.columns`: `top_k(k)`, `kl_full(to)`, `jsd(beta, to)`,
        your own.
      chunk: positions whose logits exist at one time; `polopt.models.head.default_chunk` if not
        given.
      shards: number of equal blocks of rows that are compacted apart and walked in step. Under
        `jit` with the rows sharded over devices give their number: then no hidden state leaves its
        device, but for those along a mesh's "fsdp", which read a vocabulary in parts, a chunk of
        all their rows at a time. Must divide N. `chunk` counts per block (of "fsdp": of them
        together), and a layout has one plan per block: its leaves an axis of `shards` in front, if
        there are several.
      trained: language models with a gradient; the parameters of the others are constants. Heads
        ("critic", "partition") always have one.
      layout: where tokens are computed (`polopt.models.layout.plan` of these rows), for the same
        numbers at less cost: prompts once per group, no padding.
      remat: recompute each layer in the backward pass; models with a `hidden` that knows it.

    Returns:
      PolicyOutputs: `logp f32[N,T]` (None unless "logp" is wanted) and `columns` {name: [N,T] or
      [N,T,K]} of everything else; "log_z" is [N], zero on padding rows.

    Raises:
      PoloptError: an unknown or repeated column, a column that reads a model which is not given,
        vocabularies that differ, a `chunk` below 1, `shards` that does not divide N.
    """
    plain = [w for w in want if w not in HEADS]
    columns = tuple(by_name(w) if isinstance(w, str) else w for w in plain)
    _check(models, want)
    tokens = jnp.asarray(trajectories.tokens)
    if shards < 1 or tokens.shape[0] % shards:
        raise PoloptError(f"score: shards is {shards}; give a divisor of the {len(tokens)} rows")
    read = [model for w in plain for model in models_of(w)] + ["policy"] * ("log_z" in want)
    how = _How(layout, remat, shards)
    heads = {
        name: _head(*models[name], tokens, name in trained, how) for name in dict.fromkeys(read)
    }
    step = jnp.arange(tokens.shape[1])[None, :]
    inside = (step > 0) & (step < trajectories.length[:, None])
    scored = jnp.asarray(trajectories.action_mask) & inside
    out = {}
    if columns:
        temperature = jnp.asarray(trajectories.temperature)
        used = {name: heads[name] for column in columns for name in column.models}
        out = _score_language(used, (scored, tokens, temperature), how, columns, trained, chunk)
    if "value" in want:
        module, params = models["critic"]
        out["value"] = jnp.where(scored, how.value(module, params, tokens), 0)
    if "log_z" in want:
        module, params = models["partition"]
        last = jnp.clip(trajectories.prompt_length, 1, tokens.shape[1] - 1)
        made = module.log_partition(params, how.before(heads["policy"].hidden, tokens, last))
        out["log_z"] = jnp.where(trajectories.length > 0, made, 0)
    return PolicyOutputs(logp=cast(Array, out.pop("logp", None)), columns=out)


def _check(models: Mapping[str, Any], want: Sequence[str | Column]) -> None:
    names = [name_of(w) for w in want]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise PoloptError(f"score: want names {', '.join(repeated)} more than once")
    for w in want:
        missing = [model for model in models_of(w) if model not in models]
        if missing:
            raise PoloptError(
                f"score: {name_of(w)} reads the model {missing[0]!r}; "
                f"models are {', '.join(models)}"
            )


def _score_language(
    heads: dict[str, Head],
    asked: tuple[Array, Array, Array],
    how: _How,
    columns: tuple[Column, ...],
    trained: Sequence[str],
    chunk: int | None,
) -> dict[str, Any]:
    """Columns of `asked = (scored bool[N,T], tokens i32[N,T], temperature f32[N])`."""
    N, T = asked[0].shape
    sizes = {name: head.unembedding.shape[0] for name, head in heads.items()}
    if len(set(sizes.values())) > 1:
        raise PoloptError(f"score: models must share a vocabulary; their sizes are {sizes}")
    V, D = next(iter(heads.values())).unembedding.shape
    blocks = gathered_blocks(V, how.shards)
    if chunk is None:
        chunk = default_chunk(V // blocks, D, len(heads))
    if chunk < 1:
        raise PoloptError(f"score: chunk is {chunk}; give 1 or more positions")
    source = how.source(asked[1])
    hidden = {name: head.hidden for name, head in heads.items()}
    if blocks > 1:
        how, hidden, source = how.gathered(blocks, hidden, source)
    chunk = min(chunk, -(-N * T // how.shards // 8) * 8)

    def block(
        hidden: dict[str, Array], source: Array, scored: Array, tokens: Array, temperature: Array
    ):
        n = scored.shape[0]
        flat = {
            name: dataclasses.replace(head, hidden=hidden[name]) for name, head in heads.items()
        }
        moving = {name: flat.pop(name) for name in trained if name in flat}
        rows = select_rows(scored, tokens, temperature, source, chunk)
        out = head_columns(columns, chunk, moving, flat, rows)
        return jax.tree.map(lambda leaf: leaf.reshape(n, T, *leaf.shape[1:]), out)

    return how.by_shard(block)(hidden, source, *map(how.cut, asked))


class _How(NamedTuple):
    """How states are computed, and which of them predicts each token.

    With several shards, arrays of states and of their sources have an axis of shards in front.
    """

    layout: Layout | None
    remat: bool
    shards: int

    def states(self, module: Any, params: Any, tokens: Array) -> Array:
        """[states,D]."""
        remat = {"remat": True} if self.remat else {}
        if self.layout is not None:
            return jnp.asarray(module.states(params, self.layout, **remat))
        hidden = jnp.asarray(module.hidden(params, tokens, **remat))
        return self.cut(hidden.reshape(-1, hidden.shape[-1]))

    def source(self, tokens: Array) -> Array:
        """i32[n,T]."""
        if self.layout is not None:
            return jnp.asarray(self.layout.source)
        tokens = self.cut(tokens)
        before = jnp.arange(tokens.shape[-2] * tokens.shape[-1], dtype=jnp.int32) - 1
        own = jnp.maximum(before, 0).reshape(tokens.shape[-2:])
        return own if self.shards == 1 else jnp.broadcast_to(own[None], tokens.shape)

    def value(self, module: Any, params: Any, tokens: Array) -> Array:
        """f32[N,T]: of the state before each token."""
        if self.layout is None:
            return module.value(params, tokens, **({"remat": True} if self.remat else {}))
        values = module.values(params, self.layout, remat=self.remat)
        return self.by_shard(operator.getitem)(values, self.source(tokens))

    def before(self, states: Array, tokens: Array, position: Array) -> Array:
        """[N,D]: of `states [states,D]`, that which predicts one `position i32[N]` of each row."""
        at = self.cut(position[:, None])
        source = jnp.take_along_axis(self.source(tokens), at, axis=-1)[..., 0]
        return self.by_shard(operator.getitem)(states, source)

    def gathered(self, blocks: int, states: Any, source: Array) -> tuple[_How, Any, Array]:
        """With so many shards made one: how, the states of each model, and their sources."""
        fewer = self._replace(shards=self.shards // blocks)
        sizes = {x.shape[1] for x in jax.tree.leaves(states)}
        assert len(sizes) == 1
        offset = jnp.arange(self.shards, dtype=jnp.int32) % blocks * sizes.pop()
        moved = (source + offset[:, None, None]).reshape(-1, source.shape[-1])
        flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), states)
        return fewer, jax.tree.map(fewer.cut, flat), fewer.cut(moved)

    def cut(self, x: Array) -> Array:
        """`x [N, ...]`, with an axis of shards in front if there are several."""
        return x if self.shards == 1 else x.reshape(self.shards, -1, *x.shape[1:])

    def by_shard(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn` of one shard's arrays, applied to each and joined: a tree of [N, ...]."""
        if self.shards == 1:
            return fn

        def apart(*args: Any) -> Any:
            made = jax.vmap(fn)(*args)
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), made)

        return apart


def _head(module: Any, params: Any, tokens: Array, trained: bool, how: _How) -> Head:
    """States and unembedding [V,D]; constants unless the model is trained."""
    if not trained:
        params = jax.lax.stop_gradient(params)
    unembedding = jnp.asarray(module.unembedding(params))
    axes = (TENSOR,) if gathered_blocks(len(unembedding), how.shards) == 1 else (TENSOR, FSDP)
    # Gathered once, and not for every chunk of logits.
    unembedding = constrain(unembedding, axes)
    hidden = how.states(module, params, tokens)
    return Head(
        axes=axes,
        hidden=hidden if how.shards == 1 else constrain(hidden, ROWS),
        unembedding=unembedding,
        dtype=jnp.dtype(getattr(module, "compute_dtype", unembedding.dtype)),
        softcap=getattr(module, "logit_softcap", None),
        fixed_unembedding=getattr(module, "fixed_unembedding", False),
    )
