"""The container of GGUF: its values and tensors, every count checked against the file's length.

Layout (ggml's docs/gguf.md, versions 2 and 3, little-endian): magic, version, counts, named values,
descriptions of tensors, and their aligned data. The header is read here and not by the `gguf`
package, whose reader trusts the counts: an array said to hold 2^60 numbers keeps it busy for ever.
That package dequantises.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from polopt.errors import PoloptError, missing_extra

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = ("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d")  # by type's number
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_CHUNK = 1 << 22  # numbers that are dequantised at a time


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in a file, and how it is written."""

    name: str
    kind: Any  # gguf.GGMLQuantizationType
    shape: tuple[int, ...]  # outermost first, as NumPy has it: a linear layer's is (out, in)
    offset: int
    row_bytes: int  # of one innermost row

    @property
    def rows(self) -> int:
        """How many innermost rows there are."""
        return math.prod(self.shape[:-1])


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """A checked header."""

    path: Path
    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def chunks(self, tensor: Tensor) -> Iterator[tuple[int, np.ndarray]]:
        """Runs of a tensor's rows: the number of the first, and f32[run, shape[-1]]."""
        step = max(1, _CHUNK // tensor.shape[-1])
        with open(self.path, "rb") as file:
            file.seek(tensor.offset)
            for first in range(0, tensor.rows, step):
                count = min(step, tensor.rows - first)
                content = file.read(count * tensor.row_bytes)
                if len(content) < count * tensor.row_bytes:
                    raise PoloptError(f"{self.path}: the file ends within tensor {tensor.name}")
                raw = np.frombuffer(content, np.uint8).reshape(count, tensor.row_bytes)
                yield first, library().dequantize(raw, tensor.kind).astype(np.float32, copy=False)


def read_header(path: str | Path) -> GgufFile:
    """Read and check everything but the tensors' data.

    Raises:
      PoloptError: the file cannot be read, is no GGUF file, is cut short, or contradicts itself.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return _read(_Cursor(file, path))
    except OSError as error:
        raise PoloptError(f"{path}: cannot read the file: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise PoloptError(f"{path}: damaged: a text of its header is not UTF-8") from error


def library() -> Any:
    """The `gguf` package."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise missing_extra("gguf", "reading a GGUF file") from error
    return gguf


class _Cursor:
    """A place in a file, that never asks for more than the file has."""

    def __init__(self, file: IO[bytes], path: Path):
        self.file, self.path = file, path
        self.size = path.stat().st_size
        self.place = 0

    def wrong(self, what: str) -> PoloptError:
        return PoloptError(f"{self.path}: not a usable GGUF file: {what}")

    def expect(self, count: int, size: int, what: str) -> None:
        if count * size > self.size - self.place:
            raise self.wrong(f"it ends within {what}, at byte {self.size}")

    def take(self, size: int, what: str) -> bytes:
        self.expect(size, 1, what)
        content = self.file.read(size)
        if len(content) < size:
            raise self.wrong(f"it ends within {what}")
        self.place += size
        return content

    def number(self, form: str, what: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form), what))[0]

    def text(self, what: str) -> str:
        return self.take(self.number("Q", what), what).decode()


def _read(cursor: _Cursor) -> GgufFile:
    if cursor.size < 24 or cursor.take(4, "the magic") != _MAGIC:
        raise cursor.wrong("it does not begin with GGUF")
    version = cursor.number("I", "the version")
    if version not in _VERSIONS:
        accepted = " and ".join(map(str, _VERSIONS))
        raise cursor.wrong(f"version {version}: read are {accepted}, little-endian")
    tensor_count, value_count = cursor.number("Q", "the counts"), cursor.number("Q", "the counts")
    # The least that each takes: a name's length, a type, and what belongs to it.
    cursor.expect(tensor_count, 24, f"the descriptions of {tensor_count} tensors")
    cursor.expect(value_count, 13, f"the {value_count} values of its header")
    values: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.text("the name of a value")
        if key in values:
            raise cursor.wrong(f"the value {key[:80]!r} stands twice")
        values[key] = _value(cursor, cursor.number("I", key[:80]), key[:80])
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise cursor.wrong(f"general.alignment is {alignment!r}")
    found = [_description(cursor) for _ in range(tensor_count)]
    start = -(-cursor.place // alignment) * alignment
    return GgufFile(cursor.path, values, _placed(cursor, found, start, alignment))


def _value(cursor: _Cursor, kind: int, key: str) -> Any:
    if kind == _STRING:
        return cursor.text(key)
    if kind == _ARRAY:
        inner, count = cursor.number("I", key), cursor.number("Q", key)
        if inner == _STRING:
            cursor.expect(count, 8, key)
            return [cursor.text(key) for _ in range(count)]
        form = np.dtype("<" + _form(cursor, inner, key))
        cursor.expect(count, form.itemsize, key)
        return np.frombuffer(cursor.take(count * form.itemsize, key), form).tolist()
    return cursor.number(_form(cursor, kind, key), key)


def _form(cursor: _Cursor, kind: int, key: str) -> str:
    form = _NUMBERS[kind] if kind < len(_NUMBERS) else None
    if form is None:
        raise cursor.wrong(f"the value {key!r} has the unknown type {kind}")
    return form


def _description(cursor: _Cursor) -> Tensor:
    """A tensor whose offset is still that behind the header."""
    name = cursor.text("the name of a tensor")
    count = cursor.number("I", name[:80])
    if not 1 <= count <= _MAX_DIMENSIONS:
        raise cursor.wrong(f"tensor {name[:80]!r} has {count} dimensions")
    shape = tuple(cursor.number("Q", name[:80]) for _ in range(count))[::-1]
    number = cursor.number("I", name[:80])
    gguf = library()
    try:
        kind = gguf.GGMLQuantizationType(number)
        block, size = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise cursor.wrong(f"tensor {name[:80]!r} has the unknown type {number}") from None
    if 0 in shape or shape[-1] % block:
        raise cursor.wrong(f"tensor {name[:80]!r} of type {kind.name} has the shape {shape}")
    return Tensor(name, kind, shape, cursor.number("Q", name[:80]), shape[-1] // block * size)


def _placed(cursor: _Cursor, found: list[Tensor], start: int, alignment: int) -> dict[str, Tensor]:
    """Tensors at their places in the file, none of which is used twice."""
    placed: dict[str, Tensor] = {}
    end = start
    for tensor in sorted(found, key=lambda tensor: tensor.offset):
        if tensor.name in placed:
            raise cursor.wrong(f"tensor {tensor.name[:80]!r} stands twice")
        first = start + tensor.offset
        if first < end or tensor.offset % alignment:
            raise cursor.wrong(f"tensor {tensor.name[:80]!r} lies at the wrong place")
        end = first + tensor.rows * tensor.row_bytes
        if end > cursor.size:
            raise cursor.wrong(
                f"it ends within tensor {tensor.name[:80]!r}: {cursor.size} of {end} bytes"
            )
        placed[tensor.name] = dataclasses.replace(tensor, offset=first)
    return placed
