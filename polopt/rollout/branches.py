"""Groups drawn as trees: rows that share a beginning share its tokens, drawn once. Host side.

A group has G places. A tree starts with a few of them and forks at the ends of its segments until
all are taken; where a tree ends with places left, it starts again from the prompt, so that every
group has G rows. A row that forks goes on by itself, and the others start from a copy of it: their
ids differ, and with them all further draws.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from polopt.rollout.episodes import Episode
from polopt.rollout.lanes import Generated
from polopt.rollout.rows import AT_PROMPT, Row, Sampler, Segment, resume
from polopt.trajectory.sampling import Branch, Uncertain
from polopt.types import Stop

# (episodes or nothing, what was drawn at their places) -> them after their next segments
Take = Callable[[Sequence[Episode | None], Generated], list[Episode | None]]


def segment_tokens(branch: Branch, max_new_tokens: int) -> int:
    """The length of a segment of a tree of given depth."""
    assert branch.depth is not None
    return min(branch.segment or math.ceil(max_new_tokens / branch.depth), max_new_tokens)


def take_segment(max_new_tokens: int, depth: int) -> Take:
    """Segments of one completion: it ends as the model ends it, or with its last segment."""

    def take(asked: Sequence[Episode | None], generated: Generated) -> list[Episode | None]:
        return [episode and one(episode, generated, n) for n, episode in enumerate(asked)]

    def one(episode: Episode, generated: Generated, n: int) -> Episode:
        row, stop = episode.row, Stop(int(generated.stop[n]))
        most = max_new_tokens - row.actions
        part = Segment.sampled(generated, n, most, 0, anchor=AT_PROMPT)
        number = episode.turn + 1
        if generated.length[n] > most:
            stop = Stop.LENGTH
        elif stop == Stop.LENGTH and number < depth and len(part.tokens) < most:
            stop = Stop.NONE
        return Episode(row=row.add(part, stop), state=None, turn=number)

    return take


def grow(
    sample: Sampler,
    groups: Sequence[Sequence[Episode]],
    take: Take,
    branch: Branch,
    widest: int,
    log_vocab: float,
) -> list[Row]:
    """Trees from beginning to end.

    Args:
      sample: one call is the next segment of every row, all groups together.
      groups: for each prompt the G episodes that would be without a tree; their ids are the
        places' own.
      take: what ends a segment.
      branch: how a tree forks.
      widest: context that still leaves a segment its tokens.
      log_vocab: the unit of entropy.

    Returns:
      The rows, group by group, with labels `node`.
    """
    trees = [_Tree(places, branch, log_vocab) for places in groups]
    while any(tree.live for tree in trees):
        asked = [episode for tree in trees for episode in tree.round()]
        rows = [None if episode is None else episode.row for episode in asked]
        generated = resume(sample, rows, widest)
        after, start = take(asked, generated), 0
        for tree in trees:
            tree.advance(generated, start, after)
            start += len(tree.places)
    return [episode.row for tree in trees for episode in tree.taken]


class _Tree:
    """One group: the episodes of its places, taken from the left."""

    def __init__(self, places: Sequence[Episode], branch: Branch, log_vocab: float) -> None:
        self.places, self.branch, self.log_vocab = places, branch, log_vocab
        half = -(-len(places) // 2)
        self.initial = branch.initial or (branch.width if branch.depth else half)
        self.taken: list[Episode] = list(places[: self.initial])
        self.nodes = 0
        self.opening: dict[int, float] = {}  # {row id: mean entropy at the start of its episode}

    @property
    def live(self) -> bool:
        return any(episode.live for episode in self.taken)

    def round(self) -> list[Episode | None]:
        """The episodes that go on, at their places."""
        going = [episode if episode.live else None for episode in self.taken]
        return going + [None] * (len(self.places) - len(going))

    def advance(self, generated: Generated, start: int, taken: Sequence[Episode | None]) -> None:
        """Add a segment to every live episode, then fork, then start again if all have ended.

        Args:
          generated: of all groups.
          start: of this one in them.
          taken: the episodes of all groups after their segments.
        """
        before = list(self.taken)
        went_on = [place for place, episode in enumerate(before) if episode.live]
        for place in went_on:
            after = taken[start + place]
            assert after is not None
            self.taken[place] = dataclasses.replace(after, row=self._labelled(before[place], after))
        if self.branch.uncertain is None:
            forks = [self.taken[place] for place in went_on if self.taken[place].live]
        else:
            forks = [
                before[place]
                for place in went_on
                if self._unsure(self.branch.uncertain, before[place], generated, start + place)
            ]
        for _ in range(self.branch.width - 1):  # one more child each, before any has two
            for episode in forks:
                self._fork(episode)
        if not self.live:
            first = len(self.taken)
            self.taken += self.places[first : first + self.initial]

    def _fork(self, episode: Episode) -> None:
        if len(self.taken) == len(self.places):
            return
        place = self.places[len(self.taken)].row.id
        if episode.row.id in self.opening:
            self.opening[place] = self.opening[episode.row.id]
        self.taken.append(
            dataclasses.replace(episode, row=dataclasses.replace(episode.row, id=place))
        )

    def _labelled(self, before: Episode, after: Episode) -> Row:
        """The row whose new segment has a node of its own; an observation has none."""
        old = len(before.row.segments)
        new = after.row.segments[old]
        labels = {**new.labels, "node": self.nodes}
        self.nodes += 1
        segment = dataclasses.replace(new, labels=labels)
        segments = (*after.row.segments[:old], segment, *after.row.segments[old + 1 :])
        return dataclasses.replace(after.row, segments=segments)

    def _unsure(self, rule: Uncertain, episode: Episode, generated: Generated, n: int) -> bool:
        """Whether the turn that row n has begun is one to try again (ARPO, section 3.1)."""
        assert generated.entropy is not None
        known = generated.entropy[n, : min(int(generated.length[n]), rule.tokens)]
        entropy = float(np.mean(known))
        if episode.turn == 0:
            self.opening[episode.row.id] = entropy
            return False
        risen = (entropy - self.opening[episode.row.id]) / self.log_vocab
        uniform = np.random.default_rng([episode.row.id, episode.turn]).random()
        return bool(uniform - rule.weight * risen <= rule.threshold)
