"""All checks, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Iterator

from polopt.doctor import devices, host
from polopt.doctor.finding import Finding


def examine(run: str = "runs", limits: devices.Limits | None = None) -> Iterator[Finding]:
    """Examine this machine, one finding after another.

    Args:
      run: a folder in which runs are to be kept; it need not exist.
      limits: of the checks that use devices.
    """
    yield host.python()
    yield from host.packages()
    yield host.memory()
    yield host.compile_cache()
    yield from devices.check(run, limits or devices.Limits())
