"""Static handles on a decoder: what the rest of polopt calls a model.

Outside this package a model is a handle (hashable, equal by value, safe as a static argument) and
a `params` pytree of arrays; every method is a pure function of its arguments.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from polopt.errors import PoloptError
from polopt.models.attention import KeyValue, after_prompt, causal
from polopt.models.config import DecoderConfig
from polopt.models.decoder import Attend, Decoder
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

    >>> config = DecoderConfig(vocab_size=64, hidden_size=16, num_layers=2, num_heads=2,
    ...                        num_kv_heads=1, head_dim=8, mlp_size=32, max_length=128)
    >>> model = LanguageModel(config)
    >>> params = model.init(jax.random.key(0))
    >>> model.hidden(params, jnp.zeros((3, 5), jnp.int32)).shape
    (3, 5, 16)
    """

    config: DecoderConfig
    compute_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.compute_dtype not in _DTYPES:
            raise PoloptError(
                f"LanguageModel.compute_dtype is {self.compute_dtype!r}: "
                f"accepted are {' and '.join(_DTYPES)}"
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
            positions = jnp.broadcast_to(jnp.arange(T)[None], (N, T))
        return self._run(params, tokens, positions, _attend_causal, remat=remat)[0]

    def unembedding(self, params: Params) -> Array:
        """[V,D]: the output matrix, tied or not; logits are `hidden @ unembedding.T`."""
        name = "embed" if self.config.tie_embeddings else "unembed"
        return params[name]["embedding"]

    def logits(self, params: Params, hidden: Array) -> Array:
        """f32[...,V] of `hidden f32[...,D]`; use it on few positions, as V is large."""
        dtype = jnp.dtype(self.compute_dtype)
        return jnp.einsum(
            "...d,vd->...v",
            hidden.astype(dtype),
            self.unembedding(params).astype(dtype),
            preferred_element_type=jnp.float32,
        )

    def prefill(
        self, params: Params, tokens: Integers, lengths: Integers, *, remat: bool = False
    ) -> tuple[Prompt, Array]:
        """Read prompts once: their keys and values, and the hidden state of their last token.

        Args:
          params: as made by `init`.
          tokens: i32[P,S], padded on the right.
          lengths: i32[P], at least 1 (0 for a prompt that is padding: its state is meaningless).
          remat: as in `hidden`.

        Returns:
          (Prompt, f32[P,D]).
        """
        P, S = self._check(tokens, "prefill")
        positions = jnp.broadcast_to(jnp.arange(S)[None], (P, S))
        hidden, cache = self._run(params, tokens, positions, _attend_and_keep, remat=remat)
        end = jnp.maximum(lengths - 1, 0)[:, None, None]
        last = jnp.take_along_axis(hidden, end, 1)[:, 0]
        return Prompt(cache=cache, length=jnp.asarray(lengths)), last

    def hidden_after(
        self, params: Params, prompt: Prompt, tokens: Integers, *, remat: bool = False
    ) -> Array:
        """Causal forward pass over rows that continue shared prompts.

        Equal to `hidden` on the concatenated rows, at the cost of each prompt once per group.
        With `prefill` it is differentiable through the prompt as well.

        Args:
          params: as made by `init`.
          prompt: P prompts, from `prefill`.
          tokens: i32[N,C] with N = P * G, row n continuing prompt n // G; padded on the right.
          remat: as in `hidden`.

        Returns:
          f32[N,C,D]: entry [n,t] has seen the prompt and tokens[n, :t+1].
        """
        N, C = self._check(tokens, "hidden_after")
        attend = _attend_after(prompt, jnp.tril(jnp.ones((C, C), bool)))
        positions = _after(prompt, N) + jnp.arange(C)[None]
        return self._run(params, tokens, positions, attend, prompt.cache, remat=remat)[0]

    def empty_cache(self, rows: int, length: int) -> Cache:
        """Room for `length` own tokens of `rows` rows: zeros, two [rows,K,length,d] per layer.

        Layers have arrays of their own, as a loop updates those in place where it would copy a
        slice of stacked ones; positions come after heads, so that a head's keys lie together.
        """
        config = self.config
        shape = (rows, config.num_kv_heads, length, config.head_dim)
        zeros = functools.partial(jnp.zeros, shape, jnp.dtype(self.compute_dtype))
        return tuple((zeros(), zeros()) for _ in range(config.num_layers))

    def decode(
        self, params: Params, prompt: Prompt, cache: Cache, tokens: Integers, step: Integers | int
    ) -> tuple[Cache, Array]:
        """One cached step of the rows that continue shared prompts.

        Args:
          params: as made by `init`.
          prompt: P prompts, from `prefill`.
          cache: from `empty_cache` or `grow_cache`, holding own tokens [0, step).
          tokens: i32[N], the own token number `step` of each row.
          step: i32[], the same for all rows: prompts are not in `cache`, so rows stay aligned.

        Returns:
          (cache with the tokens added, f32[N,D] hidden states after them).
        """
        positions = _after(prompt, tokens.shape[0]) + step
        memory = tuple(zip(prompt.cache, cache, strict=True))
        hidden, cache = self._run(
            params, tokens[:, None], positions, _attend_cached(prompt, step), memory
        )
        return cache, hidden[:, 0]

    def _run(
        self,
        params: Params,
        tokens: Integers,
        positions: Integers,
        attend: Attend,
        memory: tuple[Any, ...] | None = None,
        *,
        remat: bool = False,
    ) -> tuple[Array, tuple[Any, ...]]:
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
    """The same cache with room for `length` own tokens, at least as many as it has."""
    return jax.tree.map(
        lambda room: jnp.pad(room, ((0, 0), (0, 0), (0, length - room.shape[2]), (0, 0))), cache
    )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ValueModel:
    """A critic: a decoder and one linear value head.

    Its `params` are {"decoder": as a LanguageModel's, "head": {"kernel" [D], "bias" []}}.
    """

    config: DecoderConfig
    compute_dtype: str = "float32"

    @property
    def decoder(self) -> LanguageModel:
        """The handle of the critic's decoder."""
        return LanguageModel(self.config, self.compute_dtype)

    def init(self, key: Array, policy_params: Params | None = None) -> Params:
        """Weights whose values are all zero; the decoder is copied from the policy if given."""
        decoder = self.decoder.init(key) if policy_params is None else policy_params
        head = {"kernel": jnp.zeros(self.config.hidden_size), "bias": jnp.zeros(())}
        return {"decoder": jax.tree.map(jnp.copy, decoder), "head": head}

    def value(self, params: Params, tokens: Integers, *, remat: bool = False) -> Array:
        """f32[N,T]: entry [n,t] is V of the state before tokens[n,t]; 0 at t = 0."""
        after = self.value_after(params, tokens, remat=remat)
        return jnp.pad(after[:, :-1], ((0, 0), (1, 0)))

    def value_after(self, params: Params, tokens: Integers, *, remat: bool = False) -> Array:
        """f32[N,T]: entry [n,t] is V of the state after tokens[n,t] (bootstraps cut rows)."""
        hidden = self.decoder.hidden(params["decoder"], tokens, remat=remat)
        head = params["head"]
        return hidden @ head["kernel"].astype(jnp.float32) + head["bias"].astype(jnp.float32)


@functools.lru_cache(maxsize=64)
def _graph(model: LanguageModel) -> Any:
    """The module's static half: the same object for equal handles, so nothing retraces."""
    make = functools.partial(Decoder, model.config, jnp.dtype(model.compute_dtype))
    return nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))


