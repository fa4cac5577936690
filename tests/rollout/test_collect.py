"""Collecting a batch: what is kept of several rounds, and that ids and prompts never repeat."""

import dataclasses

import numpy as np
import pytest
from train import toy

from polopt.errors import PoloptError
from polopt.reward.filters import spread
from polopt.rollout.collect import Collector, Cursor, Writers
from polopt.rollout.lanes import Generated
from polopt.rollout.pool import new_pool
from polopt.tasks import abstain
from polopt.trajectory.sampling import (
    Companion,
    Keep,
    LogMeanExp,
    Mixture,
    Refill,
    Sampling,
)
from polopt.types import Stop

C = 4


def by_identity(tokens, lengths, ids):
    """A sampler without a model: the tokens of a row are a function of its id alone."""
    flat = np.asarray(ids).reshape(-1)
    rng = [np.random.default_rng(int(i)) for i in flat]
    length = np.array([r.integers(1, C + 1) for r in rng], np.int32)
    drawn = np.stack([r.integers(3, 29, C) for r in rng]).astype(np.int32)
    inside = np.arange(C) < length[:, None]
    logp = np.where(inside, -np.stack([r.random(C) for r in rng]), 0).astype(np.float32)
    stop = np.where(length < C, Stop.EOS, Stop.LENGTH).astype(np.int32)
    return Generated(
        tokens=np.where(inside, drawn, 0),
        length=length,
        logp_sampler=logp,
        log_keep=np.where(inside, np.float32(-0.25), 0),
        stop=stop,
    )


def collector(task=None, **sampling):
    return Collector(
        task=task or toy.task(),
        tokenizer=toy.Letters(),
        max_new_tokens=C,
        sampling=Sampling(**{"group_size": 3, **sampling}),
        max_length=32,
        temperature=0.5,
    )


def test_a_row_is_its_prompt_and_its_completion_and_is_paid_at_the_last_token():
    rollout = collector().collect(Writers(policy=by_identity), 4, Cursor(prompt=5, row=30))
    batch, letters = rollout.trajectories, toy.Letters()
    ids = np.arange(30, 42, dtype=np.int32)
    drawn = by_identity(None, None, ids)
    np.testing.assert_array_equal(batch.id, ids)
    np.testing.assert_array_equal(batch.group, np.repeat(np.arange(4), 3))
    np.testing.assert_array_equal(batch.prompt, np.repeat([5, 0, 1, 2], 3))  # six problems
    for n, example in enumerate(rollout.examples):
        prompt = letters.prompt(example.prompt)
        end = len(prompt) + drawn.length[n]
        written = [*prompt, *drawn.tokens[n, : drawn.length[n]]]
        assert batch.tokens[n, :end].tolist() == written
        assert not batch.tokens[n, end:].any()
        assert (batch.prompt_length[n], batch.length[n]) == (len(prompt), end)
        actions = np.flatnonzero(batch.action_mask[n])
        assert actions.tolist() == list(range(len(prompt), end))
        assert (batch.turn[n] == np.where(batch.action_mask[n], 0, -1)).all()
        np.testing.assert_array_equal(
            batch.logp_sampler[n, actions], drawn.logp_sampler[n, : drawn.length[n]]
        )
        assert np.flatnonzero(batch.logp_sampler[n]).tolist() == actions.tolist()
        assert (batch.log_keep[n, actions] == -0.25).all()
        assert rollout.completions[n] == letters.decode(drawn.tokens[n, : drawn.length[n]])
        for name, value in toy.reward(rollout.completions[n], example).items():
            part = batch.reward_parts[name][n]
            assert part[end - 1] == np.float32(value)
            assert part.sum() == part[end - 1]
    assert batch.scored.all()
    assert (batch.temperature == 0.5).all()
    assert rollout.cursor == Cursor(prompt=9, row=42)
    assert rollout.rounds == 1


def test_equal_answers_have_one_label():
    def answer(text):
        return text[:1] if len(text) > 1 else None

    rollout = collector(toy.task(answer=answer)).collect(Writers(policy=by_identity), 6, Cursor())
    label, texts = rollout.trajectories.columns["answer"], rollout.completions
    found = [answer(text) for text in texts]
    assert {None} < set(found)
    for n, one in enumerate(found):
        for m, other in enumerate(found):
            assert (label[n] == label[m]) == (one == other)
        assert (label[n] == -1) == (one is None)
    plain = collector().collect(Writers(policy=by_identity), 2, Cursor())
    assert "answer" not in plain.trajectories.columns


