"""Files of JSON lines: one object per line, each named by its file and number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polopt.errors import PoloptError


def read_lines(path: str | Path) -> bytes:
    """The bytes of a file.

    Raises:
      PoloptError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise PoloptError(f"{path}: cannot read: {error.strerror}") from error


def objects(raw: bytes, path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """(file:line, object) of every line.

    Lines end with a line feed alone: texts may hold the other separators of Unicode as they are.

    Raises:
      PoloptError: no line at all, or one that is not a JSON object, named by file and number.
    """
    lines = raw.decode("utf-8-sig", "surrogateescape").split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise PoloptError(f"{path}: the file is empty")
    return [
        (f"{path}:{number}", _object(line, f"{path}:{number}"))
        for number, line in enumerate(lines, 1)
    ]


def check_text(value: Any, name: str, where: str) -> None:
    """Refuse texts in a value that are no Unicode: bytes that are not UTF-8, lone surrogates."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise PoloptError(f"{where}: {name!r} is not valid Unicode text") from error


def kind(value: Any) -> str:
    """What JSON calls a value."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _object(line: str, where: str) -> dict[str, Any]:
    if not line.strip():
        raise PoloptError(f"{where}: blank line; give one JSON object per line")
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise PoloptError(f"{where}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise PoloptError(f"{where}: a JSON {kind(value)}, not an object")
    return value
