"""A run is a function of its configuration, however often it is killed on the way."""

import dataclasses
import functools
import itertools
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polopt import chain
from polopt.algorithm import Algorithm
from polopt.algorithms import grpo, ppo, remax
from polopt.errors import PoloptError
from polopt.models import LanguageModel
from polopt.reward import batch_whiten, gae
from polopt.rollout.collect import Cursor
from polopt.train import checkpoint
from polopt.train.config import to_json
from polopt.train.loop import train
from polopt.train.models import together
from polopt.train.record import open_record, unknown_keys
from polopt.train.state import MAX_SKIPPED, Progress, arrays
from polopt.train.stop import StopRequest
from polopt.trajectory import Sampling, Update, token_ratio, value_loss
from polopt.types import info_values
from train import toy
from train.toy import Each, config, go, left_behind, make_run


def critic_with_memory():
    """PPO without a reference, with memory on both clocks: two epochs of two optimiser steps."""
    return Algorithm(
        name="critic",
        reward=chain(toy.prompt_tracker(), gae(), batch_whiten()),
        trajectory=chain(token_ratio(), toy.adaptive_clip(), value_loss()),
        update=Update(epochs=2, minibatches=2),
    )


@pytest.fixture(scope="module")
def on_one(tmp_path_factory):
    """A compiled run, and the folder that it leaves behind when nothing disturbs it."""
    return left(make_run(toy.remembering(), config()), tmp_path_factory.mktemp("jit"))


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    """The same on two devices, packed, with rows that do not divide, and nothing held out."""
    sizes = {"prompts": 6, "group_size": 1, "micro_batch": 1}
    settings = config(parallel="pmap", devices=2, pack="always", **sizes)
    run = make_run(critic_with_memory(), settings, toy.task(held_out=()))
    return left(run, tmp_path_factory.mktemp("pmap"))


def left(run, folder):
    go(run, folder)
    return run, folder


@pytest.fixture(params=["on_one", pytest.param("on_two", marks=pytest.mark.slow)])
def straight(request):
    return request.getfixturevalue(request.param)


def assert_same_run(run, folder, expected):
    """Metrics but for times, samples, counters, parameters, optimiser and memory."""
    assert left_behind(folder) == left_behind(expected)
    like = arrays(run._first())
    step, state, counters = checkpoint.restore(folder / "checkpoints", like)
    wanted_step, wanted, wanted_counters = checkpoint.restore(expected / "checkpoints", like)
    toy.assert_same_tree(state, wanted)
    assert step == wanted_step
    assert all(counters[name] == wanted_counters[name] for name in ("cursor", "rooms"))


class KilledError(BaseException):
    """Passes through everything, as a signal would."""


def kill_at(step):
    def check(now):
        if now == step:
            raise KilledError

    return Each(check)


def killed(run, folder, *sinks):
    with pytest.raises(KilledError):
        go(run, folder, *sinks)


def test_a_run_leaves_what_it_should(straight):
    run, folder = straight
    lines, _ = left_behind(folder)
    assert [row["step"] for row in lines if row["step"]] == [1, 2, 3, 4]
    evaluated = [row["step"] for row in lines if "eval/accuracy" in row]
    assert evaluated == ([0, 2, 4] if run.task.held_out else [])
    assert not any(unknown_keys([k for k in row if k != "step"]) for row in lines)
    assert all(np.isfinite(v) for row in lines for v in row.values())
    assert lines[-1]["update/skipped"] == 0
    assert max(row.get("rollout/logp_gap_max", 0) for row in lines) < 1e-5
    names = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert names == ["00000003", "00000004"]
    _, state, counters = checkpoint.restore(folder / "checkpoints", run._start())
    optimiser_steps = 4 * 2 * 2
    assert int(state.step) == optimiser_steps
    assert int(state.memory["update"]["trajectory/adaptive_clip"]["steps"]) == optimiser_steps
    seen = state.memory["rollout"]["reward/prompt_tracker"]
    assert (seen != 0).sum() > 1
    prompts, group = run.config.prompts, run.config.group_size
    assert counters["cursor"] == {"prompt": 4 * prompts, "row": 4 * prompts * group}
    # Linear to 0 over all optimiser steps, after a warm-up of two: the rate of the 4th, 8th, ...
    rates = [row["update/learning_rate"] for row in lines if row["step"]]
    np.testing.assert_allclose(rates, [1e-2 * (14 - k) / 14 for k in (1, 5, 9, 13)], rtol=1e-5)
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), state.params["policy"], run.policy.params
    )
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("step", [1, 4])
def test_a_run_killed_after_a_batch_repeats_it(straight, tmp_path, step):
    """Killed after all optimiser steps of a batch, before its checkpoint."""
    run, expected = straight
    killed(run, tmp_path, kill_at(step))
    go(run, tmp_path)
    assert_same_run(run, tmp_path, expected)


