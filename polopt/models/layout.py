"""Which token is computed where: prompts once per group, what follows them packed into bins.

A trainer that pads computes the prompt of every sample again and pads every row to the longest.
Here the tokens of `N` rows are laid out as `P` prompts and `B` bins of `C` places; a bin belongs to
one prompt and holds the continuations of several rows one after another. A token sees its prompt
and, of its bin, its own continuation only: what it computes is what it computes in its own row.

Planned on the host in NumPy, from the record of a batch; the arrays go to the device as data, so
that layouts of one shape share one program. Shapes are few: sizes are rounded up in steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from polopt.errors import PoloptError
from polopt.types import Array, Trajectories, record

OUTSIDE = -1  # segment of a place that holds nothing
_STEPS = 4  # sizes per doubling: at most a quarter of the room is rounding
_LAYER = 2048  # keys whose scores cost about what else is computed of a token
_WASTE = 1.25  # of a size that has its program already, over the best one


@record
class Layout:
    """Where the tokens of N rows are computed; leaves may have more axes, of splits, in front.

    The states of a layout are flat: [0, P) those after the prompts, then place c of bin b at
    `P + b * C + c`.
    """

    prompt: Array  # i32[P,S] padded on the right
    prompt_length: Array  # i32[P]
    tokens: Array  # i32[B,C] bin b continues prompt b // (B / P)
    place: Array  # i32[B,C] how many tokens of the same continuation come before
    segment: Array  # i32[B,C] which continuation of the bin, OUTSIDE where there is none
    source: Array  # i32[N,T] the flat state that predicts each token; 0 where nobody asks

    @property
    def room(self) -> Room:
        """The size of its arrays."""
        prompts, bins = self.prompt.shape[-2], self.tokens.shape[-2]
        return Room(prompts, bins // prompts, self.prompt.shape[-1], self.tokens.shape[-1])


@dataclasses.dataclass(frozen=True)
class _Row:
    number: int  # its place among the rows of the split
    tokens: np.ndarray  # what is read of its continuation
    start: int  # position of the first of them


Split = list[tuple[np.ndarray, list[_Row]]]  # prompts, and the rows that continue each


class Room(NamedTuple):
    """The size of a layout's arrays."""

    prompts: int  # P of a split
    bins: int  # of each prompt
    prompt: int  # S
    bin: int  # C

    @property
    def positions(self) -> int:
        """How many positions are computed, padding included."""
        return self.prompts * (self.prompt + self.bins * self.bin)


def plan(
    trajectories: Trajectories,
    rows: np.ndarray,
    *,
    room: Room | None = None,
    known: Collection[Room] = (),
) -> Layout:
    """Lay out some rows of a batch, in one split or several.

    Args:
      trajectories: of the batch, on the host.
      rows: i32[R], or i32[k,m] for k splits that are computed one after another; rows of one group
        side by side. Numbers beyond the batch are padding.
      room: what a layout must fit into, so that one program serves many batches; if not given, as
        little as the rows need, with sizes rounded up so that few programs serve.
      known: rooms that have their programs; one of them is taken, unless another is much smaller.

    Returns:
      A layout whose leaves have an axis of splits in front.

    Raises:
      PoloptError: a row without room for a completion, or more than `room` holds.
    """
    parts = np.atleast_2d(rows)
    found = [_by_prompt(trajectories, part) for part in parts]
    if room is None:
        room = _best_room(found, known)
    elif not _fits(found, room):
        raise PoloptError(f"a layout needs {_least_room(found, room.bin)}, and there is {room}")
    packed = [[_pack(own, room.bin) for _, own in split] for split in found]
    shape = parts.shape[1], trajectories.tokens.shape[1]
    made = [_write(*split, room, shape) for split in zip(found, packed, strict=True)]
    return Layout(**{name: np.stack([m[name] for m in made]) for name in made[0]})


