"""A rollout in several processes is the one of a single process."""

import dataclasses
import threading

import numpy as np
import pytest
from crowd import crowd
from train import toy

from polopt.rollout.collect import Cursor, Writers
from polopt.rollout.lanes import Generated
from polopt.rollout.pool import new_pool
from polopt.rollout.shares import Shares
from polopt.train.evaluate import evaluation
from polopt.trajectory.sampling import (
    Branch,
    Companion,
    LogMeanExp,
    Mixture,
    Refill,
    Uncertain,
)
from polopt.types import Stop
from rollout import tally
from rollout.test_collect import by_identity, collector, one_in_three

REMEMBERED = Companion(
    column="optimal_value", policy="reference", samples=4, reduce=LogMeanExp(0.5), cache=True
)
GREEDY = Companion(column="greedy_return", greedy=True)


def shifted(by):
    return lambda tokens, lengths, ids: by_identity(tokens, lengths, ids + by)


def two_rollouts(made):
    """One after the other, with what is remembered, and an evaluation."""
    writers = Writers(policy=by_identity, other=shifted(7000), companion=shifted(500))
    first = made.collect(writers, 5, Cursor(row=3), new_pool(made.sampling, toy.SIZE))
    second = made.collect(writers, 5, first.cursor, first.pool)
    shown = evaluation(made, by_identity, made.task.held_out, 2)
    return [dataclasses.replace(each, seconds={}) for each in (first, second)], shown


@pytest.mark.parametrize("apart", [True, False], ids=["apart", "together"])
@pytest.mark.parametrize("count", [2, 7], ids=["two", "more than prompts"])
@pytest.mark.parametrize(
    "sampling",
    [
        {"companion": REMEMBERED},
        {"companion": GREEDY, "mixture": Mixture(share=0.4)},
        {"refill": Refill(by=one_in_three, max_rounds=3)},
    ],
    ids=["remembered", "mixed", "refilled"],
)
def test_processes_collect_what_one_does(sampling, count, apart):
    made = collector(**sampling)
    expected, shown = two_rollouts(made)

    def work(processes):
        return two_rollouts(dataclasses.replace(made, shares=Shares(processes, apart=apart)))

    for found, seen in crowd(count, work):
        assert seen == shown
        for each, like in zip(found, expected, strict=True):
            toy.assert_same_tree(each.trajectories, like.trajectories)
            toy.assert_same_tree(each.pool, like.pool)
            assert each.completions == like.completions
            assert (each.examples, each.cursor) == (like.examples, like.cursor)


@pytest.mark.parametrize("apart", [True, False])
def test_each_verifies_its_own_and_draws_no_others_unless_all_draw_together(apart):
    judged, drawn = {}, {}

    def work(processes):
        seen = judged.setdefault(processes.index, [])

        def reward(completion, example):
            seen.append(example.index)
            return 1.0

        def sample(tokens, lengths, ids):
            drawn[processes.index] = np.asarray(ids).reshape(-1).tolist()
            return by_identity(tokens, lengths, ids)

        made = collector(toy.task(reward=reward))
        made = dataclasses.replace(made, shares=Shares(processes, apart=apart))
        made.collect(Writers(policy=sample), 5, Cursor())

    crowd(2, work)
    assert judged == {0: [0] * 3 + [1] * 3, 1: [2] * 3 + [3] * 3 + [4] * 3}
    everything = list(range(15))
    expected = [everything[:6], everything[6:]] if apart else [everything] * 2
    assert [drawn[0], drawn[1]] == expected


# ---------------------------------------------------------------- turns


def by_place(made):
    """A sampler without a model: a token is a function of its row's id and its place in the row."""

    def sample(prompts, lengths, ids, offset=None):
        ids, C = np.asarray(ids).reshape(-1), made.turn_tokens
        offset = np.zeros_like(ids) if offset is None else np.asarray(offset).reshape(-1)
        real = np.repeat(lengths, len(ids) // len(lengths)) > 0
        places = zip(ids, offset, strict=True)
        rng = [[np.random.default_rng((i, at + k)) for k in range(C)] for i, at in places]
        tokens = np.array([[one.integers(3, 32) for one in row] for row in rng], np.int32)
        ends = np.isin(tokens, made.stop_ids)
        length = np.where(ends.any(1), ends.argmax(1) + 1, C).astype(np.int32) * real
        stop = np.where(ends.any(1), Stop.STOP_TOKEN, Stop.LENGTH)
        inside = np.arange(C) < length[:, None]
        return Generated(
            tokens=np.where(inside, tokens, 0),
            length=length,
            logp_sampler=np.where(inside, np.float32(-1), 0),
            log_keep=np.zeros(tokens.shape, np.float32),
            stop=np.where(real, stop, Stop.NONE).astype(np.int32),
            entropy=np.array([[one.random() for one in row] for row in rng], np.float32),
        )

    return sample


def held(asked):
    """The environment of `tally`, with a state that no other process can have."""

    def step(state, text):
        asked.append(state[1])
        reply = tally.step(state[2], text)
        return dataclasses.replace(reply, state=(*state[:2], reply.state))

    return dataclasses.replace(
        tally.ENVIRONMENT,
        start=lambda example: (threading.Lock(), example.index, example.index),
        step=step,
        label=lambda state: f"{state[2] % 3}",
    )


@pytest.mark.parametrize("apart", [True, False], ids=["apart", "together"])
@pytest.mark.parametrize("branch", [None, Branch(uncertain=Uncertain())], ids=["rows", "trees"])
def test_each_process_plays_the_episodes_of_its_prompts(branch, apart):
    def play(shares):
        asked = []
        made = tally.collector(tally.task(held(asked)), group_size=4, branch=branch)
        made = dataclasses.replace(made, shares=shares)
        rollout = made.collect(Writers(policy=by_place(made)), 5, Cursor())
        return rollout, asked

    expected, everything = play(Shares())
    found = crowd(3, lambda processes: play(Shares(processes, apart=apart)))
    for rollout, _ in found:
        toy.assert_same_tree(rollout.trajectories, expected.trajectories)
        assert rollout.completions == expected.completions
    assert max(text.count("⟨") for text in expected.completions) == 2
    assert sorted(i for _, asked in found for i in asked) == sorted(everything)
    assert [set(asked) for _, asked in found] == [{0}, {1, 2}, {3, 4}]
