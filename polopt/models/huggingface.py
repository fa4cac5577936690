"""Hugging Face folders in and out: `config.json`, safetensors and the tokenizer's files.

Weights are believed only after checks and are never unpickled. They are read tensor by tensor and
block by block into arrays of the wanted type, so that the peak of memory is hardly more than the
model in that type; written they are streamed likewise.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Sharding

from polopt.errors import PoloptError
from polopt.models.config import DecoderConfig
from polopt.models.families import (
    FAMILIES,
    HEAD,
    Family,
    Source,
    read_config,
    source_of,
    write_config,
)
from polopt.models.language_model import LanguageModel, Params
from polopt.models.safetensors_files import (
    Outgoing,
    Stored,
    equal,
    find_tensors,
    read_into,
    read_json,
    write_tensors,
)
from polopt.models.tokenizer import Tokenizer
from polopt.models.tokenizer_files import tokenizer_of_folder

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
LeafPath = tuple[str, ...]
Shardings = Sharding | Mapping[str, Any] | Callable[[str], Sharding]
_BUFFERS = re.compile(r"(^|\.)rotary_emb(_local)?\.inv_freq$")  # follow from config.json
_LINE = 64  # bytes: an array aligned to it becomes a jax.Array on CPU without a copy


def load(
    folder: str | Path,
    *,
    dtype: str = "float32",
    compute_dtype: str | None = None,
    shardings: Shardings | None = None,
) -> tuple[LanguageModel, Params, Tokenizer | None]:
    """Read a model as transformers saves it: llama, qwen2, qwen3, qwen3_moe, gemma2, gemma3.

    Args:
      folder: with `config.json`, `model.safetensors` or the index of its shards, and perhaps the
        files of a tokenizer. Gemma 3's eyes are left out.
      dtype: of the parameters: "float32", "bfloat16" or "float16".
      compute_dtype: of the model, "float32" or "bfloat16"; `dtype` if not given, and float32 for
        float16.
      shardings: where the parameters are put: one sharding for all, a tree of them like `params`,
        or a function of a leaf's path, as "layers/0/attention/q/kernel". The default device if not
        given.

    Returns:
      (model, params, tokenizer or None if there is no `tokenizer.json`).

    Raises:
      PoloptError: in one line, what is missing, damaged, not finite, or not a decoder as here.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise PoloptError(f"load: dtype is {dtype!r}: accepted are {', '.join(DTYPES)}")
    if not folder.is_dir():
        raise PoloptError(f"{folder}: no such folder")
    where = folder / "config.json"
    name, config = read_config(read_json(where), str(where))
    family, stored = FAMILIES[name], find_tensors(folder)
    default = "float32" if dtype == "float16" else dtype
    model = LanguageModel(config, compute_dtype or default)
    sources = _match(folder, family, model, stored)
    tokenizer = None
    if (folder / "tokenizer.json").exists():
        tokenizer = tokenizer_of_folder(folder)
        _check_tokenizer(tokenizer, config, str(folder))
    place = _placement(shardings, sources)
    params: Params = {}
    for path, (source, shape) in sources.items():
        node = params
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = place(path, _read_leaf(source, shape, DTYPES[dtype], stored))
    return model, params, tokenizer


