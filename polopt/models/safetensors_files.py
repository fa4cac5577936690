"""Safetensors files: believed only after checks, read and written a block at a time.

The format: eight bytes that give the length of a header, the header (JSON: type, shape and byte
range of every tensor), then the bytes of the tensors without holes. Read and written here, not by
the library of that name, so that no more than one block lies beside the tensor that it fills
(mapped pages of a file count as memory), and so that a wrong file is refused in one line.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from polopt.errors import PoloptError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_MOST_JSON = 2**25  # bytes; the headers of published models have less than a tenth of it
_BLOCK = 2**22  # bytes
_SHARD = re.compile(r"[A-Za-z0-9_.+-]{1,200}\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    name: str
    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int  # of its bytes in the file

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Outgoing:
    """A tensor to be written; `view` gives its values, in any type, when its turn comes."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    view: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most 32 MiB, without repeated keys.

    Raises:
      PoloptError: no such file, or something else in it.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise PoloptError(f"{path}: no such file")
        if path.stat().st_size > _MOST_JSON:
            raise PoloptError(f"{path}: more than {_MOST_JSON} bytes of JSON")
        return parse_object(path.read_bytes(), str(path))
    except OSError as error:
        raise PoloptError(f"{path}: cannot read it: {error.strerror}") from error


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """The JSON object that some bytes spell, without repeated keys."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise PoloptError(f"{where}: {twice!r} stands there twice")
        return made

    try:
        made = json.loads(content, object_pairs_hook=unique)
    except PoloptError:
        raise
    except (ValueError, RecursionError) as error:
        raise PoloptError(f"{where}: not JSON: {error}") from error
    if not isinstance(made, dict):
        raise PoloptError(f"{where}: a JSON object is expected, not a {type(made).__name__}")
    return made


def find_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of `model.safetensors`, or of the shards that the index names.

    The index may name files of its own folder only; those may be symbolic links to anywhere, as the
    caches of model hubs are made of them.

    Raises:
      PoloptError: no weights, weights as pickles (which can run code), or a malformed file.
    """
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise PoloptError(
            f"{folder}: weights only as {pickles[0]}, a pickle, which may run code when read: "
            f"convert them to {SINGLE}"
        )
    raise PoloptError(f"{folder}: no weights: neither {SINGLE} nor {INDEX}")