@pytest.mark.parametrize("call", [2, 7])
def test_a_run_killed_inside_a_batch_repeats_it(straight, tmp_path, call):
    """Killed between optimiser steps: in the first epoch of a batch, and in the second."""
    run, expected = straight
    update, calls = run.update, []

    def failing(*args):
        calls.append(None)
        if len(calls) == call:
            raise KilledError
        return update(*args)

    run.update = failing
    try:
        killed(run, tmp_path)
    finally:
        run.update = update
    assert len(left_behind(tmp_path)[0]) == bool(run.task.held_out) + (call - 1) // 4
    go(run, tmp_path)
    assert_same_run(run, tmp_path, expected)


def test_a_run_killed_in_its_first_evaluation_starts_again(on_one, tmp_path):
    run, expected = on_one
    evaluate = run.rollouts.evaluate
    run.rollouts.evaluate = lambda *args: kill_at(0).step(0, {})
    try:
        killed(run, tmp_path)
    finally:
        run.rollouts.evaluate = evaluate
    assert not any((tmp_path / "checkpoints").iterdir())
    go(run, tmp_path)
    assert_same_run(run, tmp_path, expected)


def test_a_run_killed_again_and_again(straight, tmp_path):
    run, expected = straight
    for step in (1, 1, 2, 3, 3, 4):
        killed(run, tmp_path, kill_at(step))
    go(run, tmp_path)
    assert_same_run(run, tmp_path, expected)


def test_a_stopped_run_saves_once_and_goes_on(straight, tmp_path):
    """Stopped without checkpoints on the way: the one at the stop is what it goes on from."""
    run, expected = straight
    run.config, config = dataclasses.replace(run.config, checkpoint_every=0), run.config
    try:
        for step in (1, 3):
            stop = StopRequest()
            summary = go(
                run,
                tmp_path,
                Each(
                    lambda now, stop=stop, step=step: (
                        now == step and setattr(stop, "signal", "TERM")
                    )
                ),
                stop=stop,
            )
            assert (summary.steps, summary.stopped) == (step, "TERM")
            assert summary.checkpoint.is_dir()
            assert checkpoint.restore(tmp_path / "checkpoints", run._start())[0] == step
        names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
        assert names == ["00000001", "00000003"]
        go(run, tmp_path)
    finally:
        run.config = config
    assert_same_run(run, tmp_path, expected)


def test_a_finished_run_is_left_as_it_is(straight, tmp_path):
    run, expected = straight
    shutil.copytree(expected, tmp_path / "run")
    summary = go(run, tmp_path / "run", kill_at(5))
    assert summary.steps == 4
    assert (summary.last is None) == (not run.task.held_out)
    assert_same_run(run, tmp_path / "run", expected)


def test_a_damaged_checkpoint_costs_a_step(straight, tmp_path):
    run, expected = straight
    killed(run, tmp_path, kill_at(4))
    newest = tmp_path / "checkpoints" / "00000003" / "manifest.json"
    newest.write_text(newest.read_text()[:-9])
    with pytest.warns(RuntimeWarning, match="00000003: manifest.json is missing or unreadable"):
        go(run, tmp_path)
    assert_same_run(run, tmp_path, expected)


def test_a_steady_run_compiles_nothing(straight, tmp_path):
    """Everything is compiled by the first step; a second run and a resumed one compile nothing."""
    run, _ = straight
    with toy.compilations() as count:
        killed(run, tmp_path, kill_at(2))
        assert count() == 0
        go(run, tmp_path)
        assert count() == 0


def recorded(run, folder):
    """(rows, weights, info) of every optimiser step of a run's first two batches."""
    update, calls = run.update, []

    def recording(state, given, trajectories, prepared, rows, layout):
        state, info = update(state, given, trajectories, prepared, rows, layout)
        weights = {name: np.asarray(w) for name, w in prepared.rows.weights.items()}
        calls.append((rows[rows < len(trajectories.id)], weights, info_values(info)))
        return state, info

    run.update = recording
    try:
        killed(run, folder, kill_at(2))
    finally:
        run.update = update
    return calls


