"""The engine: more rows than lanes, and lanes that are never idle for long.

Host half of sampling. A fixed number of lanes decodes; a lane that is done takes the next
completion of its slot's prompt, and a slot whose lanes are done takes the next prompt, which is
read once however many completions it gets. Shapes are static, so each program compiles once. At
the end, when nothing waits any more, the lanes that still run are moved together.

What is drawn depends on row ids and positions only, never on the lane: the engine's completions
are those of `polopt.rollout.sampler.generate`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from polopt.compiler import jit
from polopt.errors import PoloptError
from polopt.models.spread import whole
from polopt.rollout import lanes as device
from polopt.rollout.lanes import Drawing, Generated, Lanes, Model
from polopt.types import Stop

NOBODY = -1
_FEWEST = 4  # lanes below which moving them together saves nothing
_GROWTH = 4  # sizes through which the ring grows while all lanes are at the same place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """A sampler of fixed slots.

    Args:
      model: the decoder, or two of them that write together.
      drawing: how tokens are drawn and what ends a row; the completions of a call.
      max_new_tokens: C, most tokens of a completion.
      lanes: rows that decode side by side; None for all rows of a call at once.
      compact: move the last running lanes together, and let the cache grow: less work for a few
        more programs.

    Raises:
      PoloptError: fewer than one lane.
    """

    model: Model
    drawing: Drawing
    max_new_tokens: int
    lanes: int | None = None
    compact: bool = True

    def __post_init__(self) -> None:
        if self.lanes is not None and self.lanes < 1:
            raise PoloptError(f"Engine.lanes is {self.lanes}: give 1 or more")

    def __call__(
        self,
        params: Any,
        key: Any,
        prompts: np.ndarray,
        lengths: np.ndarray,
        ids: np.ndarray,
        offset: np.ndarray | None = None,
        most: np.ndarray | None = None,
    ) -> Generated:
        """Complete `prompts i32[P,S]` of `lengths i32[P]` for rows `ids i32[P,G]`.

        Args:
          params: of the model.
          key: of the run.
          prompts, lengths: padded on the right; a length of 0 is a padding prompt.
          ids: unique in the run.
          offset: i32[P,G], the position of each row's first token; 0 if not given.
          most: i32[P,G], tokens after which each row stops, 1 to C; C if not given.

        Returns:
          Generated, of N = P * G rows, on the host.

        Raises:
          PoloptError: a `most` below 1 or above C.
        """
        C = self.max_new_tokens
        offset = np.zeros_like(ids) if offset is None else offset
        most = np.full_like(ids, C) if most is None else np.asarray(most)
        if most.size and not (most.min() >= 1 and most.max() <= C):
            raise PoloptError(
                f"Engine: most is {most.min()} to {most.max()} tokens: give 1 to {C} "
                "(max_new_tokens)"
            )
        return _Call(self, params, key, prompts, lengths, ids, offset, most).go()


class _Place(NamedTuple):
    """What a lane is at."""

    slot: int
    row: int  # NOBODY if it is idle


class _Call:
    """One call of the engine: the rows that wait, and where the others are."""

    def __init__(
        self,
        engine: Engine,
        params: Any,
        key: Any,
        prompts: np.ndarray,
        lengths: np.ndarray,
        ids: np.ndarray,
        offset: np.ndarray,
        most: np.ndarray,
    ) -> None:
        self.engine, self.params, self.key = engine, params, key
        self.prompts, self.lengths = np.asarray(prompts), np.asarray(lengths)
        self.ids, self.offset, self.most = (np.asarray(x).reshape(-1) for x in (ids, offset, most))
        P, self.G = ids.shape
        self.waiting = [p for p in range(P) if lengths[p] > 0]  # prompts without a slot
        slots, self.width = _shape(len(self.waiting), self.G, engine.lanes)
        self.prompt_of = [NOBODY] * slots
        self.rest: list[Iterator[int]] = [iter(()) for _ in range(slots)]  # rows without a lane
        self.left = [0] * slots  # how many those are
        self.row_of = [NOBODY] * (slots * self.width)
        self.steps = 0
        self.found = _nothing(len(self.ids), engine.max_new_tokens, engine.drawing.entropy)

    def go(self) -> Generated:
        """Until every row is found."""
        if not self.waiting:
            return self.found
        state = self._open()
        while True:
            starting = self._assign()
            state = self._advance(state, starting)
            self._harvest(state)
            state = self._refill(state)
            if not self._busy() and not any(self.left):
                return self.found
            state = self._together(state)

    # ------------------------------------------------------------ prompts and slots

    def _take(self, slots: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The next prompts, for so many slots, and their lengths; 0 where none is left."""
        tokens = np.zeros((len(slots), self.prompts.shape[1]), np.int32)
        lengths = np.zeros(len(slots), np.int32)
        for i, slot in enumerate(slots):
            if self.waiting:
                p = self.waiting.pop(0)
                tokens[i], lengths[i] = self.prompts[p], self.lengths[p]
                self.prompt_of[slot] = p
                self.rest[slot] = iter(range(p * self.G, (p + 1) * self.G))
                self.left[slot] = self.G
        return tokens, lengths

    def _open(self) -> Lanes:
        engine, C = self.engine, self.engine.max_new_tokens
        once = len(self.waiting) == len(self.prompt_of) and self.width == self.G
        self.rooms = _rooms(C) if once and engine.compact else [C]
        tokens, lengths = self._take(list(range(len(self.prompt_of))))
        return _open(
            engine.model,
            self.params,
            tokens,
            lengths,
            key=self.key,
            lanes=self.width,
            room=C,
            ring=self.rooms[0],
            entropy=engine.drawing.entropy,
        )

    def _refill(self, state: Lanes) -> Lanes:
        """New prompts for slots whose lanes are idle and whose rows are all drawn."""
        free = [
            slot
            for slot in range(len(self.prompt_of))
            if not self.left[slot] and not any(self._running(slot))
        ]
        some = max(1, len(self.prompt_of) // 8)  # at a time: one more shape, not many
        while self.waiting and free:
            chosen, free = free[:some], free[some:]
            tokens, lengths = self._take(chosen)
            none = len(self.prompt_of)
            short = some - len(chosen)
            slots = np.array([*chosen, *[none] * short], np.int32)
            tokens = np.pad(tokens, ((0, short), (0, 0)))
            lengths = np.pad(lengths, (0, short))
            state = _admit(self.engine.model, self.params, state, tokens, lengths, slots)
        return state

    def _running(self, slot: int) -> list[bool]:
        part = self.row_of[slot * self.width : (slot + 1) * self.width]
        return [row != NOBODY for row in part]

    def _busy(self) -> bool:
        return any(row != NOBODY for row in self.row_of)

    # ------------------------------------------------------------ lanes

    def _assign(self) -> np.ndarray:
        """bool[N]: idle lanes that take the next row of their slot."""
        starting = np.zeros(len(self.row_of), bool)
        for lane, row in enumerate(self.row_of):
            slot = lane // self.width
            if row == NOBODY and self.left[slot]:
                self.row_of[lane] = next(self.rest[slot])
                self.left[slot] -= 1
                starting[lane] = True
        return starting

    def _advance(self, state: Lanes, starting: np.ndarray) -> Lanes:
        """Decode until something can be done on the host."""
        engine, N = self.engine, len(self.row_of)
        rows = np.maximum(self.row_of, 0)
        idle = self.row_of.count(NOBODY)
        if self.waiting or any(self.left):
            enough = min(idle + max(1, N // 8), N)
        elif engine.compact and N > _FEWEST:
            enough = max(N // 2, idle + 1)
        else:
            enough = N
        if len(self.rooms) > 1 and self.steps >= self.rooms[0]:
            self.rooms.pop(0)
            state = _grow(state, self.rooms[0])
        until = self.rooms[0] if len(self.rooms) > 1 else np.iinfo(np.int32).max
        if starting.any():
            state = _start(
                engine.model,
                self.params,
                state,
                starting,
                self.ids[rows],
                self.offset[rows],
                self.most[rows],
                engine.drawing,
            )
        return _run(
            engine.model,
            self.params,
            state,
            engine.drawing,
            until=np.int32(until),
            idle=np.int32(enough),
        )

    def _harvest(self, state: Lanes) -> None:
        """Take what has stopped."""
        running, step = _read((state.running, state.step))
        self.steps = int(step)
        done = [i for i, row in enumerate(self.row_of) if row != NOBODY and not running[i]]
        if not done:
            return
        out = _read(state.out)
        rows = [self.row_of[i] for i in done]
        for name in ("tokens", "length", "logp_sampler", "log_keep", "stop", "entropy"):
            column = getattr(self.found, name)
            if column is not None:
                column[rows] = getattr(out, name)[done]
        for lane in done:
            self.row_of[lane] = NOBODY

    def _together(self, state: Lanes) -> Lanes:
        """Half as many lanes, when nothing waits and that is enough."""
        N = len(self.row_of)
        if self.waiting or any(self.left) or not self.engine.compact or N <= _FEWEST:
            return state
        slots, chosen, width = _fold(self.row_of, self.width, N // 2)
        if not slots:
            return state
        self.row_of = [NOBODY if lane == NOBODY else self.row_of[lane] for lane in chosen]
        self.width = width
        self.prompt_of = [self.prompt_of[slot] for slot in slots]
        self.left = [0] * len(slots)
        self.rest = [iter(()) for _ in slots]
        lanes = np.array([max(lane, 0) for lane in chosen], np.int32)
        live = np.array([lane != NOBODY for lane in chosen])
        return _compact(state, np.array(slots, np.int32), lanes, live)


def _shape(prompts: int, group: int, lanes: int | None) -> tuple[int, int]:
    """(slots, lanes of each): whole groups where all fit at once, else one lane to a prompt.

    A group shares the reading of its prompt's keys; single lanes never wait for the slowest of
    their group.
    """
    if lanes is None or lanes >= prompts * group:
        return prompts, group
    if lanes <= prompts:
        return lanes, 1
    return prompts, max(1, lanes // prompts)


def _rooms(C: int) -> list[int]:
    return sorted({-(-C * i // _GROWTH) for i in range(1, _GROWTH + 1)})


def _fold(row_of: list[int], width: int, most: int) -> tuple[list[int], list[int], int]:
    """Slots, lanes (NOBODY for idle) and width of at most `most` lanes; nothing if that is too few.

    Lanes of a slot stay neighbours, as wide as fits: they share the reading of their prompt.
    """
    running: dict[int, list[int]] = {}
    for lane, row in enumerate(row_of):
        if row != NOBODY:
            running.setdefault(lane // width, []).append(lane)
    for narrow in (w for w in (8, 4, 2, 1) if w <= width):
        count = sum(-(-len(own) // narrow) for own in running.values())
        if count * narrow > most:
            continue
        slots, chosen = [], []
        for slot, own in running.items():
            for i in range(0, len(own), narrow):
                part = own[i : i + narrow]
                slots.append(slot)
                chosen += [*part, *[NOBODY] * (narrow - len(part))]
        spare = most // narrow - len(slots)
        return slots + slots[:1] * spare, chosen + [NOBODY] * (spare * narrow), narrow
    return [], [], width


def _nothing(N: int, C: int, entropy: bool) -> Generated:
    return Generated(
        tokens=np.zeros((N, C), np.int32),
        length=np.zeros(N, np.int32),
        logp_sampler=np.zeros((N, C), np.float32),
        log_keep=np.zeros((N, C), np.float32),
        stop=np.full(N, Stop.NONE, np.int32),
        entropy=np.zeros((N, C), np.float32) if entropy else None,
    )


# ---------------------------------------------------------------- compiled


def _compiled(fn: Callable[..., Lanes], **how: Any) -> Callable[..., Lanes]:
    """Compiled, with lanes that lie on devices alike before and after."""

    @functools.wraps(fn)
    def run(*args: Any, **options: Any) -> Lanes:
        return device.spread(fn(*args, **options))

    return jit(run, **how)


def _read(tree: Any) -> Any:
    """On the host, also what lies on devices of other processes."""
    if not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        tree = _whole(tree)
    return jax.device_get(tree)


_whole = jit(whole)
_open = _compiled(
    device.open_lanes, static_argnums=0, static_argnames=("lanes", "room", "ring", "entropy")
)
_admit = _compiled(device.admit, static_argnums=0, donate_argnums=2)
_start = _compiled(device.start, static_argnums=0, donate_argnums=2)
_run = _compiled(device.run, static_argnums=0, donate_argnums=2)
_grow = _compiled(device.grow, static_argnums=1)


@_compiled
def _compact(lanes: Lanes, slots: Any, chosen: Any, live: Any) -> Lanes:
    lanes = device.compact(lanes, slots, chosen)
    return dataclasses.replace(lanes, running=lanes.running & live)
