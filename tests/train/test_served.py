"""A run that a server samples: over real HTTP, with weights that it is given at every step."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from rollout import engine as e

from polopt.algorithms import grpo, reinforce
from polopt.errors import PoloptError, UsageError
from polopt.models import LanguageModel, base, huggingface
from polopt.models.config import Experts
from polopt.models.lora import LoraModel
from polopt.rollout.push import FolderPush
from polopt.rollout.server import probe
from polopt.rollout.wire import Server
from polopt.train import loop
from polopt.train.config import TrainConfig, resume_conflicts
from polopt.train.policy import Policy
from polopt.train.scoring import Scoring
from polopt.train.setup import scale
from train import toy

LOADS = {"vllm": "/collective_rpc", "sglang": "/update_weights_from_disk"}


@functools.cache
def start():
    """A model of one layer, with experts and the tokens of the shipped one, far from uniform."""
    tokenizer = base.load()[2]
    config = dataclasses.replace(
        toy.MODEL.config,
        vocab_size=tokenizer.vocab_size,
        max_length=64,
        qk_norm=True,
        experts=Experts(count=4, chosen=2, size=8),
    )
    model = LanguageModel(config)
    params = model.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim == 2 else leaf, params)
    return Policy(model=model, params=params, tokenizer=tokenizer)


def reward(completion, example):
    return {"correct": float(sum(map(ord, completion)) % 2)}


@jax.jit
def last_logits(params, tokens, length):
    model = start().model
    return model.logits(params, model.hidden(params, tokens[None])[0, length - 1])


class Engine(e.Engine):
    """Samples from weights that it loads when it is told to, from the folder that it is told."""

    def __init__(self, owner, folder):
        self.params, self.folder, self.broken = start().params, folder, False
        super().__init__(e.numpy_model(self.logits, self.uniform), owner)

    def logits(self, tokens):
        padded = np.zeros(64, np.int32)
        padded[: len(tokens)] = tokens
        return last_logits(self.params, padded, len(tokens))

    @staticmethod
    def uniform(seed, position):
        return np.random.default_rng((seed, position)).random()

    def answer(self, path, body):
        if path == "/update_weights_from_disk":
            if self.broken:
                return {"success": False, "message": "out of memory"}
            assert body["model_path"] == str(self.folder)
            self.version = body["weight_version"]
        if path == LOADS[self.owner]:
            self.params = huggingface.load(self.folder)[1]
            return {"success": True}
        return super().answer(path, body)


def settings(url, folder, **changes):
    asked = {"steps": 2, "group_size": 2, "warmup": 0, "eval_every": 1, "learning_rate": 0.1}
    return toy.config(server=url, run=str(folder), **{**asked, **changes})


def go(url, folder, **changes):
    """Train, and return the lines of the run's metrics."""
    task = toy.task(reward=reward)
    loop.train(settings(url, folder, **changes), algorithm=reinforce, policy=start(), task=task)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_is_sampled_by_a_server_that_is_given_its_weights(tmp_path, monkeypatch):
    versions, columns = [], Scoring.columns

    def look(scoring, given, rollout, *others):
        versions.append(rollout.trajectories.version)
        return columns(scoring, given, rollout, *others)

    monkeypatch.setattr(Scoring, "columns", look)
    pushed, run = tmp_path / "pushed", tmp_path / "run"
    engine = Engine("sglang", pushed)
    with engine.listening() as url:
        rows = go(url, run, server_push=str(pushed))
    steps = [row for row in rows if "rollout/logp_gap" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["rollout/logp_gap_max"] < 1e-4 for row in steps)
    assert all(row["update/param_change"] > 0 for row in steps)
    assert all(1 <= row["router/max_load"] <= 2 for row in steps)  # two of four experts a token
    assert [np.unique(version).tolist() for version in versions] == [[0], [1]]
    asked = [path for path, _ in engine.seen]
    assert asked.count("/update_weights_from_disk") == 3  # before the first step, and after each
    sent = [body["sampling_params"] for path, body in engine.seen if path == "/generate"]
    # Two to see what log-probabilities are, 4 x 2 in each of two rollouts, 3 in each evaluation.
    assert len(sent) == 2 + 2 * 8 + 3 * 3
    seeds = {how["sampling_seed"] for how in sent[2:]}
    assert len(seeds) == 2 * 8 + 3  # evaluations repeat theirs
    told = json.loads((run / "info.json").read_text())
    assert "truncated_is" in told["loss"]
    assert told["sampler"] == f"SGLang at {url} serves {e.MODEL}, at most 32 tokens"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pushed", "run"]


@pytest.mark.slow
def test_a_server_that_keeps_its_weights_falls_behind(tmp_path):
    with Engine("vllm", tmp_path).listening() as url:
        rows = go(url, tmp_path / "run", eval_problems=0)
    first, second = (row["rollout/logp_gap"] for row in rows if "rollout/logp_gap" in row)
    assert first < 1e-5
    assert second > 1e-3


def test_vllm_loads_its_folder_again_with_adapters_merged(tmp_path):
    policy, engine = start(), Engine("vllm", tmp_path / "pushed")
    model = LoraModel.over(policy.model, rank=2, targets=("attention/q",))
    with engine.listening() as url:
        push = FolderPush(
            found=probe(Server(url=url)),
            folder=engine.folder,
            model=model,
            tokenizer=policy.tokenizer,
        )
        for version in (1, 2):
            params = model.init(jax.random.key(version), policy.params)
            params = jax.tree.map(lambda leaf, v=version: leaf + v, params)
            push(params, version)
            jax.tree.map(np.testing.assert_array_equal, engine.params, model.merge(params)[1])
    assert engine.seen[-2:] == [
        ("/collective_rpc", {"method": "reload_weights"}),
        ("/reset_prefix_cache", None),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["pushed"]


def test_weights_that_do_not_arrive_end_the_run(tmp_path):
    engine = Engine("sglang", tmp_path / "pushed")
    engine.broken = True
    with (
        engine.listening() as url,
        pytest.raises(PoloptError, match=r"loaded: .*out of memory"),
    ):
        go(url, tmp_path / "run", server_push=str(tmp_path / "pushed"))


def test_what_would_be_overwritten_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    huggingface.save(tmp_path / "model", start().model, start().params, start().tokenizer)
    with Engine("sglang", tmp_path).listening() as url:
        with pytest.raises(PoloptError, match=r"mine is no Hugging Face folder, and weights would"):
            go(url, tmp_path / "run", server_push=str(tmp_path / "mine"))
        here = str(tmp_path / "model")
        with pytest.raises(PoloptError, match=r"server_push: .* is the model to start from"):
            go(url, tmp_path / "run", server_push=here, model=here)


def test_the_correction_can_be_tuned_and_switched_off():
    def names(**changes):
        return scale(grpo, TrainConfig(server="http://h:1", **changes)).trajectory.names

    assert "truncated_is" in names(set=("truncated_is.high=3",))
    assert names(server_corrected=False) == grpo().trajectory.names
    with pytest.raises(UsageError, match=r"server_push is of a server: give its address too"):
        TrainConfig(server_push="folder")


def test_a_run_goes_on_at_a_server_that_moved_but_not_without_one():
    one, two, none = (TrainConfig(server=url) for url in ("http://a:1", "http://b:2", None))
    assert resume_conflicts(one, two) == []
    assert resume_conflicts(one, none) == ["server is 'http://a:1' in the run and None now"]
    assert resume_conflicts(none, one) == ["server is None in the run and 'http://a:1' now"]