def test_every_optimiser_step_has_its_rows_its_weights_and_its_old_policy(straight, tmp_path):
    run, _ = straight
    calls = recorded(run, tmp_path)
    assert len(calls) == 8  # two batches of two epochs of two steps
    deals = [[calls[i][0].tolist(), calls[i + 1][0].tolist()] for i in (0, 2, 4, 6)]
    for first, second in deals:
        assert sorted(first + second) == list(range(run.config.prompts * run.config.group_size))
    assert len({str(deal) for deal in deals}) > 2
    for rows, weights, _ in calls:
        for weight in weights.values():  # a mean over the tokens of exactly these rows
            np.testing.assert_allclose(weight[rows].sum(), 1, rtol=1e-5)
    ratios = [float(info["policy/ratio_max"]) for _, _, info in calls]
    np.testing.assert_allclose([ratios[0], ratios[4]], 1, rtol=1e-4)  # the batch's own policy
    assert min(abs(r - 1) for i, r in enumerate(ratios) if i not in (0, 4)) > 1e-3
    if "policy/kl_ref" in calls[0][2]:
        distances = [float(info["policy/kl_ref"]) for _, _, info in calls]
        assert distances[0] < 1e-6 < 1e-4 < distances[4]  # the reference stays where it began


def test_optimiser_and_reference_may_begin_anew_with_every_batch(on_one, tmp_path):
    run, _ = on_one
    asked = dataclasses.replace(run.alg.update, reset_optimizer=True, reference="previous")
    run.alg, before = run.alg.replace(update=asked), run.alg
    try:
        calls = recorded(run, tmp_path)
        go(run, tmp_path)
    finally:
        run.alg = before
    distances = [float(info["policy/kl_ref"]) for _, _, info in calls]
    assert max(distances[0], distances[4]) < 1e-6 < 1e-4 < distances[3]
    _, state, _ = checkpoint.restore(tmp_path / "checkpoints", run._start())
    counts = [int(x) for _, x in optax.tree.get_all_with_path(state.opt_state, "count")]
    assert sorted(counts) == [4, 16]  # Adam's, of one batch; the schedule's, of all four


@pytest.mark.parametrize("rank", [0, 2], ids=["whole", "adapters"])
def test_models_that_are_only_read_have_the_type_in_which_is_computed(rank, monkeypatch, tmp_path):
    coarse = dataclasses.replace(toy.policy(), model=LanguageModel(toy.MODEL.config, "bfloat16"))
    monkeypatch.setattr(toy, "policy", lambda: coarse)
    run = make_run(grpo, config(lora_rank=rank), toy.task(held_out=()))
    with open_record(dataclasses.replace(run.config, run=str(tmp_path))) as run.record:
        now = run._resume()
    given = run._given(now)
    reference = given["reference"]["base"] if rank else given["reference"]
    assert reference["layers"]["0"]["mlp"]["up"]["kernel"].dtype == jnp.bfloat16
    assert reference["norm"]["scale"].dtype == jnp.float32
    assert not rank or given["policy"] is reference
    moving = jax.tree.leaves((now.state.params, given["reference"]["adapters"] if rank else {}))
    assert {leaf.dtype for leaf in moving} == {jnp.dtype("float32")}


def test_a_piece_that_draws_draws_anew_in_every_step(on_one):
    run, _ = on_one
    now = Progress(state=run._start(), cursor=Cursor())
    given = run._fixed()
    everyone = together(given, now.state.params)
    rollout = run.rollouts.take(everyone, 0, now.cursor, now.pool)
    batch = run.scoring.columns(everyone, rollout, now.pool, now.rooms)
    step_of = np.zeros(len(batch.id), np.int32)
    credit = []
    for step in (0, 0, 1):
        now.step = step
        credit.append(np.asarray(run._prepare(now, batch, step_of).credit))
        now.state = dataclasses.replace(now.state, memory=run._start().memory)
    np.testing.assert_array_equal(credit[0], credit[1])
    assert (credit[0] != credit[2]).any()


# ---------------------------------------------------------------- the public door