def _read_shards(folder: Path) -> dict[str, Stored]:
    index = folder / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise PoloptError(f"{index}: no 'weight_map' from tensors to files")
    for file in weight_map.values():
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise PoloptError(
                f"{index}: {file!r}: accepted are names of safetensors files of the folder itself"
            )
    found: dict[str, Stored] = {}
    for file in sorted(set(weight_map.values())):
        if not (folder / file).is_file():
            raise PoloptError(f"{index}: the file {file} is not there")
        for name, stored in read_header(folder / file).items():
            if name in found:
                raise PoloptError(f"{name} is in both {found[name].file.name} and {file}")
            if weight_map.get(name) != file:
                raise PoloptError(f"{folder / file}: {name} is there, but {INDEX} says otherwise")
            found[name] = stored
    missing = sorted(set(weight_map) - set(found))
    if missing:
        raise PoloptError(f"{folder / weight_map[missing[0]]}: {missing[0]} is not in it")
    return found


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one file, by name; reads nothing but the header.

    Raises:
      PoloptError: truncated, or a header that does not describe exactly the bytes of the file.
    """
    try:
        whole = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if whole < 8 + length or whole < 8:
                raise PoloptError(
                    f"{path}: truncated: {whole} bytes, of which the header alone takes {length}"
                )
            if length > _MOST_JSON:
                raise PoloptError(f"{path}: a header of {length} bytes: at most {_MOST_JSON}")
            header = parse_object(file.read(length), f"{path}: header")
    except OSError as error:
        raise PoloptError(f"{path}: cannot read it: {error.strerror}") from error
    header.pop("__metadata__", None)
    base = 8 + length
    found = {name: _stored(path, base, name, entry) for name, entry in header.items()}
    end = base
    for stored in sorted(found.values(), key=lambda stored: (stored.start, stored.size)):
        if stored.start != end:
            what = "overlaps what comes before it" if stored.start < end else "leaves a hole"
            raise PoloptError(f"{path}: {stored.name} {what}, at byte {stored.start}")
        end += stored.size
    if end != whole:
        what = "truncated" if end > whole else "longer than its header says"
        raise PoloptError(f"{path}: {what}: {whole} bytes, of which {end} are described")
    return found


def _stored(path: Path, base: int, name: str, entry: Any) -> Stored:
    """One entry of a header; only what it says of itself is checked here."""
    if not _is_entry(entry):
        raise PoloptError(f"{path}: {name}: dtype, shape and data_offsets are expected in a header")
    code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if code not in DTYPES:
        raise PoloptError(f"{path}: {name} has type {code!r}: accepted are {', '.join(DTYPES)}")
    stored = Stored(name, path, DTYPES[code], shape, base + begin)
    if end - begin != stored.size:
        raise PoloptError(
            f"{path}: {name} has {end - begin} bytes, but {code} of shape {list(shape)} takes "
            f"{stored.size}"
        )
    return stored


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    return len(shape) <= 8 and all(type(n) is int and 0 <= n < 2**63 for n in shape + offsets)


def read_into(stored: Stored, target: np.ndarray) -> None:
    """Fill `target`, of the tensor's shape and any floating type and strides, block by block.

    Raises:
      PoloptError: the file became shorter, or a value is not finite in the type of `target`.
    """
    blocks = _rows(stored.shape, stored.dtype.itemsize)
    flat = target.reshape(1) if target.ndim == 0 else target
    try:
        with open(stored.file, "rb") as file:
            file.seek(stored.start)
            for rows in blocks:
                part = flat[rows]
                with np.errstate(over="ignore"):  # found below, by name
                    part[...] = _read_block(file, stored, part.shape)
                _check_finite(part, f"{stored.file}: {stored.name}")
    except OSError as error:
        raise PoloptError(f"{stored.file}: cannot read it: {error.strerror}") from error


def equal(one: Stored, other: Stored) -> bool:
    """Whether two tensors have the same type, shape and bytes."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with open(one.file, "rb") as a, open(other.file, "rb") as b:
        a.seek(one.start)
        b.seek(other.start)
        left = one.size
        while left > 0:
            size = min(left, _BLOCK)
            if a.read(size) != b.read(size):
                return False
            left -= size
    return True


def _rows(shape: tuple[int, ...], itemsize: int) -> Iterator[slice]:
    """Slices of the first axis, of about a block each."""
    row = math.prod(shape[1:]) * itemsize
    step = max(1, _BLOCK // max(row, 1))
    total = shape[0] if shape else 1
    return (slice(begin, min(begin + step, total)) for begin in range(0, total, step))


def _check_finite(values: np.ndarray, where: str) -> None:
    if not np.isfinite(values).all():
        raise PoloptError(f"{where} has values that are not finite in {values.dtype}")


def _read_block(file: BinaryIO, stored: Stored, shape: tuple[int, ...]) -> np.ndarray:
    size = math.prod(shape) * stored.dtype.itemsize
    block = np.fromfile(file, np.uint8, size)
    if len(block) != size:
        raise PoloptError(f"{stored.file}: truncated within {stored.name}")
    return block.view(stored.dtype).reshape(shape)


def write_tensors(folder: Path, tensors: Sequence[Outgoing], most: int) -> None:
    """Write `model.safetensors`, or shards of at most `most` bytes of tensors and their index.

    A tensor larger than that has a shard of its own. Written in the order given.

    Raises:
      PoloptError: a value that is not finite in the type of the file.
    """
    shards: list[list[Outgoing]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.size > most:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size
    if len(shards) == 1:
        _write_file(folder / SINGLE, shards[0])
        return
    weight_map = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, shard)
        weight_map |= {tensor.name: file for tensor in shard}
    total = sum(tensor.size for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(path: Path, tensors: Sequence[Outgoing]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # asked for by transformers
    at = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.size],
        }
        at += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that tensors begin at multiples of eight
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            view = tensor.view()
            flat = view.reshape(1) if view.ndim == 0 else view
            for rows in _rows(tensor.shape, tensor.dtype.itemsize):
                with np.errstate(over="ignore"):
                    block = np.ascontiguousarray(flat[rows]).astype(tensor.dtype)
                _check_finite(block, f"{path}: {tensor.name}")
                block.reshape(-1).view(np.uint8).tofile(file)
