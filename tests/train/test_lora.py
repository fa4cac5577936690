"""A run that trains adapters: what moves, what is kept, and that the sampler follows."""

import json
import shutil

import jax
import numpy as np
import pytest

from polopt import chain
from polopt.algorithm import Algorithm
from polopt.errors import PoloptError, UsageError
from polopt.models import base
from polopt.models.lora import pairs, split
from polopt.reward import batch_whiten, gae
from polopt.train import checkpoint
from polopt.train.config import TrainConfig, to_json
from polopt.train.loop import train
from polopt.train.models import parts
from polopt.train.policy import adapted, load_policy
from polopt.train.state import arrays
from polopt.trajectory import token_ratio, value_loss
from train import toy
from train.toy import config, go, left_behind, make_run


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    run = make_run(toy.remembering(), config(lora_rank=2, steps=2), toy.task(held_out=()))
    go(run, folder)
    return run, folder


@pytest.mark.slow
def test_a_run_keeps_adapters_only_and_shares_one_base(straight):
    run, folder = straight
    adapters, own = split(run.policy.params)
    now = run._resume()
    state = now.state
    assert jax.tree.structure(state.params["policy"]) == jax.tree.structure(adapters)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert len(moments) == 2 * len(jax.tree.leaves(adapters))
    given = run._given(now)
    assert given["policy"] is given["reference"]["base"] is own
    toy.assert_same_tree(own, toy.params())
    held = checkpoint.restore(folder / "checkpoints", arrays(now))[1]
    largest = max(leaf.size for leaf in jax.tree.leaves((held["params"], held["opt_state"])))
    assert largest == 2 * 16  # rank by hidden size


def test_adapters_move_and_the_sampler_follows_them(straight):
    run, folder = straight
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "rollout/logp_gap_max" in row]
    assert len(steps) == 2
    assert all(row["rollout/logp_gap_max"] < 1e-5 for row in steps)
    assert steps[1]["policy/kl_ref"] > 1e-3  # the first batch's reference is the policy itself
    found = checkpoint.restore(folder / "checkpoints", run.start, prefix="params.policy.")
    assert all(np.any(b) for _, (_, b) in pairs(found[1]))


def test_a_killed_run_is_resumed_bit_for_bit(straight, tmp_path):
    run, folder = straight
    killed = tmp_path / "killed"
    shutil.copytree(folder, killed)
    shutil.rmtree(killed / "checkpoints" / "00000002")
    go(run, killed)
    assert left_behind(killed) == left_behind(folder)
    like = arrays(run._first())
    again, wanted = (checkpoint.restore(f / "checkpoints", like)[1] for f in (killed, folder))
    toy.assert_same_tree(again, wanted)


def test_a_folder_of_adapters_is_loaded_as_the_model_that_they_make(tmp_path):
    settings = TrainConfig(lora_rank=2, lora_targets=("layers/0/attention/q",), quantise="int8")
    start = adapted(load_policy("base"), settings)
    moving, _ = parts(start.model, start.params)
    moving = jax.tree.map(lambda leaf: leaf + 0.5, moving)
    (tmp_path / "config.json").write_text(to_json(settings))
    checkpoint.save(tmp_path / "checkpoints", 1, {"params": {"policy": moving}}, {})
    model, params, _ = base.load()
    found = load_policy(str(tmp_path))
    assert found.model == model
    kernel = params["layers"]["0"]["attention"]["q"]["kernel"]
    ((_, (a, b)),) = pairs(moving)
    got = found.params["layers"]["0"]["attention"]["q"]["kernel"]
    step = np.abs(kernel).max(0) / 255
    assert np.all(np.abs(got - kernel - 16 * np.asarray(a @ b)) <= 1.01 * step + 1e-4)


def test_adapters_of_a_critics_policy_leave_the_critic_whole():
    with_critic = Algorithm(
        reward=chain(gae(), batch_whiten()), trajectory=chain(token_ratio(), value_loss())
    )
    run = make_run(with_critic, config(lora_rank=1))
    params = run._first().state.params
    toy.assert_same_tree(params["critic"]["decoder"], toy.params())
    assert jax.tree.structure(params["policy"]) == jax.tree.structure(run.start)


def test_what_cannot_be_trained_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UsageError, match="quantised weights stay as they are: give --lora-rank"):
        TrainConfig(quantise="nf4")
    with pytest.raises(UsageError, match="lora_targets must name"):
        TrainConfig(lora_rank=1, lora_targets=())
    settings = config(lora_rank=1, lora_targets=("q_proj",), run=str(tmp_path / "run"))
    with pytest.raises(PoloptError, match=r"'q_proj' is none of layers/\*/attention/k, "):
        train(settings, algorithm=toy.remembering(), policy=toy.policy(), task=toy.task())
    assert not (tmp_path / "run").exists()