def test_train_does_not_go_on_with_another_run(on_one, tmp_path):
    run, _ = on_one
    killed(run, tmp_path, kill_at(1))
    settings = config(run=str(tmp_path), resume=True)
    door = {"algorithm": toy.remembering(), "policy": toy.policy(), "task": toy.task()}
    for changes, message in [
        ({"resume": False}, "already holds a run: continue it with --resume"),
        ({"seed": 1}, "seed is 0 in the run and 1 now"),
        ({"minibatches": 1}, "minibatches is 2 in the run and 1 now"),
    ]:
        with pytest.raises(PoloptError, match=message) as error:
            train(dataclasses.replace(settings, **changes), **door)
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_run_is_the_same_run_in_another_process_and_ends_well_on_sigterm(on_one, tmp_path):
    """Killed here, taken up by the command line, terminated there inside a step, ended here."""
    run, expected = on_one
    folder, file = tmp_path / "run", tmp_path / "config.json"
    run.config, before = dataclasses.replace(run.config, checkpoint_every=2), run.config
    try:
        killed(run, folder, kill_at(1))
        file.write_text(
            to_json(dataclasses.replace(run.config, run=str(folder), quiet=True, plot=False))
        )
        with subprocess.Popen(
            [sys.executable, "-m", "faults.slow_cli", "--config", str(file), "--resume"],
            cwd=Path(__file__).parents[1],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            saved = folder / "checkpoints" / "00000002"
            while not saved.exists() and process.poll() is None:
                time.sleep(0.01)
            time.sleep(0.1)  # into step 3, whose rewards take most of a second
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=200)
        assert process.returncode == 143, err
        assert f"polopt train --config {folder} --resume" in err
        done = left_behind(folder)[0][-1]["step"]  # it finished the step that it was in
        assert done == 3
        names = sorted(p.name for p in (folder / "checkpoints").iterdir())
        assert names == ["00000002", "00000003"]
        assert left_behind(folder)[0][:3] == left_behind(expected)[0][:3]
        go(run, folder)
    finally:
        run.config = before
    assert_same_run(run, folder, expected)


def test_what_cannot_be_done_is_said_before_a_folder_is_made(tmp_path):
    alone = dataclasses.replace(remax(), sampling=Sampling(group_size=2))  # without its companion
    door = {"policy": toy.policy(), "task": toy.task()}
    for algorithm, settings, message in [
        (alone, {}, "remax needs the column 'greedy_return', which this loop cannot make"),
        (remax, {"devices": 20, "parallel": "auto"}, "devices=20, but this host has 8"),
        (remax, {"attention": "splash"}, "splash needs TPUs, and the devices are cpu"),
        (ppo, {"minibatches": 5}, "minibatches=5 is more than the 4 groups"),
    ]:
        with pytest.raises(PoloptError, match=message) as error:
            train(config(run=str(tmp_path / "run"), **settings), algorithm=algorithm, **door)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_finite_gradient_stops(on_one, tmp_path):
    """Rewards whose squares overflow: nothing moves, and the tenth step in a row is the last."""
    run, _ = on_one
    before = run.config, run.rollouts.collector
    sides = itertools.cycle([1e30, -1e30])  # of the two members of each group
    huge = toy.task(reward=lambda *_: {"correct": next(sides), "short": 0})
    run.config = dataclasses.replace(run.config, steps=30, checkpoint_every=4)
    run.rollouts.collector = dataclasses.replace(before[1], task=huge)
    try:
        with pytest.raises(PoloptError, match="10 steps in a row had no finite") as error:
            go(run, tmp_path)
    finally:
        run.config, run.rollouts.collector = before
    assert "\n" not in str(error.value)
    lines, _ = left_behind(tmp_path)
    steps = lines[1:]
    assert [row["update/skipped"] for row in steps] == [4 * k for k in range(1, MAX_SKIPPED)]
    assert all(row["update/param_change"] == 0 for row in steps)
    assert all(row["update/grad_norm"] is None for row in steps)
    step, state, counters = checkpoint.restore(tmp_path / "checkpoints", run._start())
    assert (step, counters["barren"]) == (8, 8)
    toy.assert_same_tree(state.params["policy"], run.policy.params)


# ---------------------------------------------------------------- draws


def test_tokens_belong_to_ids_not_to_places(straight):
    """Law 9 through the run's own sampler: prompts in another order, and fewer of them."""
    run, _ = straight
    params = run.parallel.place(run._start()).params["policy"]
    P, G = run.config.prompts, run.config.group_size
    tokens, lengths = run.rollouts.collector.prompts([toy.example(i, i) for i in range(P)])
    ids = np.arange(40, 40 + P * G, dtype=np.int32).reshape(P, G)
    order = np.random.default_rng(0).permutation(P)
    sample = functools.partial(run.rollouts.samplers.policy, params, jax.random.key(0))
    plain = jax.device_get(sample(tokens, lengths, ids))
    mixed = jax.device_get(sample(tokens[order], lengths[order], ids[order]))
    rows = (order[:, None] * G + np.arange(G)).reshape(-1)
    np.testing.assert_array_equal(mixed.tokens, plain.tokens[rows])
    np.testing.assert_array_equal(mixed.length, plain.length[rows])
    fewer = jax.device_get(sample(tokens[1:], lengths[1:], ids[1:]))
    np.testing.assert_array_equal(fewer.tokens, plain.tokens[G:])
    assert len(np.unique(plain.tokens, axis=0)) >= P
