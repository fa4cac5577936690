"""Checks that use devices, through a child process: a runtime that hangs is killed and named.

The child is `polopt.doctor.probe`; each question has a time limit of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from polopt.child import KilledError, kill, reply
from polopt.doctor.finding import Finding
from polopt.doctor.host import gigabytes, room_for
from polopt.launch.hardware import has_nvidia, tpu_chips

PROBE = (sys.executable, "-m", "polopt.doctor.probe")
_SLOW_DISK = 5e6  # bytes a second


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds that each question may take."""

    start: float = 120.0  # importing jax and waking the devices
    write: float = 60.0
    compile: float = 60.0
    collective: float = 2.0


def check(run: str, limits: Limits, probe: tuple[str, ...] = PROBE) -> Iterator[Finding]:
    """Devices, their memory, a checkpoint written and read, and a sum over all of them.

    Args:
      run: a folder in which runs are to be kept.
      limits: of each question.
      probe: the command of the child.
    """
    place, finding = room_for(run)
    with contextlib.closing(_Probe(probe)) as child:
        try:
            seen = child.ask(limits.start, "devices")
        except KilledError as error:
            yield _no_devices(str(error))
            yield finding or Finding("run folder", "warn", f"{run}: not tried without devices")
            return
        yield _devices(seen)
        yield _device_memory(seen)
        if place is not None:
            with tempfile.TemporaryDirectory(prefix=".polopt-doctor-", dir=place) as folder:
                written = _written(child, run, folder, limits.write)
            finding = written if finding is None or written.mark == "fail" else finding
        assert finding is not None
        yield finding
        yield _collective(child, len(seen["devices"]), limits)


class _Probe:
    """The child process, and what it last wrote to standard error."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )

    def ask(self, seconds: float, *question: str) -> dict[str, Any]:
        """The answer to one question.

        Raises:
          KilledError: none within the time, or the child ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            return reply(self._process, seconds)
        except (ValueError, BrokenPipeError, KilledError) as error:
            kill(self._process)
            said = self._last_words()
            raise KilledError(f"{error}: {said}" if said else str(error)) from error

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """End the child."""
        kill(self._process)
        self._errors.close()


def _no_devices(why: str) -> Finding:
    advice = "end the process that holds them; on several hosts start the doctor on all at once"
    return Finding("devices", "fail", f"no answer from jax: {why}", advice)


def _devices(seen: dict[str, Any]) -> Finding:
    kinds = [device["kind"] for device in seen["devices"]]
    count = ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))
    found = f"{seen['platform']}: {count}"
    if seen["processes"] > 1:
        found += f" of {seen['all_devices']} in {seen['processes']} processes"
    if seen["platform"] == "cpu" and tpu_chips():
        advice = 'pip install -U "jax[tpu]", and leave JAX_PLATFORMS unset'
        return Finding("devices", "warn", f"{found}; the TPU is not used", advice)
    if seen["platform"] == "cpu" and has_nvidia():
        advice = 'pip install -U "jax[cuda13]", and leave JAX_PLATFORMS unset'
        return Finding("devices", "warn", f"{found}; the GPU is not used", advice)
    return Finding("devices", "ok", f"{found}; attention by {seen['attention']}")


def _device_memory(seen: dict[str, Any]) -> Finding:
    name, sizes = "device memory", [device["memory"] for device in seen["devices"]]
    if None in sizes:
        return Finding(name, "ok", "that of the host" if seen["platform"] == "cpu" else "not told")
    least, used = min(size["limit"] for size in sizes), max(size["used"] for size in sizes)
    return Finding(name, "ok", f"{gigabytes(least)} each, at most {gigabytes(used)} in use")


def _written(child: _Probe, run: str, folder: str, seconds: float) -> Finding:
    name, advice = "run folder", "choose another folder (--run)"
    try:
        answer = child.ask(seconds, "write", folder)
    except KilledError as error:
        return Finding(name, "fail", f"{run}: no checkpoint could be written: {error}", advice)
    if "error" in answer:
        return Finding(name, "fail", f"{run}: {answer['error']}", advice)
    rate = answer["bytes"] / max(answer["seconds"], 1e-9)
    found = f"{run}: a checkpoint written, verified and read at {rate / 1e6:.0f} MB/s"
    if rate < _SLOW_DISK:
        return Finding(name, "warn", found, "choose a faster disk, or a larger --checkpoint-every")
    return Finding(name, "ok", found)


def _collective(child: _Probe, devices: int, limits: Limits) -> Finding:
    name, advice = "collective", "restart the devices or the machine; a run would hang like this"
    try:
        child.ask(limits.compile, "compile")
        answer = child.ask(limits.collective, "collective")
    except KilledError as error:
        return Finding(name, "fail", f"no sum over {devices} devices: {error}", advice)
    if answer["wrong"]:
        bad = ", ".join(map(str, answer["wrong"]))
        return Finding(name, "fail", f"wrong sum over {devices} devices on {bad}", advice)
    took = f"{1e3 * answer['seconds']:.1f} ms"
    return Finding(name, "ok", f"right sum over {devices} devices in {took}")
