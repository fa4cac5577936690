"""Find a user's own object by name: ``module:name`` or ``path.py:name``."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from polopt.errors import PoloptError, did_you_mean


def load_object(spec: str) -> Any:
    """The object that `spec` names; a file is read anew each time.

    Modules are looked for in the working directory first, as ``python -m`` does.

    Raises:
      PoloptError: `spec` is malformed, the file, module or name is not there, or importing it
        fails.
    """
    place, colon, name = spec.rpartition(":")
    if not (colon and place and name):
        raise PoloptError(f"{spec!r} names nothing: write module:name or path.py:name")
    module = _from_file(place, spec) if place.endswith(".py") else _from_name(place, spec)
    if not hasattr(module, name):
        names = [key for key in vars(module) if not key.startswith("_")]
        raise PoloptError(f"{spec}: {place} has no {name!r}{did_you_mean(name, names)}")
    return getattr(module, name)


def load_function(spec: str, *, keywords: Sequence[str] = ()) -> Callable[..., Any]:
    """The function that `spec` names, checked to take `keywords` as keyword arguments.

    Raises:
      PoloptError: as `load_object`; or it is not callable, or not with `keywords`.
    """
    function = load_object(spec)
    if not callable(function):
        raise PoloptError(f"{spec} is a {type(function).__name__}, not a function")
    _check_keywords(function, spec, keywords)
    return function


def _check_keywords(function: Callable[..., Any], spec: str, keywords: Sequence[str]) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins have none
        return
    try:
        signature.bind(**dict.fromkeys(keywords))
    except TypeError as error:
        call = ", ".join(f"{word}=" for word in keywords)
        raise PoloptError(
            f"{spec}{signature} cannot be called with ({call}): {error}; "
            "take them as keywords, or **kwargs for those you ignore"
        ) from error


def _from_file(place: str, spec: str) -> ModuleType:
    path = Path(place).expanduser()
    if not path.is_file():
        raise PoloptError(f"{spec}: no file {place}")
    found = importlib.util.spec_from_file_location(f"polopt_user_{path.stem}", path)
    if found is None or found.loader is None:
        raise PoloptError(f"{spec}: cannot import {place}")
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses and pickling look modules up by name
    with _import_errors(spec, place), _importable(str(path.parent)):
        found.loader.exec_module(module)
    return module


def _from_name(place: str, spec: str) -> ModuleType:
    with _import_errors(spec, place), _importable(os.getcwd()):
        return importlib.import_module(place)


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


@contextlib.contextmanager
def _import_errors(spec: str, place: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        words = " ".join(str(error).split())
        raise PoloptError(
            f"{spec}: importing {place} raised {type(error).__name__}: {words}"
        ) from error
