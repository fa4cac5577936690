"""What stands between a decoder and its matrix products: qwix, for adapters and quantised weights.

qwix runs a module once, sees which products read which weight, and gives back a module of the same
code whose products go through its provider; it knows a weight by the path of its linear map.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from polopt.errors import PoloptError, missing_extra
from polopt.models.config import DecoderConfig
from polopt.models.decoder import Decoder

BLOCKS: Mapping[str, int | None] = {"int8": None, "int4": 64, "nf4": 64}
"""Kinds of quantised weights, and how many of a column share a scale at most; None for all of it.

The sixteen levels of "nf4" are quantiles of a normal distribution (2305.14314, section 3).
"""
SMALLEST_BLOCK = 8


def quantised(decoder: Decoder, kind: str) -> Decoder:
    """The decoder with the weights of its linear maps quantised."""
    return rewired(decoder, load_qwix().PtqProvider([quantisation(decoder.config, kind)]))


def adapted(
    decoder: Decoder, paths: Iterable[str], kind: str | None, rngs: nnx.Rngs, **how: Any
) -> Decoder:
    """The decoder with an adapter beside each linear map at `paths`.

    Args:
      kind: how all linear maps are quantised, adapted or not; None if they are not.
      how: rank and alpha.
    """
    qwix, config = load_qwix(), decoder.config
    stored = {} if kind is None else storage(kind, linear_maps(config).values())
    rules = [qwix.LoraRule(module_path=_exactly(paths), **stored, **how)]
    others = [] if kind is None else [quantisation(config, kind)]
    return rewired(decoder, qwix.LoraProvider([*rules, *others]), rngs)


def quantisation(config: DecoderConfig, kind: str) -> Any:
    """The rule for all linear maps."""
    maps = linear_maps(config)
    return load_qwix().QuantizationRule(module_path=_exactly(maps), **storage(kind, maps.values()))


def storage(kind: str, sizes: Iterable[int]) -> dict[str, Any]:
    """How weights of linear maps from so many numbers are stored, in qwix's words.

    Raises:
      PoloptError: an unknown kind, or sizes without a common block.
    """
    if kind not in BLOCKS:
        raise PoloptError(f"quantise is {kind!r}: accepted are {', '.join(BLOCKS)}")
    if (most := BLOCKS[kind]) is None:
        return {"weight_qtype": kind, "tile_size": None}
    sizes = sorted(set(sizes))
    block = math.gcd(most, *sizes)
    if block < SMALLEST_BLOCK:
        raise PoloptError(
            f"quantise: blocks of {kind} need sizes that are multiples of {SMALLEST_BLOCK}; this "
            f"model has {', '.join(map(str, sizes))}"
        )
    return {"weight_qtype": kind, "tile_size": block}


@functools.lru_cache(maxsize=64)
def linear_maps(config: DecoderConfig) -> Mapping[str, int]:
    """Paths of the linear maps, as "layers/0/attention/q", and from how many numbers they map."""
    decoder = nnx.eval_shape(lambda: Decoder(config, jnp.float32, nnx.Rngs(0)))
    found = {
        "/".join(map(str, path)): module.in_features
        for path, module in nnx.iter_modules(decoder)
        if isinstance(module, nnx.Linear)
    }
    return MappingProxyType(found)


def rewired(decoder: Decoder, provider: Any, rngs: nnx.Rngs | None = None) -> Decoder:
    """The decoder with a provider of qwix around its products, after one run on two tokens."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return load_qwix().quantize_model(decoder, provider, tokens, tokens, _attend_self, rngs=rngs)


def load_qwix() -> ModuleType:
    """qwix, whose import takes a second."""
    try:
        import qwix
    except ImportError as error:
        raise missing_extra("qwix", "training adapters or quantising") from error
    return qwix


def _exactly(paths: Iterable[str]) -> str:
    """A regular expression for these paths and no others."""
    return "|".join(map(re.escape, paths))


def _attend_self(q: Array, *_: Any) -> tuple[Array, None]:
    """No attention: qwix looks at products with weights only."""
    return q, None
