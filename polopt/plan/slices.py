"""Slices of TPUs by name: their topology, and what a chip of them has.

Figures are those of Google's documentation, pages docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and
/v6e, where the interconnect is both directions of all links of a chip together; the links of v4 are
those of 2304.01433. Names count TensorCores on v4 and v5p, of which a chip has two, and chips on
v5e and v6e. JAX has one device for each chip of all of these.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping

from polopt.errors import UsageError, did_you_mean

CPU = "cpu"
GIB = 2**30

_FLAT = {  # chips: shape
    1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"
}  # fmt: skip
_CUBES = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
    512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16",
}  # fmt: skip

_ACROSS, _CUBE = 16, 4  # chips along a side of a pod of v5e or v6e, and of a cube of the others


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """What a chip has.

    Args:
      counted: TensorCores or chips that its names count, for each chip.
      hbm: bytes of memory, as its compiler has them for programs: a little is kept back.
      flops: products and sums of bfloat16 per second.
      bandwidth: bytes of memory per second.
      link: bytes per second over one link of the interconnect, in one direction.
      shapes: usual topologies by number of chips.
    """

    counted: int
    hbm: float
    flops: float
    bandwidth: float
    link: float
    shapes: Mapping[int, str]


GENERATIONS: Mapping[str, Generation] = {
    "v4": Generation(
        counted=2, hbm=30.75 * GIB, flops=275e12, bandwidth=1200e9, link=50e9, shapes=_CUBES
    ),
    "v5e": Generation(
        counted=1, hbm=15.75 * GIB, flops=197e12, bandwidth=819e9, link=50e9, shapes=_FLAT
    ),
    "v5p": Generation(
        counted=2, hbm=95.74 * GIB, flops=459e12, bandwidth=2765e9, link=100e9, shapes=_CUBES
    ),
    "v6e": Generation(
        counted=1, hbm=31.25 * GIB, flops=918e12, bandwidth=1638e9, link=100e9, shapes=_FLAT
    ),
}
_ALIASES = {"v5litepod": "v5e"}  # as gcloud spells it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """Devices that work together.

    Args:
      name: as it was asked for.
      generation: a key of `GENERATIONS`, or "cpu".
      shape: of the torus, in chips.
    """

    name: str
    generation: str
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """How many."""
        return math.prod(self.shape)

    @property
    def topology(self) -> str:
        """The name that JAX knows it by."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def chip(self) -> Generation | None:
        """What each has; None for the CPU, of which no such figures are known."""
        return GENERATIONS.get(self.generation)

    @property
    def platform(self) -> str:
        """As JAX names it."""
        return CPU if self.chip is None else "tpu"

    @property
    def memory(self) -> int:
        """Bytes of a device; on the CPU an equal share of what the machine has."""
        if self.chip is not None:
            return int(self.chip.hbm)
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // self.chips

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Which dimensions close to a ring: those across a pod, and all of them in whole cubes."""
        if len(self.shape) < 3:
            return tuple(size == _ACROSS for size in self.shape)
        return (all(size % _CUBE == 0 for size in self.shape),) * 3

    @property
    def links(self) -> int:
        """Links of a chip that lead to other chips: of one that has fewest, in a corner if any."""
        if self.chip is None:
            return 0
        ends = zip(self.shape, self.wraps, strict=True)
        return sum(2 if wraps else int(size > 1) for size, wraps in ends)


def read_slice(name: str) -> Slice:
    """The slice that a name means.

    >>> read_slice("v5p-64").topology, read_slice("v5litepod-16").chips, read_slice("v5e:2x4").chips
    ('v5p:2x4x4', 16, 8)

    Args:
      name: a generation and a number, as Google names slices; or, after a colon, a shape in chips;
        "cpu" or "cpu-8" for devices of this machine.

    Raises:
      UsageError: an unknown generation, or a number or shape that it does not have.
    """
    kind, mark, size = _parted(name)
    if kind == CPU:
        if mark == ":" or not (size or "1").isdecimal() or size == "0":
            raise UsageError(f"slice: {name!r} is not of the form cpu or cpu-8")
        return Slice(name=name, generation=CPU, shape=(int(size or 1),))
    if kind not in GENERATIONS:
        raise UsageError(
            f"slice: no generation {kind!r}{did_you_mean(kind, GENERATIONS)} (accepted are "
            f"{', '.join(GENERATIONS)}, and cpu): v5e-16"
        )
    generation = GENERATIONS[kind]
    if mark == ":":
        return Slice(name=name, generation=kind, shape=_shape(name, size, generation))
    numbers = {str(chips * generation.counted): shape for chips, shape in generation.shapes.items()}
    if size not in numbers:
        what = "TensorCores" if generation.counted > 1 else "chips"
        raise UsageError(
            f"slice: {kind} has no {size or 'slice without a number'}: numbers of {what} are "
            f"{', '.join(numbers)}; or give a shape, as {kind}:{next(iter(numbers.values()))}"
        )
    return Slice(name=name, generation=kind, shape=_sizes(numbers[size]))


def _parted(name: str) -> tuple[str, str, str]:
    mark = ":" if ":" in name else "-"
    kind, mark, size = name.strip().lower().partition(mark)
    return _ALIASES.get(kind, kind), mark, size


def _shape(name: str, text: str, generation: Generation) -> tuple[int, ...]:
    dimensions = len(_sizes(next(iter(generation.shapes.values()))))
    parts = text.split("x")
    if len(parts) != dimensions or not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(
            f"slice: {name!r} is no shape: {name.partition(':')[0]} has {dimensions} dimensions, "
            f"as {list(generation.shapes.values())[-1]}"
        )
    return _sizes(text)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))
