"""Static handles on a decoder: what the rest of polopt calls a model.

Outside this package a model is a handle (hashable, equal by value, safe as a static argument) and
a `params` pytree of arrays; every method is a pure function of its arguments.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from polopt.errors import PoloptError
from polopt.models import attends, intercept
from polopt.models.attention import KeyValue
from polopt.models.config import DecoderConfig
from polopt.models.decoder import Attend, Decoder
from polopt.models.experts import Routing
from polopt.models.flat import Flat
from polopt.models.kernels import KINDS, LANES, XLA, covers_decoding, in_blocks
from polopt.models.layout import Layout
from polopt.models.spread import on_heads
from polopt.types import record

Params = dict[str, Any]
Integers = Array | np.ndarray
Cache = tuple[KeyValue, ...]  # one pair of arrays per layer, each [rows, K, positions, d]
_DTYPES = ("float32", "bfloat16")


@record
class Prompt:
    """Keys and values of P prompts, held once each however many rows continue them."""

    cache: Cache  # each array [P,K,S,d]
    length: Array  # i32[P] real tokens are [0, length)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A decoder without its weights.

    Args:
      config: the decoder's shape.
      compute_dtype: "float32" or "bfloat16", in which matmuls and the residual stream run. Norms,
        softmax and all results are float32; `params` may have either type.
      quantised: what `params` hold of the layers' matrices, if not their numbers:
        `polopt.models.quantise.quantise` makes such a handle, and its parameters.
      attention: which code computes it, one of `polopt.models.kernels.KINDS`: the same numbers, up
        to rounding.

    Raises:
      PoloptError: another `compute_dtype` or `attention`.

    >>> config = DecoderConfig(vocab_size=64, hidden_size=16, num_layers=2, num_heads=2,
    ...                        num_kv_heads=1, head_dim=8, mlp_size=32, max_length=128)
    >>> model = LanguageModel(config)
    >>> params = model.init(jax.random.key(0))
    >>> model.hidden(params, jnp.zeros((3, 5), jnp.int32)).shape
    (3, 5, 16)
    """

    config: DecoderConfig
    compute_dtype: str = "float32"
    quantised: str | None = None
    attention: str = XLA

    def __post_init__(self) -> None:
        for name, accepted in (("compute_dtype", _DTYPES), ("attention", KINDS)):
            if (value := getattr(self, name)) not in accepted:
                raise PoloptError(
                    f"LanguageModel.{name} is {value!r}: accepted are {', '.join(accepted)}"
                )

    def init(self, key: Array) -> Params:
        """Random float32 weights: a nested dict, layers under `params["layers"]["0"]` and on."""
        return _init(self, key)

    def hidden(
        self,
        params: Params,
        tokens: Integers,
        positions: Integers | None = None,
        *,
        remat: bool = False,
    ) -> Array:
        """Full causal forward pass.

        Args:
          params: as made by `init`.
          tokens: i32[N,T], padded on the right; what the padding holds changes no real position.
          positions: i32[N,T] for the rotary embedding; 0..T-1 when not given.
          remat: recompute each layer in the backward pass instead of keeping its insides.

        Returns:
          f32[N,T,D], final norm applied: entry [n,t] has seen tokens[n, :t+1].
        """
        N, T = self._check(tokens, "hidden")
        if positions is None:
            positions = _from_zero(N, T)
        attend = attends.causal(self.attention)
        return self._run(params, tokens, positions, attend, remat=remat)[0]

    def states(self, params: Params, layout: Layout, *, remat: bool = False) -> Array:
        """The forward pass over a layout: each prompt once, and what follows it packed.

        Equal to `hidden` on the rows that the layout was planned from, and so are gradients.

        Returns:
          f32[P + B*C, D]: the flat states of the layout (`polopt.models.layout`); with an axis of
          shards in front, if its leaves have one.
        """
        shards = layout.prompt.shape[:-2]
        if shards:
            layout = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), layout)
        layout = jax.tree.map(jnp.asarray, layout)
        P, S = self._check(layout.prompt, "states")
        flat = Flat(math.prod(shards), (P, S), layout.tokens.shape)
        length = layout.prompt_length
        positions = attends.by_row(length, layout.tokens.shape[0]) + layout.place
        attend = attends.laid_out(self.attention, flat, length, positions, layout.segment)
        tokens = flat.joined(layout.prompt, layout.tokens)
        places = flat.joined(_from_zero(P, S), positions)
        hidden = self._run(params, tokens, places, attend, remat=remat)[0]
        prompts, bins = flat.apart(hidden)
        parts = _last(prompts, length), bins
        return jnp.concatenate([x.reshape(*shards, -1, x.shape[-1]) for x in parts], axis=-2)

    def routing(self, params: Params, tokens: Integers) -> tuple[Routing, ...]:
        """Where every layer with experts sends each of `tokens i32[N,T]`; () without experts."""
        N, T = self._check(tokens, "routing")
        positions = _from_zero(N, T)
        return self._run(params, tokens, positions, attends.causal(self.attention))[2]

    def unembedding(self, params: Params) -> Array:
        """[V,D]: the output matrix, tied or not; logits are `hidden @ unembedding.T`."""
        name = "embed" if self.config.tie_embeddings else "unembed"
        return params[name]["embedding"]

    def logits(self, params: Params, hidden: Array) -> Array:
        """f32[...,V] of `hidden f32[...,D]`; use it on few positions, as V is large."""
        dtype = jnp.dtype(self.compute_dtype)
        logits = jnp.einsum(
            "...d,vd->...v",
            hidden.astype(dtype),
            self.unembedding(params).astype(dtype),
            preferred_element_type=jnp.float32,
        )
        cap = self.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def read_only(self, params: Params) -> Params:
        """The same parameters for a model that is never trained: rounded here, not in every call.

        All but the scales of norms are rounded to `compute_dtype` before they are used, so that
        nothing changes but the bytes they take. Quantised parameters stay as they are.
        """
        if self.quantised or self.compute_dtype == "float32":
            return params

        def rounded(path: Any, leaf: Array) -> Array:
            return leaf if path[-1].key == "scale" else leaf.astype(self.compute_dtype)

        return jax.tree_util.tree_map_with_path(rounded, params)

    @property
    def fixed_unembedding(self) -> bool:
        """Whether the output matrix stays as it is when the model is trained."""
        return False

    @property
    def logit_softcap(self) -> float | None:
        """What logits are softly capped by (Gemma 2)."""
        return self.config.logit_softcap

    def prefill(self, params: Params, tokens: Integers, lengths: Integers) -> tuple[Prompt, Array]:
        """Read prompts once: their keys and values, and the hidden state of their last token.

        Args:
          params: as made by `init`.
          tokens: i32[P,S], padded on the right.
          lengths: i32[P], at least 1 (0 for a prompt that is padding: its state is meaningless).

        Returns:
          (Prompt, f32[P,D]).
        """
        P, S = self._check(tokens, "prefill")
        attend = attends.keeping(self.attention)
        hidden, cache = self._run(params, tokens, _from_zero(P, S), attend)[:2]
        return Prompt(cache=cache, length=jnp.asarray(lengths)), _last(hidden, lengths)

    def empty_cache(self, rows: int, length: int) -> Cache:
        """Room for `length` own tokens of `rows` rows: zeros, two [rows,K,length,d] per layer.

        Layers have arrays of their own, as a loop updates those in place where it would copy a
        slice of stacked ones; positions come after heads, so that a head's keys lie together. Where
        kernels read them, `length` is rounded up to whole blocks.
        """
        config = self.config
        if covers_decoding(self.attention, config.head_dim):
            length = in_blocks(length)
        shape = (rows, config.num_kv_heads, length, config.head_dim)

        def zeros() -> Array:
            return on_heads(jnp.zeros(shape, jnp.dtype(self.compute_dtype)))

        return tuple((zeros(), zeros()) for _ in range(config.num_layers))

    def decode(
        self,
        params: Params,
        prompt: Prompt,
        cache: Cache,
        tokens: Integers,
        step: Integers | int,
        place: Integers | None = None,
    ) -> tuple[Cache, Array]:
        """One cached step of the rows that continue shared prompts.

        The cache is a ring: step `s` writes at `s % length`, in all rows alike. A row that began
        later than others has a smaller place, and sees as much of the ring as it wrote itself.

        Args:
          params: as made by `init`.
          prompt: P prompts, from `prefill`; rows of one are neighbours, as many of each.
          cache: from `empty_cache` or `grow_cache`; a row has at most its length of own tokens.
          tokens: i32[N], the next token of each row.
          step: i32[], calls before this one.
          place: i32[N], own tokens of each row before this one; `step` if not given.

        Returns:
          (cache with the tokens added, f32[N,D] hidden states after them).
        """
        rows = tokens.shape[0]
        place = jnp.broadcast_to(jnp.asarray(step if place is None else place), (rows,))
        memory = tuple(zip(prompt.cache, cache, strict=True))
        positions = _after(prompt, rows) + place[:, None]
        attend = attends.cached(self.attention, prompt.length, positions, step, place)
        hidden, cache, _ = self._run(params, tokens[:, None], positions, attend, memory)
        return cache, hidden[:, 0]

    def module(self, rngs: nnx.Rngs) -> Decoder:
        """The decoder itself, with random weights."""
        decoder = Decoder(self.config, jnp.dtype(self.compute_dtype), rngs)
        if self.quantised is None:
            return decoder
        return intercept.quantised(decoder, self.quantised)

    def _run(
        self,
        params: Params,
        tokens: Integers,
        positions: Integers,
        attend: Attend,
        memory: tuple[Any, ...] | None = None,
        *,
        remat: bool = False,
    ) -> tuple[Array, tuple[Any, ...], tuple[Routing, ...]]:
        decoder = nnx.merge(_graph(self), params)
        tokens, positions = jnp.asarray(tokens), jnp.asarray(positions)
        return decoder(tokens, positions, attend, memory, remat=remat)

    def _check(self, tokens: Integers, where: str) -> tuple[int, int]:
        if tokens.ndim != 2 or tokens.shape[1] > self.config.max_length:
            raise PoloptError(
                f"LanguageModel.{where}: tokens have shape {tokens.shape}: "
                f"give [rows, positions] with at most {self.config.max_length} positions"
            )
        return tokens.shape[0], tokens.shape[1]


