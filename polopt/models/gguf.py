"""GGUF files as models: metadata to a `DecoderConfig`, tensors to parameters, a tokenizer.

Names and conventions are llama.cpp's: its converter interleaves the rotary halves of Llama's query
and key rows, adds one to Gemma's norms, and leaves the output matrix out where it is the embedding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from polopt.errors import PoloptError
from polopt.models.config import DecoderConfig
from polopt.models.gguf_config import decoder_config
from polopt.models.gguf_file import GgufFile, Tensor, library, read_header
from polopt.models.gguf_tokenizer import tokenizer_of
from polopt.models.language_model import LanguageModel, Params
from polopt.models.tokenizer import Tokenizer

_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """How a leaf of the parameters is written in a file."""

    path: tuple[str, ...]
    shape: tuple[int, ...]  # in the file
    transposed: bool = False  # kernels are (in, out) here and (out, in) there
    heads: int = 0  # whose rows are interleaved; 0 if none are
    shift: float = 0.0  # what the file adds


def load(
    path: str | Path, *, dtype: str = "float32", compute_dtype: str | None = None
) -> tuple[LanguageModel, Params, Tokenizer]:
    """Read a GGUF file: its weights dequantised, its tokenizer with its chat template.

    Tensors are read one at a time, so that the peak of memory is the model in `dtype` and one
    tensor. Architectures: llama, qwen2, qwen3, qwen3moe, gemma2, gemma3; types of tensors: all that
    the `gguf` package dequantises.

    Args:
      path: of the file.
      dtype: of the parameters, "float32" or "bfloat16".
      compute_dtype: of the model; `dtype` if not given.

    Returns:
      (model, params, tokenizer).

    Raises:
      PoloptError: the file is damaged, or holds what cannot be represented; the first of it is
        named.
    """
    if dtype not in _DTYPES:
        raise PoloptError(f"gguf.load: dtype is {dtype!r}: accepted are {' and '.join(_DTYPES)}")
    file = read_header(path)
    config = decoder_config(file)
    leaves = check_tensors(file, config)
    tokenizer = tokenizer_of(file)
    if tokenizer.vocab_size > config.vocab_size:
        raise PoloptError(
            f"{file.path}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding "
            f"{config.vocab_size} rows"
        )
    model = LanguageModel(config, compute_dtype or dtype)
    # The largest first: it stands twice in memory while nothing else does.
    largest_first = sorted(leaves, key=lambda name: -math.prod(leaves[name].shape))
    params: Params = {}
    for name in largest_first:
        leaf = leaves[name]
        *path_to, last = leaf.path
        node = params
        for part in path_to:
            node = node.setdefault(part, {})
        node[last] = jnp.asarray(_read(file, file.tensors[name], leaf, np.dtype(jnp.dtype(dtype))))
    return model, params, tokenizer


def _leaves(config: DecoderConfig, *, interleaved: bool) -> dict[str, _Leaf]:
    """What a file of this decoder holds, by the names of its tensors."""
    D, V = config.hidden_size, config.vocab_size
    shift = config.norm_offset
    leaves = {
        "token_embd.weight": _Leaf(("embed", "embedding"), (V, D)),
        "output_norm.weight": _Leaf(("norm", "scale"), (D,), shift=shift),
    }
    if not config.tie_embeddings:
        leaves["output.weight"] = _Leaf(("unembed", "embedding"), (V, D))
    for layer in range(config.num_layers):
        root = ("layers", str(layer))
        for name, leaf in (_attention(config, interleaved) | _rest(config, layer)).items():
            leaves[f"blk.{layer}.{name}"] = dataclasses.replace(leaf, path=root + leaf.path)
    return leaves


def _attention(config: DecoderConfig, interleaved: bool) -> dict[str, _Leaf]:
    D, d, H, K = config.hidden_size, config.head_dim, config.num_heads, config.num_kv_heads
    found: dict[str, _Leaf] = {}
    for name, rows, own in (("q", H * d, H), ("k", K * d, K), ("v", K * d, 0)):
        heads = own if interleaved else 0
        here = ("attention", name)
        found[f"attn_{name}.weight"] = _Leaf((*here, "kernel"), (rows, D), True, heads)
        if config.qkv_bias:
            found[f"attn_{name}.bias"] = _Leaf((*here, "bias"), (rows,), heads=heads)
    out = ("attention", "out")
    found["attn_output.weight"] = _Leaf((*out, "kernel"), (D, H * d), True)
    if config.out_bias:
        found["attn_output.bias"] = _Leaf((*out, "bias"), (D,))
    if config.qk_norm:
        for name in ("q_norm", "k_norm"):
            path = ("attention", name, "scale")
            found[f"attn_{name}.weight"] = _Leaf(path, (d,), shift=config.norm_offset)
    return found


def _rest(config: DecoderConfig, layer: int) -> dict[str, _Leaf]:
    """Norms, and the MLP or experts."""
    D = config.hidden_size
    norms = {"attn_norm": "attention_norm", "ffn_norm": "mlp_norm"}
    if config.post_norms:
        norms |= {"post_attention_norm": "attention_post_norm", "post_ffw_norm": "mlp_post_norm"}
    found = {
        f"{theirs}.weight": _Leaf((ours, "scale"), (D,), shift=config.norm_offset)
        for theirs, ours in norms.items()
    }
    if config.routed(layer):
        assert config.experts is not None
        E, F = config.experts.count, config.experts.size
        found["ffn_gate_inp.weight"] = _Leaf(("experts", "router", "kernel"), (E, D), True)
        for name, shape in (("gate", (E, F, D)), ("up", (E, F, D)), ("down", (E, D, F))):
            found[f"ffn_{name}_exps.weight"] = _Leaf(("experts", name), shape, True)
        return found
    F = config.mlp_size
    for name, shape in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
        found[f"ffn_{name}.weight"] = _Leaf(("mlp", name, "kernel"), shape, True)
        if config.mlp_bias:
            found[f"ffn_{name}.bias"] = _Leaf(("mlp", name, "bias"), shape[:1])
    return found


def check_tensors(file: GgufFile, config: DecoderConfig) -> dict[str, _Leaf]:
    """What to read of a file, once every tensor is known to be there, in its shape and readable.

    Nothing is allocated before.
    """
    leaves = _leaves(config, interleaved=file.values["general.architecture"] == "llama")
    read_elsewhere = {"rope_freqs.weight"}
    extra = sorted(set(file.tensors) - set(leaves) - read_elsewhere)
    if extra:
        raise PoloptError(f"{file.path}: tensor {extra[0][:80]} has no place in this architecture")
    for name, leaf in leaves.items():
        tensor = file.tensors.get(name)
        found = None if tensor is None else tensor.shape
        if found != leaf.shape:
            raise PoloptError(
                f"{file.path}: tensor {name} has shape {found or 'none'}, the metadata ask for "
                f"{leaf.shape}"
            )
    for tensor in {tensor.kind: tensor for tensor in file.tensors.values()}.values():
        block = library().GGML_QUANT_SIZES[tensor.kind][1]
        try:
            library().dequantize(np.zeros((1, block), np.uint8), tensor.kind)
        except NotImplementedError:
            raise PoloptError(
                f"{file.path}: tensor {tensor.name} has the type {tensor.kind.name}, which cannot "
                "be dequantised"
            ) from None
    return leaves


def _read(file: GgufFile, tensor: Tensor, leaf: _Leaf, dtype: np.dtype) -> np.ndarray:
    """One leaf, in its type and layout, from runs of the tensor's rows."""
    if len(leaf.shape) == 1:
        [(_, row)] = file.chunks(tensor)
        return (_finite(file, tensor, row)[0] - np.float32(leaf.shift))[
            _order(len(row[0]), leaf.heads)
        ].astype(dtype)
    *blocks, rows, columns = leaf.shape
    shape = (columns, rows) if leaf.transposed else (rows, columns)
    out = np.empty((math.prod(blocks), *shape), dtype)
    place = _order(rows, leaf.heads).argsort()
    for first, run in file.chunks(tensor):
        _finite(file, tensor, run)
        for block, begin, part in _by_block(first, run, rows):
            where = place[begin : begin + len(part)]
            if leaf.transposed:
                out[block][:, where] = part.T
            else:
                out[block][where] = part
    return out.reshape(*blocks, *shape)


def _finite(file: GgufFile, tensor: Tensor, run: np.ndarray) -> np.ndarray:
    if not np.isfinite(run).all():
        raise PoloptError(f"{file.path}: tensor {tensor.name} holds a number that is not finite")
    return run


def _by_block(first: int, run: np.ndarray, size: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """A run of rows cut where a matrix of `size` rows ends: (matrix, its first row, rows)."""
    while len(run):
        block, begin = divmod(first, size)
        count = min(size - begin, len(run))
        yield block, begin, run[:count]
        first, run = first + count, run[count:]


def _order(rows: int, heads: int) -> np.ndarray:
    """Which row of a file is each of ours.

    A head's rows stand there as (0, d/2, 1, d/2 + 1, ...), pairs that a rotation turns together.
    """
    order = np.arange(rows)
    return order.reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1) if heads else order
