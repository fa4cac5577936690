"""Quantised bases: the matrices of a decoder's layers in eight or four bits a number, by qwix.

Only what linear maps multiply by is quantised, and becomes numbers again where it is multiplied.
Embeddings, norms, biases, stacked experts and activations stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from polopt.errors import PoloptError
from polopt.models.intercept import linear_maps, load_qwix, storage
from polopt.models.language_model import LanguageModel, Params


def quantise(model: LanguageModel, params: Params, kind: str) -> tuple[LanguageModel, Params]:
    """The same model with quantised layers: it computes, and adapters over it can be trained.

    Args:
      model: a handle whose weights are numbers.
      params: as made by `init`.
      kind: a key of `polopt.models.intercept.BLOCKS`: "int8", "int4" or "nf4".

    Returns:
      (handle, params): a kernel has become {"array": {"qvalue" [in,out], "scale" [blocks,out]}};
      everything else is the very array that was given.

    Raises:
      PoloptError: an unknown kind, weights that are quantised already, or matrices whose sizes have
        no common block.
    """
    if model.quantised is not None:
        raise PoloptError(f"quantise: the weights are {model.quantised} already")
    maps = linear_maps(model.config)
    tile, qwix = storage(kind, maps.values())["tile_size"], load_qwix()

    @jax.jit
    def pack(kernel: Array) -> Params:
        made = qwix.quantize(
            kernel,
            kind,
            channelwise_axes=(1,),
            tiled_axes={0: tile} if tile else None,
            scale_dtype=jnp.dtype(model.compute_dtype),  # that of the product
        )
        return {"array": {"qvalue": made.qvalue, "scale": made.scale}}

    return dataclasses.replace(model, quantised=kind), change_kernels(params, maps, pack)


def dequantise(model: LanguageModel, params: Params) -> tuple[LanguageModel, Params]:
    """The same model with numbers for weights: those that its quantised ones stand for."""
    if model.quantised is None:
        return model, params
    qwix = load_qwix()

    def unpack(kernel: Params) -> Array:
        return qwix.dequantize(qwix.QArray(**kernel["array"], qtype=model.quantised))

    plain = dataclasses.replace(model, quantised=None)
    return plain, change_kernels(params, linear_maps(model.config), unpack)


def change_kernels(params: Params, paths: Iterable[str], change: Callable[[Any], Any]) -> Params:
    """The parameters with the kernels of linear maps changed, and all else the same arrays."""

    def at(node: Params, path: list[str]) -> Params:
        name, *rest = path
        return {**node, name: at(node[name], rest) if rest else change(node[name])}

    for path in paths:
        params = at(params, [*path.split("/"), "kernel"])
    return params
