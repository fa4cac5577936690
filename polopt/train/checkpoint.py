"""Checkpoints: one folder per step, committed by one rename, every file's digest checked on load.

    checkpoints/00000050/state/…        arrays, written by orbax
                         manifest.json  counters, the sha256 of every file, and its own

Orbax commits atomically but does not notice a flipped bit in an array; the manifest does. A save
happens in `<step>.partial` and is renamed when everything is on disk, so a killed save leaves
nothing that could be taken for a checkpoint; the next save sweeps what it left.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from polopt.errors import PoloptError
from polopt.processes import ALONE, Processes

FORMAT = 1
_PARTIAL = ".partial"


def save(
    folder: Path,
    step: int,
    tree: Any,
    counters: dict[str, Any],
    *,
    keep: int = 2,
    processes: Processes = ALONE,
) -> Path:
    """Write `tree` and `counters` as the checkpoint of `step`, then drop all but `keep`.

    Every process of a run must call this, with the same; it returns once all have written and the
    checkpoint is committed.

    Raises:
      PoloptError: the disk is full or not writable; older checkpoints stay as they were.
    """
    final, partial = path_of(folder, step), folder / f"{step:08d}{_PARTIAL}"

    def begin() -> None:
        with _writing(final, partial):
            for leftover in folder.glob(f"*{_PARTIAL}"):
                shutil.rmtree(leftover)
            partial.mkdir(parents=True)

    def commit() -> None:
        with _writing(final, partial):
            _write_manifest(partial, step, counters)
            if final.exists():
                shutil.rmtree(final)
            os.replace(partial, final)
        for old in _steps(folder)[:-keep]:
            shutil.rmtree(path_of(folder, old))

    processes.from_first(begin)
    with (
        _writing(final, partial),
        _without_tracebacks(),
        _checkpointer(partial.name, processes) as checkpointer,
    ):
        checkpointer.save(partial.absolute() / "state", _named(_on_host(tree)))
    processes.from_first(commit)
    return final


@contextlib.contextmanager
def _writing(final: Path, partial: Path) -> Iterator[None]:
    """Turn what the system or orbax says into one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError:  # of a process that is gone, not of the disk
        raise
    except (OSError, ValueError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk wants the room back
        raise PoloptError(f"cannot write the checkpoint {final}: {_reason(error)}") from error


def _write_manifest(partial: Path, step: int, counters: dict[str, Any]) -> None:
    manifest = {
        "format": FORMAT,
        "step": step,
        "counters": counters,
        "files": {name: _digest(partial / name) for name in _files(partial)},
    }
    with open(partial / "manifest.json", "w", encoding="utf-8") as file:
        json.dump(manifest | {"sha256": _own_digest(manifest)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def restore(
    folder: Path, like: Any, *, prefix: str = "", processes: Processes = ALONE
) -> tuple[int, Any, dict[str, Any]] | None:
    """The newest checkpoint that is whole: (step, tree, counters), or None if there is none.

    A damaged one is named in a warning and the one before it is taken. Of several processes, which
    must all call this, the first decides.

    Args:
      like: a tree of the same structure; shapes and types are compared. Leaves come back as NumPy,
        but where it has a `jax.ShapeDtypeStruct` with a sharding: those are put where that says.
      prefix: of the leaves' names, to read one part only: "params.policy.".

    Raises:
      PoloptError: there are checkpoints but none can be read, or they hold another model.
    """
    found = processes.from_first(lambda: _newest(folder))
    if found is None:
        return None
    step, counters = found
    return step, _load(path_of(folder, step), like, prefix, processes), counters


def _newest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Step and counters of the newest checkpoint that is whole."""
    steps = _steps(folder)
    faults = []
    for step in reversed(steps):
        path = path_of(folder, step)
        try:
            manifest = _verified(path)
        except _DamagedError as fault:
            faults.append(f"{path}: {fault}")
            continue
        for fault in faults:
            warnings.warn(f"checkpoint {fault}; taking step {step}", RuntimeWarning, stacklevel=5)
        return step, manifest["counters"]
    if faults:
        raise PoloptError(f"no checkpoint can be read of the {len(steps)} there are: {faults[0]}")
    return None


def _on_host(tree: Any) -> Any:
    """What is in one piece, as NumPy; orbax writes the parts of arrays from where they lie."""

    def in_parts(x: Any) -> bool:
        return isinstance(x, jax.Array) and not x.is_fully_replicated

    return jax.tree.map(lambda x: x if in_parts(x) else jax.device_get(x), tree)


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"{step:08d}"


def _checkpointer(what: str, processes: Processes) -> ocp.Checkpointer:
    """Orbax's, where processes wait for one another without their devices, each time for `what`."""
    everyone = set(range(processes.count)) if processes.count > 1 else None
    options = ocp.options.MultiprocessingOptions(
        active_processes=everyone, barrier_sync_key_prefix=what
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _load(path: Path, like: Any, prefix: str, processes: Processes) -> Any:
    wanted = {prefix + name: leaf for name, leaf in _named(like).items()}
    with _checkpointer(path.name, processes) as checkpointer:
        state = path.absolute() / "state"
        there = checkpointer.metadata(state).item_metadata.tree
        odd = sorted(name for name in there.keys() ^ wanted.keys() if name.startswith(prefix))
        if odd:
            raise PoloptError(f"{path} is of another configuration: {odd[0]} is on one side only")
        for name, leaf in wanted.items():
            saved = there[name]
            if tuple(saved.shape) != leaf.shape or saved.dtype != leaf.dtype:
                raise PoloptError(
                    f"{path} is of another configuration: {name} is {saved.dtype}"
                    f"{list(saved.shape)}, not {leaf.dtype}{list(leaf.shape)}"
                )
        how = {name: _how(wanted.get(name)) for name in there}
        found = checkpointer.restore(state, restore_args=how)
    return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in wanted])


def _how(leaf: Any) -> ocp.RestoreArgs:
    if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is not None:
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding)
    return ocp.RestoreArgs(restore_type=np.ndarray)


def _named(tree: Any) -> dict[str, Any]:
    """{path: leaf}, in the order of the leaves; a flat tree needs no types to be restored."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _steps(folder: Path) -> list[int]:
    return sorted(int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit())


def _files(path: Path) -> list[str]:
    found = (p for p in path.rglob("*") if p.is_file() and p.name != "manifest.json")
    return sorted(str(p.relative_to(path)) for p in found)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


class _DamagedError(Exception):
    """What is wrong with a checkpoint, in a few words."""


def _verified(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every byte is the one that was written."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        own, version = manifest.pop("sha256"), manifest["format"]
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        raise _DamagedError("manifest.json is missing or unreadable") from None
    if version != FORMAT:
        raise _DamagedError(f"written in format {version}, and this version reads {FORMAT}")
    if own != _own_digest(manifest):
        raise _DamagedError("manifest.json has changed since it was written")
    for name, digest in manifest["files"].items():
        if not (path / name).is_file():
            raise _DamagedError(f"{name} is missing")
        if _digest(path / name) != digest:
            raise _DamagedError(f"{name} has changed since it was written")
    return manifest


def _reason(error: Exception) -> str:
    """In a few words: orbax wraps what the system said into paragraphs."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else str(error).strip().split("\n")[0][:200]


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Orbax logs the traceback of each of its threads that fails; the error is raised anyway."""
    logger = logging.getLogger("absl")

    def refuse(_: logging.LogRecord) -> bool:
        return False

    logger.addFilter(refuse)
    try:
        yield
    finally:
        logger.removeFilter(refuse)