@functools.lru_cache(maxsize=8)
def leaves_of(model: LanguageModel) -> dict[LeafPath, tuple[int, ...]]:
    """Shapes of the parameters, by path."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    found = jax.tree_util.tree_flatten_with_path(shapes)[0]
    return {tuple(part.key for part in path): leaf.shape for path, leaf in found}


def save(
    folder: str | Path,
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer | None = None,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a folder that transformers loads: the inverse of `load`, bit by bit.

    The folder appears when all of it is written. It is of the first family that has such a decoder
    (`polopt.models.families.write_config`), whichever it was read from.

    Args:
      folder: a new one, or an empty one.
      model: the handle.
      params: its parameters, whole on this host's devices.
      tokenizer: written beside it, its ends of a text also into `generation_config.json`.
      dtype: of the files: "float32", "bfloat16" or "float16"; as they are if not given.
      max_shard_bytes: more than that is cut into several files, and an index.

    Raises:
      PoloptError: the folder holds something, no family has such a decoder, `params` is not the
        model's, or a value is not finite in the type of the files.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PoloptError(f"{folder} is there already: name a new folder")
    if dtype is not None and dtype not in DTYPES:
        raise PoloptError(f"save: dtype is {dtype!r}: accepted are {', '.join(DTYPES)}")
    if tokenizer is not None:
        _check_tokenizer(tokenizer, model.config, "save")
    name, values = write_config(model.config)
    tensors = list(_outgoing(FAMILIES[name], model, params, dtype))
    values["torch_dtype"] = next(k for k, v in DTYPES.items() if v == tensors[0].dtype)
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
        partial.mkdir(parents=True)
        write_tensors(partial, tensors, max_shard_bytes)
        ids = {} if tokenizer is None else write_tokenizer(partial, tokenizer)
        write_json(partial / "config.json", values | ids)
        write_json(partial / "generation_config.json", ids)
        os.replace(partial, folder)
    except (OSError, PoloptError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, PoloptError):
            raise
        raise PoloptError(f"cannot write {folder}: {error.strerror or error}") from error


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Write a tokenizer's files, and return the ids of its tokens as a `config.json` has them."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.bos,
        "eos_token": tokenizer.eos[0],
        "pad_token": tokenizer.pad,
        "add_bos_token": tokenizer.bos is not None,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer.json").write_text(tokenizer.source, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", config)
    if tokenizer.chat_template is not None:
        template = folder / "chat_template.jinja"
        template.write_text(tokenizer.chat_template, encoding="utf-8")
    eos = list(tokenizer.eos_ids)
    return {
        "bos_token_id": None if tokenizer.bos is None else tokenizer.token_id(tokenizer.bos),
        "eos_token_id": eos[0] if len(eos) == 1 else eos,
        "pad_token_id": tokenizer.pad_id,
    }


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as people read it."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _outgoing(
    family: Family, model: LanguageModel, params: Params, dtype: str | None
) -> Iterator[Outgoing]:
    """The tensors of `params`, in the order of the layers."""
    given = {_keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    shapes = leaves_of(model)
    for path in sorted({*given, *shapes}, key=_place_in_file):
        leaf, name = given.get(path), "/".join(path)
        found = "not there" if leaf is None else tuple(leaf.shape)
        if leaf is None or found != shapes.get(path):
            wanted = shapes.get(path, "nothing of that name")
            raise PoloptError(f"save: params: {name} is {found}: the model has {wanted}")
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise PoloptError(f"save: params: {name} lies on other hosts too: gather it first")
        kind = np.dtype(leaf.dtype) if dtype is None else DTYPES[dtype]
        if kind not in DTYPES.values():
            raise PoloptError(f"save: params: {name} is {kind}: accepted are {', '.join(DTYPES)}")
        source = source_of(family, family.roots[0], path, _experts(model.config))
        shape = _stored_shape(source, shapes[path])
        for i, tensor in enumerate(source.names):
            view = functools.partial(_on_host, leaf, i if source.stacked else None, source)
            yield Outgoing(tensor, kind, shape, view)


def _on_host(leaf: Any, index: int | None, source: Source) -> np.ndarray:
    """One tensor of a leaf as the file has it."""
    part = leaf if index is None else leaf[index]
    if isinstance(part, jax.Array) and any(d.platform != "cpu" for d in part.devices()):
        part = part.copy()  # an array keeps what was fetched of it: this one is dropped
    values = np.asarray(part)
    return values.T if source.transposed else values


def _keys(path: tuple[Any, ...]) -> LeafPath:
    return tuple(str(getattr(part, "key", part)) for part in path)


def _place_in_file(path: LeafPath) -> tuple[Any, ...]:
    """Embedding, layers by number, final norm, output matrix."""
    kinds = ("embed", "layers", "norm", "unembed")
    first = kinds.index(path[0]) if path[0] in kinds else len(kinds)
    layer = int(path[1]) if len(path) > 1 and path[1].isdecimal() else -1
    return first, layer, path


def _match(
    folder: Path, family: Family, model: LanguageModel, stored: Mapping[str, Stored]
) -> dict[LeafPath, tuple[Source, tuple[int, ...]]]:
    """What each leaf is made of, once all tensors are known to be as the configuration says."""
    config = model.config
    _check_count(folder, config, len(stored))
    root = next((r for r in family.roots if f"{r}embed_tokens.weight" in stored), family.roots[0])
    found: dict[LeafPath, tuple[Source, tuple[int, ...]]] = {}
    wanted: dict[str, tuple[int, ...]] = {}
    for path, shape in leaves_of(model).items():
        source = source_of(family, root, path, _experts(config))
        found[path] = (source, shape)
        wanted |= dict.fromkeys(source.names, _stored_shape(source, shape))
    missing = [name for name in wanted if name not in stored]
    if missing:
        raise PoloptError(
            f"{folder}: config.json asks for tensors that are missing: {_some(missing)}"
        )
    for name, shape in wanted.items():
        if stored[name].shape != shape:
            raise PoloptError(
                f"{folder}: {name} has shape {list(stored[name].shape)}: config.json asks for "
                f"{list(shape)}"
            )
    extra = [name for name in stored if name not in wanted]
    _check_extra(folder, family, config, stored, extra, f"{root}embed_tokens.weight")
    return found


def _check_extra(
    folder: Path,
    family: Family,
    config: DecoderConfig,
    stored: Mapping[str, Stored],
    extra: list[str],
    embedding: str,
) -> None:
    """Accept of what has no place only what follows from the rest, and other parts of a family."""
    unknown = []
    for name in extra:
        if _BUFFERS.search(name) or any(name.startswith(part) for part in family.others):
            continue
        if not config.tie_embeddings or name.split(".")[-2:] != [HEAD, "weight"]:
            unknown.append(name)
        elif not equal(stored[name], stored[embedding]):
            raise PoloptError(
                f"{folder}: {name} is not the embedding, though config.json ties them "
                "(tie_word_embeddings)"
            )
    if unknown:
        raise PoloptError(f"{folder}: tensors without a place in the model: {_some(unknown)}")


def _check_count(folder: Path, config: DecoderConfig, count: int) -> None:
    """Before a model is made of config.json: as many tensors as it has at least."""
    routed = sum(config.routed(layer) for layer in range(config.num_layers))
    least = 2 + 6 * config.num_layers + 3 * (config.num_layers - routed)
    least += routed * (1 + 3 * _experts(config))
    if count < least:
        raise PoloptError(
            f"{folder}: {count} tensors: the {config.num_layers} layers of config.json have at "
            f"least {least}, so that some are missing"
        )


def _experts(config: DecoderConfig) -> int:
    return 0 if config.experts is None else config.experts.count


def _stored_shape(source: Source, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of each tensor of a leaf."""
    shape = shape[1:] if source.stacked else shape
    return shape[::-1] if source.transposed else shape


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read_leaf(
    source: Source, shape: tuple[int, ...], dtype: np.dtype, stored: Mapping[str, Stored]
) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    out = room[start : start + size].view(dtype).reshape(shape)
    for name, part in zip(source.names, out if source.stacked else out[None], strict=True):
        read_into(stored[name], part.T if source.transposed else part)
    return out


