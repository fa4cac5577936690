"""Asking the compiler: whether a program fits, what it takes, and what its devices tell each other.

The TPU's compiler is the package libtpu, which needs no TPU.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from polopt.errors import PoloptError
from polopt.plan.collectives import Collective, collectives
from polopt.plan.slices import CPU, Slice

_WORDS = 300  # characters of a refusal that are kept
# A TPU of this machine is not asked for, nor another process that may have it, and a machine
# without one is not warned of.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
_MEMORY = re.compile(r"CompileTimeHbmOom|Ran out of memory|RESOURCE_EXHAUSTED", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bytes:
    """What a program holds on each device, as its compiler says.

    Attributes:
      arguments, outputs: of a call.
      reused: outputs that lie where arguments were.
      temporary: everything in between: activations, gradients, gathered weights, buffers.
      code: the program itself.
    """

    arguments: int
    outputs: int
    reused: int
    temporary: int
    code: int

    @property
    def peak(self) -> int:
        """Most that is there at one time."""
        return self.arguments + self.outputs - self.reused + self.temporary + self.code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A program, or the compiler's refusal to make it.

    Attributes:
      name: of the step.
      seconds: that lowering and compiling took.
      refusal: the compiler's own words; None if it made the program.
      bytes: None if it did not.
      collectives: what is sent.
      lowered, compiled: as `jax.stages` has them; None if it was refused.
    """

    name: str
    seconds: float
    refusal: str | None = None
    bytes: Bytes | None = None
    collectives: tuple[Collective, ...] = ()
    lowered: Any = dataclasses.field(default=None, repr=False)
    compiled: Any = dataclasses.field(default=None, repr=False)


def compile_program(
    name: str, lower: Callable[[], Any], options: Mapping[str, Any] | None = None
) -> Program:
    """Lower a step and compile it.

    Args:
      name: of the step, in what is said of it.
      lower: gives `jax.stages.Lowered`.
      options: for the compiler.

    Raises:
      PoloptError: the compiler failed for another reason than memory.
    """
    start = time.perf_counter()
    lowered = lower()
    try:
        compiled = lowered.compile(compiler_options=dict(options or {}))
    except jax.errors.JaxRuntimeError as error:
        words = _shortened(str(error))
        if not _MEMORY.search(str(error)):
            raise PoloptError(f"the compiler failed on the {name}: {words}") from error
        return Program(name=name, seconds=time.perf_counter() - start, refusal=words)
    found = compiled.memory_analysis()
    return Program(
        name=name,
        seconds=time.perf_counter() - start,
        bytes=Bytes(
            arguments=found.argument_size_in_bytes,
            outputs=found.output_size_in_bytes,
            reused=found.alias_size_in_bytes,
            temporary=found.temp_size_in_bytes,
            code=found.generated_code_size_in_bytes,
        ),
        collectives=collectives(compiled.as_text()),
        lowered=lowered,
        compiled=compiled,
    )


def _shortened(words: str) -> str:
    """The first paragraph of an error, on one line."""
    line = " ".join(words.strip().partition("\n\n")[0].split())
    return line if len(line) <= _WORDS else f"{line[: _WORDS - 1]}…"


def options_of(where: Slice, effort: str) -> dict[str, Any]:
    """What the compiler is told: with "quick" effort the TPU's does not search for speed."""
    return {"exec_time_optimization_effort": -1.0} if where.chip and effort == "quick" else {}


def devices_of(where: Slice) -> Sequence[Any]:
    """Devices to compile for, in JAX's order; those of a TPU slice are not here.

    Raises:
      PoloptError: the compiler is not installed or does not know the topology, or this machine has
        fewer CPU devices.
    """
    if where.generation == CPU:
        there = jax.devices(CPU)
        if len(there) < where.chips:
            raise PoloptError(
                f"slice: {where.name} asks for {where.chips} devices, and JAX has {len(there)} on "
                "this machine: set XLA_FLAGS=--xla_force_host_platform_device_count="
                f"{where.chips}"
            )
        return there[: where.chips]
    if importlib.util.find_spec("libtpu") is None:
        raise PoloptError(
            'planning for a TPU needs its compiler, the package libtpu: pip install "polopt[tpu]" '
            "(Linux), or leave the compiler out (--no-compile)"
        )
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=where.topology, **_options(where)
        )
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        words = _shortened(str(error))
        raise PoloptError(f"slice: the compiler has no {where.topology}: {words}") from error
    return found.devices


def _options(where: Slice) -> dict[str, Any]:
    """Of a topology: one device to a chip, chips of a host, and dimensions that are rings."""
    flat = len(where.shape) < 3
    x, y, *_ = where.shape
    return {
        "chip_config_name": "default" if flat else "megacore",
        "chips_per_host_bounds": (min(x, 2), min(y, 2), 1),
        "wrap": (*where.wraps, False) if flat else where.wraps,
        "num_slices": 1,
    }
