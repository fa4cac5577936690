"""Checks that need no jax: versions, memory, the compile cache, room for a run's folder."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import re
import shutil
import tempfile
from pathlib import Path

from polopt.doctor.finding import Finding
from polopt.launch.hardware import tpu_chips

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "numpy")
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
_LITTLE_MEMORY = 2 << 30  # the small default run needs about half of it
_LITTLE_DISK = 2 << 30


def python() -> Finding:
    """The interpreter."""
    return Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")


def packages() -> list[Finding]:
    """Versions of what decides a run's numbers, against those that polopt asks for."""
    return [_package(name) for name in PACKAGES] + [_libtpu()]


def _package(name: str) -> Finding:
    found, least = _version(name), _least(name)
    if found is None:
        return Finding(name, "fail", "not installed", f'pip install -U "{name}"')
    if least is not None and _numbers(found) < _numbers(least):
        return Finding(name, "fail", f"{found}, older than {least}", f'pip install -U "{name}"')
    return Finding(name, "ok", found)


def _libtpu() -> Finding:
    found = _version("libtpu")
    if found is not None:
        return Finding("libtpu", "ok", found)
    if chips := tpu_chips():
        say = f"not installed, and this machine has {chips} TPU chips"
        return Finding("libtpu", "fail", say, 'pip install -U "jax[tpu]"')
    return Finding("libtpu", "ok", "not installed; only a TPU needs it")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _least(name: str) -> str | None:
    """The oldest version that polopt takes; None where it says nothing of the package."""
    try:
        asked = metadata.requires("polopt") or []
    except metadata.PackageNotFoundError:  # run from its source tree
        return None
    bounds = (re.match(r"([\w-]+)>=([\d.]+)", line) for line in asked)
    return next((bound[2] for bound in bounds if bound and bound[1] == name), None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def memory() -> Finding:
    """Memory of the host that is free for a run."""
    sizes = dict(re.findall(r"^(\w+): +(\d+) kB", _read(_MEMINFO), re.MULTILINE))
    if "MemAvailable" not in sizes:
        return Finding("memory", "ok", "unknown: this system does not say")
    whole, free = int(sizes["MemTotal"]) << 10, int(sizes["MemAvailable"]) << 10
    cap = _read(_CGROUP).strip()
    if cap.isdigit() and int(cap) < whole:  # a container's share of it
        whole, free = int(cap), min(free, int(cap))
    found = f"{gigabytes(free)} free of {gigabytes(whole)}"
    if free < _LITTLE_MEMORY:
        return Finding("memory", "warn", found, "end other programs, or train with --micro-batch")
    return Finding("memory", "ok", found)


def compile_cache() -> Finding:
    """Where compiled programs are kept from one start to the next."""
    name, place = "compile cache", os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if not place:
        advice = "export JAX_COMPILATION_CACHE_DIR=$HOME/.cache/polopt"
        return Finding(name, "warn", "off: every start compiles anew", advice)
    if "://" in place:
        return Finding(name, "ok", f"{place}, a bucket: not tried")
    folder = Path(place).expanduser()
    if fault := _not_writable(_existing(folder)):
        advice = "export JAX_COMPILATION_CACHE_DIR to a folder that you may write to"
        return Finding(name, "fail", f"{folder}: {fault}", advice)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Finding(name, "ok", f"{folder}, {size / 1e6:.1f} MB")


def room_for(run: str) -> tuple[Path | None, Finding | None]:
    """Where the folder of a run would be written, and what speaks against it.

    Returns:
      The nearest folder that exists, None if none can be written to; and a finding, if there is
      anything to say before the write test.
    """
    name = "run folder"
    if "://" in run:
        say = f"{run}: runs are kept in a file system"
        return None, Finding(name, "fail", say, "mount the bucket (gcsfuse) and name the mount")
    place = _existing(Path(run).expanduser())
    if fault := _not_writable(place):
        say = f"{run}: {place} {fault}" if str(place) != run else f"{run}: {fault}"
        return None, Finding(name, "fail", say, "choose another folder (--run)")
    free = shutil.disk_usage(place).free
    if free < _LITTLE_DISK:
        say = f"{run}: {gigabytes(free)} left on the disk"
        return place, Finding(name, "warn", say, "make room: a checkpoint is three times the model")
    return place, None


def _existing(path: Path) -> Path:
    """The path, or the nearest of its parents that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _not_writable(folder: Path) -> str:
    """Why no file can be made in a folder; empty if one can."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return (error.strerror or str(error)).lower()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def gigabytes(size: float) -> str:
    """A number of bytes to read: ``15.6 GB``."""
    return f"{size / 1e9:.1f} GB"
