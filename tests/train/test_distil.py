"""Runs with more than one model, and with memory of their prompts: what is scored, kept, resumed.

Two runs between them have every model and every sampling spec: one on one device, whose teacher
writes some of the prompts, and one on two devices, whose teacher has a share in every token.
"""

import dataclasses

import jax
import numpy as np
import pytest

from polopt import chain
from polopt.algorithm import Algorithm
from polopt.columns import jsd
from polopt.divergence import k3
from polopt.models.score import score
from polopt.reward import (
    group_mean_baseline,
    implicit_process_reward,
    outcome_return,
    teacher_reward,
)
from polopt.train import checkpoint
from polopt.train.policy import Policy
from polopt.train.state import arrays
from polopt.trajectory import (
    Update,
    clip,
    divergence_loss,
    flow_balance,
    kl_penalty,
    process_reward_loss,
    product_ratio,
    token_ratio,
)
from polopt.trajectory.sampling import Companion, LogMeanExp, Mixture, Prioritise, Sampling
from polopt.transform import piece
from train import toy
from train.test_loop import KilledError, kill_at, killed, left
from train.toy import config, go, left_behind, make_run

ALPHA, TEMPERATURE = 0.3, 0.7


def teacher():
    return Policy(model=toy.MODEL, params=toy.params(5), tokenizer=toy.Letters())


@piece("reward", reads="reward", needs=("optimal_value",))
def less_the_optimum(credit, trajectories):
    """Take the optimal value off what the row earned."""
    value = trajectories.columns["optimal_value"][:, None]
    return dataclasses.replace(credit, reward=credit.reward - value * (credit.reward != 0))


@piece("reward", reads="reward", needs=("drift",))
def less_when_drifted(credit, trajectories):
    """Pay less where the policy has moved."""
    return dataclasses.replace(
        credit, reward=credit.reward / (1 + trajectories.columns["drift"][:, None])
    )


def taught():
    """The teacher pays, is imitated, and writes half of the prompts; prompts are remembered."""
    optimum = Companion(
        column="optimal_value", policy="reference", samples=2, reduce=LogMeanExp(0.5), cache=True
    )
    return Algorithm(
        name="taught",
        reward=chain(
            toy.prompt_tracker(),
            less_the_optimum(),
            teacher_reward(0.1),
            outcome_return(),
            group_mean_baseline(),
        ),
        trajectory=chain(
            token_ratio(),
            clip(0.2, 0.2),
            divergence_loss(0.5, jsd(0.5, "teacher")),
            kl_penalty(k3, 0.04),
        ),
        sampling=Sampling(
            group_size=2,
            companion=optimum,
            prioritise=Prioritise(),
            mixture=Mixture(share=0.5),
        ),
        update=Update(epochs=2, minibatches=2),
    )


def judged():
    """A process reward model and a partition are trained beside the policy."""
    return Algorithm(
        name="judged",
        reward=chain(
            less_when_drifted(),
            implicit_process_reward(0.05, last=True),
            outcome_return(),
            group_mean_baseline(),
        ),
        trajectory=chain(product_ratio(), flow_balance(1.0), process_reward_loss()),
        sampling=Sampling(group_size=2, mixture=Mixture(alpha=ALPHA)),
        update=Update(minibatches=2, reference="ema", ema=0.25),
    )