def grow_cache(cache: Cache, length: int) -> Cache:
    """The same cache with room for `length` own tokens, at least as many as it has.

    One in whole blocks stays in whole blocks.
    """

    def grow(room: Array) -> Array:
        wanted = length if room.shape[2] % LANES else in_blocks(length)
        return jnp.pad(room, ((0, 0), (0, 0), (0, wanted - room.shape[2]), (0, 0)))

    return jax.tree.map(grow, cache)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ValueModel:
    """A critic: a decoder and one linear value head.

    Its `params` are {"decoder": as a LanguageModel's, "head": {"kernel" [D], "bias" []}}.
    """

    config: DecoderConfig
    compute_dtype: str = "float32"
    attention: str = XLA

    @property
    def decoder(self) -> LanguageModel:
        """The handle of the critic's decoder."""
        return LanguageModel(self.config, self.compute_dtype, attention=self.attention)

    def init(self, key: Array, policy_params: Params | None = None) -> Params:
        """Weights whose values are all zero; the decoder is copied from the policy if given."""
        decoder = self.decoder.init(key) if policy_params is None else policy_params
        head = {"kernel": jnp.zeros(self.config.hidden_size), "bias": jnp.zeros(())}
        return {"decoder": jax.tree.map(jnp.copy, decoder), "head": head}

    def value(self, params: Params, tokens: Integers, *, remat: bool = False) -> Array:
        """f32[N,T]: entry [n,t] is V of the state before tokens[n,t]; 0 at t = 0."""
        after = self.value_after(params, tokens, remat=remat)
        return jnp.pad(after[:, :-1], ((0, 0), (1, 0)))

    def values(self, params: Params, layout: Layout, *, remat: bool = False) -> Array:
        """f32[P + B*C]: the value of every flat state of a layout, as `LanguageModel.states`."""
        states = self.decoder.states(params["decoder"], layout, remat=remat)
        return _linear(params["head"], states)

    def value_after(self, params: Params, tokens: Integers, *, remat: bool = False) -> Array:
        """f32[N,T]: entry [n,t] is V of the state after tokens[n,t] (bootstraps cut rows)."""
        hidden = self.decoder.hidden(params["decoder"], tokens, remat=remat)
        return _linear(params["head"], hidden)


