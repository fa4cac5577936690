"""Operations that are counted from a formula are those of the traced programs, to 5 %."""

import dataclasses

import jax
import numpy as np
import pytest

from plan import count as by_hand
from plan.jobs import SHAPE, job_of
from polopt.algorithms import grpo, gvpo, ppo
from polopt.models import head
from polopt.plan.flops import count
from polopt.plan.job import Shape
from polopt.rollout.lanes import open_lanes, run, start
from polopt.train.update import make_scorer, make_update

CHUNK = 128  # scored tokens of a micro-batch are one


def update_of(job, micro_batch):
    """The program of an optimiser step, and its arguments."""
    micro, width = job.split(micro_batch, 1)
    modules = job.roles.chosen(job.roles.update)
    update = make_update(job.alg, modules, job.optimizer, remat=job.config.remat)
    layout = job.layout(width, micro, job.roles.update)
    splits = Shape((width // micro, micro), np.int32)
    return update, (job.state, job.given, job.trajectories(), job.prepared(), splits, layout)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(head, "CHUNK_BYTES", 0)
    assert head.default_chunk(SHAPE.vocab_size, SHAPE.hidden_size) == CHUNK


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (grpo, {"micro_batch": 4}),
        (grpo, {"micro_batch": 4, "remat": True}),
        (grpo, {"micro_batch": 4, "lora_rank": 4}),
        (ppo, {"micro_batch": 4}),
        (gvpo, {"micro_batch": 4}),
    ],
    ids=["plain", "remat", "lora", "critic", "cotangent"],
)
def test_an_update(tmp_path, method, settings):
    job = job_of(method(), tmp_path, **settings)
    fn, args = update_of(job, 4)
    assert 4 * job.completion == CHUNK
    traced = by_hand.products(fn, *args, trips=1)
    assert count(job, 4, 1).update == pytest.approx(traced, rel=0.05)


def test_scoring(tmp_path):
    job = job_of(grpo(), tmp_path, micro_batch=4)
    names, wanted = job.roles.scoring(), tuple(job.roles.columns.values())
    assert names == ("reference",)
    scorer = make_scorer(job.roles.chosen(names), wanted)
    args = job.given, job.trajectories(), Shape((job.rows // 4, 4), np.int32)
    traced = by_hand.products(scorer, *args, job.layout(job.rows, 4, names), trips=1)
    assert count(job, 4, 1).scoring == pytest.approx(traced, rel=0.05)


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 4}], ids=["plain", "lora"])
def test_sampling(tmp_path, settings):
    job = job_of(grpo(), tmp_path, **settings)
    P, G, C = job.prompts, job.group_size, job.completion
    opened = {"lanes": G, "room": C, "ring": C}

    def read(params, prompts, lengths):
        return open_lanes(job.policy, params, prompts, lengths, key=jax.random.key(0), **opened)

    def write(params, lanes, ids):
        most, drawing = ids * 0 + C, job.drawing()
        lanes = start(job.policy, params, lanes, ids >= 0, ids, ids * 0, most, drawing)
        return run(job.policy, params, lanes, drawing, until=C, idle=P * G)

    prompts = Shape((P, job.prompt), np.int32), Shape((P,), np.int32)
    lanes = jax.eval_shape(read, job.params, *prompts)
    counted = count(job, None, 1)
    traced = by_hand.products(read, job.params, *prompts, trips=1)
    assert counted.prefill == pytest.approx(traced, rel=0.05)
    ids = Shape((P * G,), np.int32)
    traced = by_hand.products(write, job.params, lanes, ids, trips=C - 1)
    assert counted.decode == pytest.approx(traced, rel=0.05)


def test_an_optimiser_step_is_counted_as_often_as_it_is_taken(tmp_path):
    job = job_of(grpo(), tmp_path)
    update = dataclasses.replace(job.alg.update, epochs=3)
    thrice = dataclasses.replace(job, alg=job.alg.replace(update=update))
    assert count(thrice, None, 1).update == 3 * count(job, None, 1).update