@pytest.fixture(scope="module")
def on_one(tmp_path_factory):
    run = make_run(taught(), config(eval_every=0), teacher=teacher())
    return left(run, tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    settings = config(
        parallel="pmap", devices=2, prompts=3, problems=4, temperature=TEMPERATURE, eval_every=0
    )
    run = make_run(judged(), settings, toy.task(size=None), teacher())
    return left(run, tmp_path_factory.mktemp("judged"))


@pytest.fixture(params=["on_one", pytest.param("on_two", marks=pytest.mark.slow)])
def straight(request):
    return request.getfixturevalue(request.param)


@dataclasses.dataclass
class Batch:
    """What the first optimiser step of a batch is given."""

    trajectories: object
    params: object
    given: object


def batches(run, folder):
    """Every batch of a run from its beginning, and the state that it leaves."""
    seen, update, step = [], run.update, run._step

    def recording(state, given, trajectories, prepared, rows, layout):
        if fresh:
            copies = jax.device_get(run.parallel.single((state.params, given)))
            seen.append(Batch(trajectories, *copies))
            fresh.clear()
        return update(state, given, trajectories, prepared, rows)

    def stepping(now):
        fresh.append(True)
        step(now)
        last.append(jax.device_get(run.parallel.single((now.state.params, now.average))))

    fresh, last = [], []
    run.update, run._step = recording, stepping
    try:
        go(run, folder)
    finally:
        run.update, run._step = update, step
    return seen, last


@pytest.fixture(scope="module")
def seen_on_one(on_one, tmp_path_factory):
    return batches(on_one[0], tmp_path_factory.mktemp("again"))


@pytest.fixture(scope="module")
def seen_on_two(on_two, tmp_path_factory):
    return batches(on_two[0], tmp_path_factory.mktemp("again"))


@jax.jit
def said(params, trajectories):
    """f32[N,T]: log-probabilities of a batch under a policy."""
    return score({"policy": (toy.MODEL, params)}, trajectories).logp


# ---------------------------------------------------------------- resumed bit for bit


def kept(run, folder):
    return checkpoint.restore(folder / "checkpoints", arrays(run._first()))


def assert_same_run(run, folder, expected):
    assert left_behind(folder) == left_behind(expected)
    (step, found, counters), (wanted_step, wanted, wanted_counters) = (
        kept(run, f) for f in (folder, expected)
    )
    toy.assert_same_tree(found, wanted)
    assert (step, counters["cursor"]) == (wanted_step, wanted_counters["cursor"])


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_killed_after_a_batch_repeats_it(straight, tmp_path, step):
    run, expected = straight
    killed(run, tmp_path, kill_at(step))
    go(run, tmp_path)
    assert_same_run(run, tmp_path, expected)


def test_a_run_killed_inside_a_batch_repeats_it(straight, tmp_path):
    run, expected = straight
    update, calls = run.update, []

    def failing(*args):
        calls.append(None)
        if len(calls) == 4:
            raise KilledError
        return update(*args)

    run.update = failing
    try:
        killed(run, tmp_path)
    finally:
        run.update = update
    go(run, tmp_path)
    assert_same_run(run, tmp_path, expected)


def test_a_steady_run_compiles_nothing(straight, tmp_path):
    run, _ = straight
    with toy.compilations() as count:
        killed(run, tmp_path, kill_at(2))
        go(run, tmp_path)
        assert count() == 0


# ---------------------------------------------------------------- what is scored


def test_the_teacher_is_scored_and_never_moves(on_one, seen_on_one):
    run, _ = on_one
    for batch in seen_on_one[0]:
        mask = batch.trajectories.action_mask
        found = batch.trajectories.columns["logp_teacher"]
        expected = said(teacher().params, batch.trajectories)
        np.testing.assert_allclose(found[mask], expected[mask], atol=1e-5)
        assert np.abs(found - batch.trajectories.columns["logp_old"])[mask].mean() > 0.1
    toy.assert_same_tree(run.given["teacher"], teacher().params)  # neither moved nor donated
    assert set(run._start().params) == {"policy"}


def test_the_student_comes_closer_to_its_teacher(on_one):
    lines, _ = left_behind(on_one[1])
    distance = [row["method/policy/divergence"] for row in lines if row["step"]]
    assert distance[-1] < distance[0]


def test_the_average_of_policies_is_the_reference(seen_on_two):
    seen, after = seen_on_two
    average = toy.params()
    for batch, (params, found) in zip(seen, after, strict=True):
        toy.assert_same_tree(batch.given["reference"], jax.device_get(average))
        mask = batch.trajectories.action_mask
        expected = said(average, batch.trajectories)
        np.testing.assert_allclose(
            batch.trajectories.columns["logp_ref"][mask], expected[mask], atol=1e-5
        )
        blended = jax.tree.map(lambda a, b: a + 0.25 * (b - a), average, params["policy"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, blended)
        average = found


def test_the_process_reward_model_starts_as_the_policy_and_is_trained(seen_on_two):
    seen, after = seen_on_two
    first = seen[0].trajectories.columns
    mask = seen[0].trajectories.action_mask
    np.testing.assert_allclose(first["logp_prm"][mask], first["logp_ref"][mask], atol=1e-6)
    for batch in seen[1:]:
        mask = batch.trajectories.action_mask
        expected = said(batch.params["prm"], batch.trajectories)
        found = batch.trajectories.columns["logp_prm"]
        np.testing.assert_allclose(found[mask], expected[mask], atol=1e-5)
    params, _ = after[-1]
    for a, b in zip(jax.tree.leaves(params["prm"]), jax.tree.leaves(params["policy"]), strict=True):
        assert (a != b).any()
    assert params["partition"]["bias"] != 0
    assert params["partition"]["kernel"].any()


def test_drift_is_how_far_the_policy_moved_since_a_prompts_last_response(seen_on_two):
    last = {}
    moved = 0
    for batch in seen_on_two[0]:
        t = batch.trajectories
        for n, prompt in enumerate(t.prompt):
            expected = 0.0
            if prompt in last:
                row, then, mask = last[prompt]
                now = said(batch.params["policy"], row)[0]
                expected = np.abs(np.asarray(now) - then)[mask].mean()
                moved += expected > 1e-3
            np.testing.assert_allclose(t.columns["drift"][n], expected, atol=1e-5)
        for n, prompt in enumerate(t.prompt):
            row = jax.tree.map(lambda x, n=n: np.asarray(x)[n : n + 1], t)
            logp = (t.logp_sampler + t.log_keep)[n]
            last[prompt] = (dataclasses.replace(row, columns={}), logp, t.action_mask[n])
    assert moved > 4


# ---------------------------------------------------------------- who writes, and what


def test_a_mixture_records_the_distribution_that_was_sampled(seen_on_two):
    """log(α p_teacher + (1 - α) p_policy) at the temperature of the run, token by token."""
    for batch in seen_on_two[0]:
        t = batch.trajectories
        assert (t.temperature == np.float32(TEMPERATURE)).all()
        own, theirs = (said(p, t) for p in (batch.params["policy"], teacher().params))
        expected = np.log(ALPHA * np.exp(theirs) + (1 - ALPHA) * np.exp(own))
        found = t.logp_sampler + t.log_keep
        np.testing.assert_allclose(found[t.action_mask], expected[t.action_mask], atol=1e-5)
        assert (t.version == -1).all()


def test_the_teacher_writes_half_of_the_prompts(seen_on_one):
    for batch in seen_on_one[0]:
        t = batch.trajectories
        theirs = (t.version == -1).all(axis=1)
        assert theirs.reshape(4, 2).all(axis=1).sum() == 2
        found = t.logp_sampler + t.log_keep
        for params, rows in ((teacher().params, theirs), (batch.params["policy"], ~theirs)):
            mask = t.action_mask & rows[:, None]
            np.testing.assert_allclose(found[mask], said(params, t)[mask], atol=1e-5)


def test_a_batch_shows_different_prompts_of_the_pool_and_learns_of_them(on_one, seen_on_one):
    run, folder = on_one
    drawn = [batch.trajectories.prompt[::2] for batch in seen_on_one[0]]
    assert all(len(set(prompts.tolist())) == 4 for prompts in drawn)
    assert len({tuple(sorted(prompts.tolist())) for prompts in drawn}) > 1
    seen, right = np.zeros(toy.SIZE), np.zeros(toy.SIZE)
    for batch in seen_on_one[0]:
        t = batch.trajectories
        for p in set(t.prompt.tolist()):
            rows = t.prompt == p
            seen[p] = 0.875 * seen[p] + rows.sum()
            right[p] = 0.875 * right[p] + (t.reward_parts["correct"].sum(1)[rows] == 1).sum()
    pool = kept(run, folder)[1]["pool"]
    np.testing.assert_allclose(pool["seen"], seen)
    np.testing.assert_allclose(pool["right"], right)
    assert pool["seen"].dtype == np.float64


def test_the_optimum_of_a_prompt_is_sampled_once_and_kept(on_one, seen_on_one):
    run, folder = on_one
    pool, shown = kept(run, folder)[1]["pool"], set()
    for batch in seen_on_one[0]:
        t = batch.trajectories
        np.testing.assert_array_equal(t.columns["optimal_value"], pool["value"][t.prompt])
        shown |= set(t.prompt.tolist())
    assert np.isfinite(pool["value"]).sum() == len(shown)
    assert len(set(pool["value"].tolist())) > 1