def test_an_endless_task_has_no_prompt_numbers():
    rollout = collector(toy.task(size=None)).collect(Writers(policy=by_identity), 2, Cursor())
    assert (rollout.trajectories.prompt == -1).all()


def test_the_same_cursor_gives_the_same_batch():
    first, second = (
        collector().collect(Writers(policy=by_identity), 3, Cursor(prompt=2, row=9))
        for _ in range(2)
    )
    toy.assert_same_tree(first.trajectories, second.trajectories)
    assert first.completions == second.completions
    other = collector().collect(Writers(policy=by_identity), 3, Cursor(prompt=2, row=10))
    assert other.completions != first.completions


# ---------------------------------------------------------------- refill


def one_in_three(trajectories):
    return np.asarray(trajectories.group) % 3 == 1


def test_refill_keeps_what_passes_and_fills_up():
    made = collector(refill=Refill(by=one_in_three, max_rounds=3))
    rollout = made.collect(Writers(policy=by_identity), 5, Cursor())
    batch = rollout.trajectories
    # Five groups a round, of which two pass: two, four, six.
    assert rollout.rounds == 3
    assert rollout.cursor == Cursor(prompt=15, row=45)
    passed = [1, 4, 6, 9, 11]  # groups counted over the rounds
    np.testing.assert_array_equal(batch.id, [3 * g + i for g in passed for i in range(3)])
    np.testing.assert_array_equal(batch.group, np.repeat(np.arange(5), 3))
    np.testing.assert_array_equal(batch.prompt, np.repeat([g % 6 for g in passed], 3))
    for n, i in enumerate(batch.id):
        drawn = by_identity(None, None, np.array([i]))
        assert rollout.completions[n] == toy.Letters().decode(drawn.tokens[0, : drawn.length[0]])
        assert rollout.examples[n].index == batch.prompt[n]


def test_refill_stops_after_its_rounds_and_takes_what_failed():
    made = collector(refill=Refill(by=one_in_three, max_rounds=2))
    rollout = made.collect(Writers(policy=by_identity), 5, Cursor())
    assert rollout.rounds == 2
    groups = rollout.trajectories.id[::3] // 3
    assert groups.tolist() == [1, 4, 6, 9, 0]  # the first that failed fills up
    assert len(set(rollout.trajectories.id.tolist())) == 15


def test_refill_that_may_not_fall_short_is_an_error():
    made = collector(refill=Refill(by=one_in_three, max_rounds=2, short="error"))
    with pytest.raises(PoloptError, match="after 2 rounds of sampling 1 of 5 groups"):
        made.collect(Writers(policy=by_identity), 5, Cursor())


def test_refill_ends_early_and_no_id_is_ever_used_twice():
    made = collector(refill=Refill(by=spread, max_rounds=9))
    cursor, seen = Cursor(), []
    for _ in range(4):
        rollout = made.collect(Writers(policy=by_identity), 5, cursor)
        batch = rollout.trajectories
        assert rollout.rounds < 9
        for g in range(5):  # DAPO: the groups that remain are not unanimous
            rewards = sum(part.sum(1) for part in batch.reward_parts.values())[batch.group == g]
            assert np.ptp(rewards) > 0
        assert rollout.cursor.row == cursor.row + 15 * rollout.rounds
        assert rollout.cursor.prompt == cursor.prompt + 5 * rollout.rounds
        assert batch.id.min() >= cursor.row
        assert batch.id.max() < rollout.cursor.row
        seen += batch.id.tolist()
        cursor = rollout.cursor
    assert len(set(seen)) == len(seen)


def test_a_test_that_splits_a_group_is_refused():
    made = collector(refill=Refill(by=lambda trajectories: trajectories.id % 2 == 0))
    with pytest.raises(PoloptError, match="passes a part of a group"):
        made.collect(Writers(policy=by_identity), 2, Cursor())


