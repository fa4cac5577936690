"""What devices tell each other in a compiled program, read from its text (HLO).

A loop's body stands once in the text and is counted as often as it runs, if that is a number there.
What the TPU's compiler sends while it computes stands in the text of every fusion that it sends it
behind: of those in fusions, operations of one channel and size count once. Elsewhere each counts:
all those of a mapped function have the same channel.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from polopt.errors import PoloptError

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "token": 0} | {
    f"{kind}{bits}": bits for kind in "suf" for bits in (1, 2, 4, 8, 16, 32, 64)
}
_BITS |= {"bf16": 16, "c64": 64, "c128": 128, "f8e4m3fn": 8, "f8e5m2": 8}

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d(?:fn)?)?)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\s*\{"n":"?(\d+)"?\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"%?([\w.\-]+) = [su]\d+\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"ROOT .* compare\([^,]+, ?%?([\w.\-]+)\), direction=LT")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_ON_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[[\d,]*\](?:T\([\d,]*\))?\))? ?\{([^}]*)\}"
)
_AXIS = re.compile(r"'([^']*)'=(\d+)")
_GROUPED = re.compile(r"'([^']*)'(?::\(\d+\)(\d+))?")  # a part of an axis has its size behind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """All operations of one kind in a program.

    Attributes:
      kind: one of `KINDS`.
      count: how many run.
      bytes: that a device sends, in the usual ring; of operations in loops whose length the
        compiler does not know, once through.
    """

    kind: str
    count: int
    bytes: int


def collectives(text: str) -> tuple[Collective, ...]:
    """What is sent in a program, by kind.

    Args:
      text: of the program after partitioning, `jax.stages.Compiled.as_text()`.
    """
    computations, entry = _read(text)
    found: dict[object, _Sent] = {}
    for sent in _walk(computations, entry, 1):
        key = (sent.channel, sent.kind, sent.bytes) if sent.channel else object()
        if key not in found or sent.times > found[key].times:
            found[key] = sent
    return tuple(
        Collective(
            kind=kind,
            count=sum(sent.times for sent in found.values() if sent.kind == kind),
            bytes=sum(sent.times * sent.bytes for sent in found.values() if sent.kind == kind),
        )
        for kind in KINDS
        if any(sent.kind == kind for sent in found.values())
    )


class _Sent(NamedTuple):
    """One operation of the text."""

    kind: str
    bytes: int  # each time
    times: int
    channel: str | None  # of one in a fusion


def _read(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by its name, and the name of the one that is run."""
    found: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        head = None if line.startswith(" ") else _HEAD.match(line)
        if head:
            lines = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return found, entry


def _walk(
    computations: Mapping[str, list[str]], name: str, times: int, fused: bool = False
) -> Iterator[_Sent]:
    """Every collective that a computation runs."""
    for line in computations.get(name, ()):
        operation = _OPERATION.match(line)
        if operation is None:
            continue
        shape, verb, rest = operation.groups()
        kind = verb.removesuffix("-start")
        if kind in KINDS:
            members, channel = _members(rest), _CHANNEL.search(rest)
            size = _sent(kind, _result(kind, shape, members, verb != kind), members)
            yield _Sent(kind, size, times, channel[1] if channel and fused else None)
        inner = times * (_trips(computations, rest) if verb == "while" else 1)
        called = _CALLED.findall(rest)
        for branches in _BRANCHES.findall(rest):
            called += re.findall(r"[\w.\-]+", branches)
        for other in called:
            yield from _walk(computations, other, inner, fused or verb == "fusion")


def _trips(computations: Mapping[str, list[str]], loop: str) -> int:
    """How often a loop runs: as often as the text says, or the number it counts up to; else 1."""
    if said := _TRIPS.search(loop):
        return int(said[1])
    condition = _CONDITION.search(loop)
    lines = computations.get(condition[1], []) if condition else []
    constants = {found[1]: int(found[2]) for line in lines if (found := _CONSTANT.search(line))}
    below = next((found[1] for line in lines if (found := _BELOW.search(line))), "")
    return constants.get(below, 1)


def _result(kind: str, shape: str, members: int, started: bool) -> int:
    """Bytes of what an operation gives; some that are only started give their operands as well."""
    sizes = [
        math.prod(int(n) for n in dims.split(",") if n) * _BITS[name] // 8
        for name, dims in _ARRAY.findall(shape)
        if name in _BITS
    ]
    if started and kind == "all-gather":
        return sum(sizes) * members // (members + 1)
    if started and kind == "collective-permute":
        return max(sizes, default=0)
    return sum(sizes)


def _members(rest: str) -> int:
    """Devices that take part together; 1 where the text does not say."""
    if listed := _LISTED.search(rest):
        return listed[1].count(",") + 1
    if on_mesh := _ON_MESH.search(rest):
        sizes = dict(_AXIS.findall(on_mesh[1]))
        return math.prod(int(part or sizes[axis]) for axis, part in _GROUPED.findall(on_mesh[2]))
    if counted := _COUNTED.search(rest):
        return int(counted[1])
    if groups := re.search(r"replica_groups=[^{].{0,80}", rest):
        raise PoloptError(f"the compiler writes devices as it did not before: {groups[0]}")
    return 1


def _sent(kind: str, size: int, members: int) -> int:
    """Bytes that a device sends over a ring, for so many bytes of the result."""
    if kind == "collective-permute":
        return size
    others = members - 1
    if kind == "reduce-scatter":  # the result is one of the parts
        return size * others
    both = 2 if kind == "all-reduce" else 1  # parts are summed, then gathered
    return both * size * others // members
