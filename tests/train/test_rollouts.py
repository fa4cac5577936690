"""Sampling beside learning: devices of its own, weights that are handed over, rollouts ahead."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.algorithms import grpo
from polopt.errors import PoloptError, UsageError
from polopt.train.config import TrainConfig, resume_conflicts
from polopt.train.handover import Handover
from polopt.train.parallel import Jit, Pmap, Sharded, forms
from polopt.train.record import read_metrics
from train import toy
from train.test_loop import kill_at, killed
from train.toy import config, go, make_run

APART = {"parallel": "jit", "devices": 3, "sample_devices": 2}


def like(kind, collector):
    """A collector of another class."""
    return kind(**{f.name: getattr(collector, f.name) for f in dataclasses.fields(collector)})


def own(form):
    return set(form.mesh.devices.flat)


def test_the_last_devices_sample_and_the_others_learn():
    training, sampling = forms("auto", 6, (), 2)
    assert training == Pmap(4)
    assert own(sampling) == set(jax.devices()[4:6])
    assert dict(sampling.mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 1, "sequence": 1}
    training, sampling = forms("mesh", 6, ("fsdp=4",), 2, ("tensor=2",))
    assert own(training) == set(jax.devices()[:4])
    assert own(sampling) == set(jax.devices()[4:6])
    assert sampling.mesh.shape["tensor"] == 2


def test_another_mesh_of_the_same_devices_samples():
    training, sampling = forms("mesh", 4, ("fsdp=4",), None, ("tensor=4",))
    assert own(training) == own(sampling)
    assert (training.mesh.shape["fsdp"], sampling.mesh.shape["tensor"]) == (4, 4)
    one, other = forms("auto", 4)
    assert one is other


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("auto", 2, (), 2), "sample_devices=2 leaves none of 2 devices to learn"),
        (("auto", None, (), 8), "sample_devices=8 leaves none of 8 devices to learn"),
        (("jit", 4, (), 2), "jit runs on one device, not 2"),
        (("auto", 4, (), 2, ("tensor=4",)), "sample_mesh: tensor=4 does not make 2 devices"),
        (("auto", 4, (), 2, ("heads=2",)), "sample_mesh: 'heads' is no axis"),
    ],
)
def test_devices_that_there_are_not_are_refused(asked, message):
    with pytest.raises(PoloptError, match=message):
        forms(*asked)


def test_a_server_has_its_own():
    with pytest.raises(UsageError, match="sample_devices: the server has its own"):
        config(sample_devices=1, server="http://localhost:1")


@pytest.mark.parametrize("form", [Jit(), Pmap(2), forms("mesh", 2)[0]])
def test_weights_arrive_and_only_those_that_moved_are_copied(form):
    sampling = forms("auto", 4, (), 2, ("tensor=2",))[1]
    moving, base = form.place((toy.params(), {"table": jnp.arange(4.0)}))
    hand = Handover(form, sampling)
    first = hand({"policy": moving, "teacher": base})
    toy.assert_same_tree(jax.device_get(first["policy"]), jax.device_get(toy.params()))
    for leaf in jax.tree.leaves(first):
        assert leaf.sharding.device_set <= set(jax.devices()[2:4])
    up = first["policy"]["layers"]["0"]["mlp"]["up"]["kernel"]
    assert {s.data.shape for s in up.addressable_shards} == {(16, 8)}
    moved = jax.tree.map(lambda x: x + 1, moving)
    hand({"policy": moved})  # as an evaluation does, that needs no teacher
    second = hand({"policy": moved, "teacher": base})
    assert second["teacher"]["table"] is first["teacher"]["table"]
    assert float(jnp.max(second["policy"]["embed"]["embedding"] - up.max())) != 0
    np.testing.assert_array_equal(
        second["policy"]["embed"]["embedding"], first["policy"]["embed"]["embedding"] + 1
    )


def test_what_is_handed_over_outlives_a_donation():
    """Norms lie on every device in both meshes: even they are copies."""
    training, sampling = forms("mesh", 4, ("fsdp=4",), None, ("tensor=4",))
    params = training.place({"policy": toy.params()})
    there = Handover(training, sampling)(params)
    kept = jax.device_get(there)
    jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)(params)
    assert any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    toy.assert_same_tree(jax.device_get(there), kept)


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def ahead(tmp_path_factory):
    """Six steps, checkpoints after the third and the last, evaluations after every third."""
    folder = tmp_path_factory.mktemp("ahead")
    run = make_run(grpo, config(group_size=2, steps=6, eval_every=3, checkpoint_every=3, **APART))
    go(run, folder)
    return run, folder


def test_rollouts_are_one_step_behind_but_not_across_a_checkpoint(ahead):
    run, folder = ahead
    rows = [row for row in read_metrics(folder) if row["step"]]
    assert [row["rollout/staleness"] for row in rows] == [0, 1, 1, 0, 1, 1]
    assert run.alg.trajectory.names[-1] == "truncated_is"


def test_a_run_that_draws_ahead_repeats_itself_after_a_kill(ahead, tmp_path):
    run, folder = ahead
    killed(run, tmp_path, kill_at(5))
    go(run, tmp_path)
    assert toy.left_behind(tmp_path) == toy.left_behind(folder)


def test_the_next_rollout_is_drawn_while_the_present_one_is_learned_from(ahead, tmp_path):
    """The first update waits until two are drawn: in turn, that would never be."""
    run, _ = ahead
    before = run.config, run.rollouts.collector, run.update
    drawn = threading.Semaphore(0)

    class Told(type(before[1])):
        def collect(self, *args):
            made = super().collect(*args)
            drawn.release()
            return made

    def waiting(*args):
        if run.update is waiting:
            run.update = before[2]
            assert drawn.acquire(timeout=60)
            assert drawn.acquire(timeout=60)
        return before[2](*args)

    run.config = dataclasses.replace(run.config, steps=2, eval_every=0, checkpoint_every=0)
    run.rollouts.collector, run.update = like(Told, before[1]), waiting
    try:
        go(run, tmp_path)
    finally:
        run.config, run.rollouts.collector, run.update = before
    assert not drawn.acquire(blocking=False)


def test_what_a_rollout_raises_reaches_the_run(ahead, tmp_path):
    run, _ = ahead
    before, calls = run.rollouts.collector, iter(range(2))

    class Broken(type(before)):
        def collect(self, *args):
            if next(calls) == 1:
                raise PoloptError("the task is gone")
            return super().collect(*args)

    run.rollouts.collector = like(Broken, before)
    try:
        with pytest.raises(PoloptError, match="the task is gone"):
            go(run, tmp_path)
    finally:
        run.rollouts.collector = before
    assert len([row for row in read_metrics(tmp_path) if row["step"]]) == 1


def test_checkpoints_are_part_of_what_is_drawn():
    recorded = TrainConfig(sample_devices=1)
    (conflict,) = resume_conflicts(recorded, TrainConfig(sample_devices=1, checkpoint_every=7))
    assert conflict.startswith("checkpoint_every is 20")
    assert isinstance(forms("auto", 2, (), 1)[1], Sharded)