@functools.partial(jax.jit, static_argnums=0)
def _init(model: LanguageModel, key: Array) -> Params:
    decoder = Decoder(model.config, jnp.dtype(model.compute_dtype), nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.state(decoder))


def _after(prompt: Prompt, rows: int) -> Array:
    """i32[N,1]: the position of each row's first own token."""
    return jnp.repeat(prompt.length, rows // prompt.length.shape[0])[:, None]


def _attend_causal(q: Array, k: Array, v: Array, memory: None) -> tuple[Array, None]:
    return causal(q, k, v), memory


def _attend_and_keep(q: Array, k: Array, v: Array, _: None) -> tuple[Array, KeyValue]:
    return causal(q, k, v), (k.swapaxes(1, 2), v.swapaxes(1, 2))


def _seen(prompt: Prompt) -> Array:
    """bool[P,S]: the real tokens of each prompt."""
    S = prompt.cache[0][0].shape[2]
    return jnp.arange(S)[None] < prompt.length[:, None]


def _attend_after(prompt: Prompt, visible: Array) -> Attend:
    def attend(q: Array, k: Array, v: Array, shared: KeyValue) -> tuple[Array, None]:
        own = (k.swapaxes(1, 2), v.swapaxes(1, 2))
        return after_prompt(q, shared, own, _seen(prompt), visible), None

    return attend


def _attend_cached(prompt: Prompt, step: Integers | int) -> Attend:
    def attend(q: Array, k: Array, v: Array, memory: Any) -> tuple[Array, KeyValue]:
        shared, own = memory
        own = jax.tree.map(
            lambda room, new: jax.lax.dynamic_update_slice_in_dim(
                room, new.swapaxes(1, 2), step, axis=2
            ),
            own,
            (k, v),
        )
        visible = (jnp.arange(own[0].shape[2]) <= step)[None]
        return after_prompt(q, shared, own, _seen(prompt), visible), own

    return attend
