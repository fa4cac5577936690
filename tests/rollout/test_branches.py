"""Trees: what rows share is the same to the last bit, what they do not is drawn anew."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from polopt.errors import PoloptError
from polopt.reward.trees import tree_of
from polopt.rollout.collect import Cursor, Writers
from polopt.trajectory import Branch, Uncertain
from polopt.types import Stop
from rollout import tally

PLAIN = tally.task(None)
G = 6


def trees(branch, on=PLAIN, **changes):
    return tally.collector(on, branch=branch, group_size=G, **changes)


def paths(batch):
    """The nodes of every row, in order."""
    nodes = np.where(batch.action_mask, batch.columns["node"], -1)
    return [[node for node, _ in itertools.groupby(row[row >= 0])] for row in nodes]


def write_all(made, script, groups=1):
    ids = np.arange(groups * G, dtype=np.int32).reshape(groups, G)
    rows = made.draw(script, [made.task.train(i) for i in range(groups)], ids, fork=True)
    return made.write(rows)


class Letters:
    """Every row goes on for ever, with a letter of its own: what is written tells who wrote it."""

    def __init__(self, made, ends=()):
        self.made, self.ends = made, dict(ends)

    def __call__(self, prompts, lengths, ids, offset):
        texts = {}
        for i, at in zip(ids.reshape(-1), offset.reshape(-1), strict=True):
            end = self.ends.get(int(i))
            text = "defghimnopqr"[i % G] * self.made.turn_tokens
            texts[int(i)] = [text if end is None or at < end else text[:1] + "."]
        return tally.Script(self.made, texts)(prompts, lengths, ids, offset)


# ---------------------------------------------------------------- segments of fixed length


def test_a_tree_forks_at_the_end_of_every_segment():
    made = trees(Branch(width=2, depth=3))  # 3 segments of 4 tokens
    batch, texts = write_all(made, Letters(made), groups=2)
    d, e, f, g, h, i = (letter * 4 for letter in "defghi")
    # Two rows begin; both fork at 4 tokens; two places are left, for the first who fork at 8.
    assert texts[:G] == [d + d + d, e + e + e, d + f + f, e + g + g, d + d + h, e + e + i]
    assert texts[G:] == texts[:G]
    assert paths(batch)[:G] == [[0, 2, 6], [1, 3, 7], [0, 4, 8], [1, 5, 9], [0, 2, 10], [1, 3, 11]]
    assert paths(batch)[G:] == paths(batch)[:G]
    assert (batch.stop == Stop.LENGTH).all()
    assert (batch.turn[batch.action_mask] == 0).all()
    assert (batch.columns["node"][~batch.action_mask] == -1).all()
    assert batch.id.tolist() == list(range(2 * G))


def test_all_children_are_born_before_any_has_a_brother_too_many():
    made = trees(Branch(width=3, depth=2, segment=6))
    found = paths(write_all(made, Letters(made))[0])
    assert found == [[0, 3], [1, 4], [2, 5], [0, 6], [1, 7], [2, 8]]


def test_a_tree_that_ends_with_places_left_begins_again():
    made = trees(Branch(width=2, depth=3))
    script = Letters(made, {0: 0, 1: 0, 3: 4})  # the first two end at once, row 3 after 4 tokens
    batch, texts = write_all(made, script)
    assert texts == ["d", "e", "f" * 12, "ggggg", "ffffhhhhhhhh", "ggggiiiiiiii"]
    assert paths(batch) == [[0], [1], [2, 4, 8], [3, 5], [2, 6, 9], [3, 7, 10]]
    assert [Stop(s).name for s in batch.stop] == ["EOS", "EOS", "LENGTH", "EOS", "LENGTH", "LENGTH"]


@pytest.mark.parametrize(
    ("depth", "segment", "length"), [(5, None, 12), (2, 3, 6), (1, None, 12), (30, 5, 12)]
)
def test_how_long_rows_are(depth, segment, length):
    made = trees(Branch(depth=depth, segment=segment))
    batch, texts = write_all(made, Letters(made))
    assert {len(text) for text in texts} == {length}
    assert (batch.stop == Stop.LENGTH).all()


# ---------------------------------------------------------------- real draws


@pytest.fixture(scope="module")
def drawn():
    made = trees(Branch(width=2, depth=4, segment=3))
    return made, made.collect(Writers(policy=tally.sampler(made)), 4, Cursor(row=50)).trajectories


def test_rows_that_share_a_node_share_everything_up_to_its_end(drawn):
    batch = drawn[1]
    node = np.where(batch.action_mask, batch.columns["node"], -1)
    shared = 0
    for a, b in itertools.combinations(range(4 * G), 2):
        if batch.group[a] != batch.group[b]:
            continue
        common = set(node[a]) & set(node[b]) - {-1}
        end = max((np.flatnonzero(node[a] == n)[-1] + 1 for n in common), default=0)
        shared += bool(common)
        for name in ("tokens", "logp_sampler", "log_keep"):
            mine, other = getattr(batch, name)[[a, b], :end]
            np.testing.assert_array_equal(mine, other)
        np.testing.assert_array_equal(node[a, :end], node[b, :end])
    assert shared > 10


def test_a_forward_pass_over_a_tree_gives_the_sampler_s_log_probabilities(drawn):
    batch = drawn[1]
    logp = np.asarray(tally.rescored(batch.tokens, batch.temperature))
    mask = batch.action_mask
    sampled = (batch.logp_sampler + batch.log_keep)[mask]
    np.testing.assert_allclose(sampled, logp[mask], atol=2e-5)


def test_the_reward_side_reads_the_same_paths(drawn):
    batch = drawn[1]
    depth = np.asarray(jax.jit(tree_of)(batch).depth)
    assert (depth.max(1) + 1).tolist() == [len(path) for path in paths(batch)]


def test_a_row_that_shares_nothing_is_the_row_that_would_be_without_a_tree(drawn):
    made, batch = drawn
    plain = tally.collector(PLAIN, group_size=G)
    whole = plain.collect(Writers(policy=tally.sampler(plain)), 4, Cursor(row=50)).trajectories
    first = [n for n in range(4 * G) if n % G < 2]
    for n in first:
        end = whole.length[n]
        assert batch.length[n] == end
        np.testing.assert_array_equal(batch.tokens[n, :end], whole.tokens[n, :end])
        assert batch.stop[n] == whole.stop[n]
    straight = made.draw(
        tally.sampler(made), [made.task.train(i) for i in range(4)], whole.id.reshape(4, G)
    )
    unforked = made.write(straight)[0]
    np.testing.assert_array_equal(unforked.length, whole.length)
    for n, end in enumerate(whole.length):
        np.testing.assert_array_equal(unforked.tokens[n, :end], whole.tokens[n, :end])


# ---------------------------------------------------------------- turns


def test_an_unsure_turn_is_tried_again_from_the_observation():
    """Entropy rises by log V in turn 1 of row 0: the probability of a fork there is 1."""
    certain = Uncertain(weight=1.0, threshold=0.0)
    made = trees(Branch(initial=2, uncertain=certain), tally.task(tally.ENVIRONMENT))

    def entropy(ids, offset):
        return np.where((ids == 0) & (offset == 5), np.log(32), 0.0)[:, None]

    turns = {i: ["defg=", "h."] for i in range(G)}
    turns |= {0: ["dee=", "f=", "g."], 2: ["i."]}  # row 2 goes on after row 0's first observation
    batch, texts = write_all(made, tally.Script(made, turns, entropy))
    assert texts[:3] == ["dee=⟨4⟩f=⟨22⟩g", "defg=⟨55⟩h", "dee=⟨4⟩i"]
    assert paths(batch)[:3] == [[0, 2, 4], [1, 3], [0, 5]]
    # The places that are left begin again from the prompt, two at a time.
    assert texts[3:] == ["defg=⟨55⟩h"] * 3
    assert len({path[0] for path in paths(batch)[3:]}) == 3


def test_trees_of_turns_are_the_same_whatever_else_is_in_the_batch():
    made = trees(Branch(uncertain=Uncertain()), tally.task(tally.ENVIRONMENT))
    sample = tally.sampler(made)
    ids = np.arange(4 * G, dtype=np.int32).reshape(4, G)
    examples = [made.task.train(i) for i in range(4)]
    whole = made.write(made.draw(sample, examples, ids, fork=True))[0]
    half = made.write(made.draw(sample, examples[2:], ids[2:], fork=True))[0]
    assert len({(n // G, path[0]) for n, path in enumerate(paths(whole))}) < 4 * G  # some forked
    rows = slice(2 * G, None)
    T = half.tokens.shape[1]
    for name in ("tokens", "turn"):
        np.testing.assert_array_equal(getattr(whole, name)[rows, :T], getattr(half, name))
    mask = half.action_mask
    for name in ("node", "anchor"):
        np.testing.assert_array_equal(whole.columns[name][rows, :T][mask], half.columns[name][mask])
    logp = np.asarray(tally.rescored(whole.tokens, whole.temperature))
    mask = whole.action_mask
    sampled = (whole.logp_sampler + whole.log_keep)[mask]
    np.testing.assert_allclose(sampled, logp[mask], atol=2e-5)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give one of them"),
        ({"depth": 2, "uncertain": Uncertain()}, "give one of them"),
        ({"depth": 0}, "Branch.depth is 0"),
        ({"depth": 2, "width": 0}, "Branch.width is 0"),
    ],
)
def test_a_branch_that_says_nothing_or_too_much_is_refused(changes, message):
    with pytest.raises(PoloptError, match=message):
        Branch(**changes)


def test_segments_are_turns_where_there_is_an_environment():
    with pytest.raises(PoloptError, match=r"tally has an environment: .* Branch\(uncertain=\)"):
        trees(Branch(depth=2), tally.task())
    with pytest.raises(PoloptError, match=r"tally has no environment: .* Branch\(depth=\)"):
        trees(Branch(uncertain=Uncertain()))


def test_a_straight_branch_keeps_its_segments():
    branch = Branch(width=4, depth=3, segment=7)
    assert branch.straight(5) == dataclasses.replace(branch, width=1, initial=5)