def _linear(head: Params, states: Array) -> Array:
    return states @ head["kernel"].astype(jnp.float32) + head["bias"].astype(jnp.float32)


@functools.lru_cache(maxsize=64)
def abstract_module(model: LanguageModel) -> Decoder:
    """The module without numbers: the same object for equal handles."""
    return nnx.eval_shape(lambda: model.module(nnx.Rngs(0)))


@functools.lru_cache(maxsize=64)
def _graph(model: LanguageModel) -> Any:
    """The module's static half: the same object for equal handles, so nothing retraces."""
    return nnx.graphdef(abstract_module(model))


@functools.partial(jax.jit, static_argnums=0)
def _init(model: LanguageModel, key: Array) -> Params:
    return nnx.to_pure_dict(nnx.state(model.module(nnx.Rngs(key))))


def _from_zero(rows: int, positions: int) -> Array:
    """i32[rows,positions]."""
    return jnp.broadcast_to(jnp.arange(positions)[None], (rows, positions))


def _last(hidden: Array, lengths: Integers) -> Array:
    """[P,D] of `hidden [P,S,D]`: after the last real token."""
    end = jnp.maximum(lengths - 1, 0)[:, None, None]
    return jnp.take_along_axis(hidden, end, 1)[:, 0]


def _after(prompt: Prompt, rows: int) -> Array:
    """i32[N,1]: the position of each row's first own token."""
    return attends.by_row(prompt.length, rows)