def _placement(
    shardings: Shardings | None, paths: Iterable[LeafPath]
) -> Callable[[LeafPath, np.ndarray], jax.Array]:
    if shardings is None:
        return lambda _, array: jax.device_put(array)
    if isinstance(shardings, Mapping):
        flat = jax.tree_util.tree_leaves_with_path(shardings)
        table = {"/".join(_keys(path)): sharding for path, sharding in flat}
        wrong = sorted(set(table) ^ {"/".join(path) for path in paths})
        if wrong:
            raise PoloptError(f"load: shardings and parameters differ at {_some(wrong)}")
    of = table.__getitem__ if isinstance(shardings, Mapping) else shardings

    def place(path: LeafPath, array: np.ndarray) -> jax.Array:
        name = "/".join(path)
        sharding = of(name) if callable(of) else of
        try:
            return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])
        except (ValueError, IndexError) as error:  # too many axes, or parts of unequal size
            raise PoloptError(
                f"load: {name} of shape {array.shape} does not fit {sharding}"
            ) from error

    return place


def _check_tokenizer(tokenizer: Tokenizer, config: DecoderConfig, where: str) -> None:
    """No id beyond the embedding, but of control tokens that nothing here writes.

    Gemma 3 1B has one: its tokenizer knows the images that its larger siblings see.
    """
    named = (*tokenizer.eos, tokenizer.pad, *([tokenizer.bos] if tokenizer.bos else []))
    unused = {tokenizer.token_id(t) for t in tokenizer.control_tokens if t not in named}
    for token in range(config.vocab_size, tokenizer.vocab_size):
        if token not in unused:
            raise PoloptError(
                f"{where}: the tokenizer has id {token}, the model's vocabulary ends before "
                f"{config.vocab_size}"
            )