def _best_room(found: Sequence[Split], known: Collection[Room]) -> Room:
    """The cheapest size: bins longer than the longest row may leave fewer places empty."""
    shortest = round_up_steps(_least_room(found, 0).bin)
    sizes = {round_up_steps(shortest * i // _STEPS) for i in range(_STEPS, 2 * _STEPS + 1)}
    rooms = [_least_room(found, size) for size in sizes]
    best = min((r._replace(prompt=round_up_steps(r.prompt)) for r in rooms), key=_cost)
    most = _WASTE * _cost(best)  # asked first: whether rows fit takes packing them
    good = (room for room in known if _cost(room) <= most and _fits(found, room))
    return min(good, key=_cost, default=best)


def _least_room(found: Sequence[Split], size: int) -> Room:
    """What rows need in bins of a size, or of the longest row."""
    rows = [own for split in found for _, own in split]
    size = max(size, *(len(row.tokens) for own in rows for row in own), 1)
    return Room(
        prompts=max(len(split) for split in found) or 1,
        bins=max((len(_pack(own, size)) for own in rows), default=1),
        prompt=max((len(prompt) for split in found for prompt, _ in split), default=1),
        bin=size,
    )


def _fits(found: Sequence[Split], room: Room) -> bool:
    return all(a <= b for a, b in zip(_least_room(found, room.bin), room, strict=True))


def _cost(room: Room) -> float:
    """Of a forward pass, in places."""
    own = room.bins * room.bin
    return room.prompts * (room.prompt + own * (1 + room.bin / _LAYER))


def round_up_steps(size: int) -> int:
    """The next of four sizes per doubling, at least 8.

    >>> [round_up_steps(n) for n in (3, 17, 100, 129, 1000)]
    [8, 20, 112, 160, 1024]
    """
    step = max(1, (1 << max(size - 1, 0).bit_length()) // (2 * _STEPS))
    return max(-(-size // step) * step, 8)


def _by_prompt(trajectories: Trajectories, rows: Sequence[int] | np.ndarray) -> Split:
    """Prompts, and the rows that continue each; neighbours of a group with one prompt share it."""
    group = np.asarray(trajectories.group)
    tokens, mask = np.asarray(trajectories.tokens), np.asarray(trajectories.action_mask)
    length, start = np.asarray(trajectories.length), np.asarray(trajectories.prompt_length)
    found: Split = []
    last = -1
    for number, n in enumerate(rows):
        if not 0 <= n < len(length) or length[n] == 0:
            continue
        acted = np.flatnonzero(mask[n, : length[n]])
        begin = min(int(start[n]), *acted[:1].tolist(), tokens.shape[1])
        if begin == tokens.shape[1]:
            raise PoloptError(f"row {n} is all prompt: a layout needs room for a completion")
        # Nothing reads the state after the last action.
        end = max(int(start[n]), *acted[-1:].tolist(), 0)
        prompt = tokens[n, :begin]
        if not found or group[n] != last or not np.array_equal(found[-1][0], prompt):
            found.append((prompt, []))
        last = group[n]
        found[-1][1].append(_Row(number, tokens[n, begin:end], begin))
    return found


def _pack(rows: Sequence[_Row], room: int) -> list[list[_Row]]:
    """Continuations into bins, first fit, longest first."""
    bins: list[list[_Row]] = []
    left: list[int] = []
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        size = len(row.tokens)
        place = next((i for i, free in enumerate(left) if free >= size), None)
        if place is None:
            bins.append([])
            left.append(room)
            place = len(bins) - 1
        bins[place].append(row)
        left[place] -= size
    return bins


def _write(
    groups: list[tuple[np.ndarray, list[_Row]]],
    packed: list[list[list[_Row]]],
    room: Room,
    rows: tuple[int, int],
) -> dict[str, np.ndarray]:
    P, per_prompt, S, C = room
    made = {
        "prompt": np.zeros((P, S), np.int32),
        "prompt_length": np.zeros(P, np.int32),
        "tokens": np.zeros((P * per_prompt, C), np.int32),
        "place": np.zeros((P * per_prompt, C), np.int32),
        "segment": np.full((P * per_prompt, C), OUTSIDE, np.int32),
        "source": np.zeros(rows, np.int32),
    }
    for p, ((prompt, _), bins) in enumerate(zip(groups, packed, strict=True)):
        made["prompt"][p, : len(prompt)] = prompt
        made["prompt_length"][p] = len(prompt)
        for b, own in enumerate(bins, start=p * per_prompt):
            at = 0
            for segment, row in enumerate(own):
                k = len(row.tokens)
                here = slice(at, at + k)
                made["tokens"][b, here] = row.tokens
                made["place"][b, here] = np.arange(k)
                made["segment"][b, here] = segment
                source = made["source"][row.number]
                source[row.start] = p  # the first action is predicted by the prompt
                after = P + b * C + np.arange(at, at + k)
                source[row.start + 1 : row.start + 1 + k] = after[: len(source) - row.start - 1]
                at += k
    return made