def test_rounds_of_different_widths_are_joined():
    def example(i):  # the second round's prompts need a wider bucket
        return dataclasses.replace(toy.example(i, i), prompt="a" * (20 if i >= 3 else 2))

    made = collector(toy.task(train=example), refill=Refill(by=one_in_three, max_rounds=3))
    batch = made.collect(Writers(policy=by_identity), 3, Cursor()).trajectories
    assert batch.tokens.shape[1] == 28 + C
    assert batch.prompt_length.tolist() == [3] * 3 + [21] * 6
    assert (batch.turn[~batch.action_mask] == -1).all()
    np.testing.assert_array_equal(batch.action_mask.sum(1), batch.length - batch.prompt_length)


# ---------------------------------------------------------------- the reward's side


# ---------------------------------------------------------------- companions


def answers(tokens, length):
    letters = toy.Letters()
    return [
        sum(toy.reward(letters.decode(row[:k]), None).values())
        for row, k in zip(tokens, length, strict=True)
    ]


def test_the_greedy_companion_is_paid_but_not_trained_on():
    asked = []

    def greedy(tokens, lengths, ids):
        asked.append(ids)
        return by_identity(tokens, lengths, ids + 1000)

    spec = Companion(column="greedy_return", greedy=True)
    writers = Writers(policy=by_identity, companion=greedy)
    rollout = collector(companion=spec).collect(writers, 4, Cursor(prompt=7, row=60))
    assert [ids.shape for ids in asked] == [(4, 1)]
    best = by_identity(None, None, asked[0] + 1000)
    np.testing.assert_allclose(
        rollout.trajectories.columns["greedy_return"],
        np.repeat(answers(best.tokens, best.length), 3),
        rtol=1e-6,
    )
    assert len(rollout.trajectories.id) == 12


def test_samples_of_the_reference_are_reduced_and_remembered():
    """Draws belong to the prompt, so that what is remembered is what would be drawn again."""
    asked = []

    def reference(tokens, lengths, ids):
        asked.append(np.asarray(ids))
        return by_identity(tokens, lengths, ids + 500)

    spec = Companion(
        column="optimal_value", policy="reference", samples=4, reduce=LogMeanExp(0.5), cache=True
    )
    writers = Writers(policy=by_identity, companion=reference)
    made, plain = collector(companion=spec), dataclasses.replace(spec, cache=False)
    first = made.collect(writers, 4, Cursor(), new_pool(made.sampling, toy.SIZE))
    np.testing.assert_array_equal(asked[0], np.arange(16).reshape(4, 4))
    drawn = by_identity(None, None, np.arange(16) + 500)
    returns = np.reshape(answers(drawn.tokens, drawn.length), (4, 4))
    expected = 0.5 * np.log(np.mean(np.exp(returns / 0.5), axis=1))
    found = first.trajectories.columns["optimal_value"]
    np.testing.assert_allclose(found, np.repeat(expected, 3), rtol=1e-6)
    known = np.flatnonzero(~np.isnan(first.pool["value"]))
    assert known.tolist() == [0, 1, 2, 3]
    second = made.collect(writers, 4, first.cursor, first.pool)  # prompts 4, 5, 0, 1
    again = collector(companion=plain).collect(writers, 4, first.cursor)
    np.testing.assert_array_equal(
        second.trajectories.columns["optimal_value"], again.trajectories.columns["optimal_value"]
    )
    calls = len(asked)
    third = made.collect(writers, 4, second.cursor, second.pool)
    assert len(asked) == calls  # all six are known
    np.testing.assert_array_equal(
        third.trajectories.columns["optimal_value"][::3], second.pool["value"][[2, 3, 4, 5]]
    )


def test_a_companion_gives_one_number_per_prompt():
    spec = Companion(column="best", reduce=lambda returns: returns.max())
    writers = Writers(policy=by_identity, companion=by_identity)
    with pytest.raises(PoloptError, match=r"reduce gave shape \(\) for returns of shape \(2, 1\)"):
        collector(companion=spec).collect(writers, 2, Cursor())


# ---------------------------------------------------------------- ranks and mixtures


def by_number(trajectories):
    return np.asarray(trajectories.group) % 5 + 0.0


def test_keep_draws_more_groups_and_trains_on_the_highest():
    made = collector(keep=Keep(by=by_number, fraction=0.3))
    rollout = made.collect(Writers(policy=by_identity), 3, Cursor())
    # Ten groups are drawn; 4 and 9 rank highest, then 3 before 8, its equal.
    assert rollout.trajectories.id[::3].tolist() == [9, 12, 27]
    np.testing.assert_array_equal(rollout.trajectories.group, np.repeat(np.arange(3), 3))
    assert rollout.cursor == Cursor(prompt=10, row=30)


def test_a_rank_is_of_a_group():
    made = collector(keep=Keep(by=lambda t: np.asarray(t.id, float), fraction=0.5))
    with pytest.raises(PoloptError, match="keep: the statistic differs within a group"):
        made.collect(Writers(policy=by_identity), 2, Cursor())


def test_another_model_writes_its_share_of_the_prompts():
    def other(tokens, lengths, ids):
        return by_identity(tokens, lengths, ids + 7000)

    made = collector(mixture=Mixture(share=0.4))
    writers = Writers(policy=by_identity, other=other)
    shares = []
    for cursor in (Cursor(), Cursor(prompt=5, row=15)):
        batch = made.collect(writers, 5, cursor).trajectories
        np.testing.assert_array_equal(batch.id, cursor.row + np.arange(15))
        np.testing.assert_array_equal(batch.prompt[::3], (cursor.prompt + np.arange(5)) % 6)
        theirs = (batch.version == -1).all(axis=1)
        assert (theirs == (batch.version == -1).any(axis=1)).all()
        drawn = by_identity(None, None, np.where(theirs, 7000, 0) + batch.id)
        for n in range(15):
            k = drawn.length[n]
            start = batch.prompt_length[n]
            assert batch.tokens[n, start : start + k].tolist() == drawn.tokens[n, :k].tolist()
        groups = theirs.reshape(5, 3)
        assert (groups.all(axis=1) == groups.any(axis=1)).all()
        shares.append(groups[:, 0])
    assert [s.sum() for s in shares] == [2, 2]
    assert (shares[0] != shares[1]).any()


def test_a_reward_that_abstains_leaves_its_row_unscored():
    def reward(completion, example):
        return abstain("no opinion") if len(completion) < 2 else {"score": 1.0}

    batch = (
        collector(toy.task(reward=reward))
        .collect(Writers(policy=by_identity), 6, Cursor())
        .trajectories
    )
    short = batch.length - batch.prompt_length < 2
    assert 0 < short.sum() < 18
    np.testing.assert_array_equal(batch.scored, ~short)
    np.testing.assert_array_equal(batch.reward_parts["score"].sum(1), ~short)


def test_a_round_of_abstentions_is_joined_with_one_that_is_paid():
    def reward(completion, example):
        return abstain("closed") if example.index < 3 else {"right": 1.0}

    made = collector(toy.task(reward=reward), refill=Refill(by=spread, max_rounds=2))
    batch = made.collect(Writers(policy=by_identity), 3, Cursor()).trajectories
    assert not batch.scored.any()  # unanimous or unknown: nothing passed, the first round fills up
    assert all(part.shape == batch.tokens.shape for part in batch.reward_parts.values())
    assert not any(part.any() for part in batch.reward_parts.values())


# ---------------------------------------------------------------- prompts


def test_a_prompt_without_room_for_a_completion_is_one_line():
    long = toy.task(train=lambda i: dataclasses.replace(toy.example(i, i), prompt="a" * 28))
    with pytest.raises(PoloptError) as error:
        collector(long).collect(Writers(policy=by_identity), 2, Cursor(prompt=7))
    assert str(error.value) == (
        "prompt 7 of toy has 29 tokens; the model's context of 32 less max_new_tokens=4 leaves 28"
    )


@pytest.mark.parametrize(("letters", "width"), [(3, 16), (15, 16), (16, 28), (27, 28)])
def test_prompts_are_padded_to_few_widths(letters, width):
    examples = [dataclasses.replace(toy.example(0, 0), prompt="b" * n) for n in (1, letters)]
    tokens, lengths = collector().prompts(examples)
    assert tokens.shape == (2, width)
    assert lengths.tolist() == [2, letters + 1]
    assert not tokens[0, 2:].any()
