"""One run in every placement: twenty steps on one device, on eight copies, and on meshes."""

import dataclasses

import jax
import pytest
from train import test_mesh, toy
from train.toy import config

from polopt.algorithm import Algorithm
from polopt.algorithms import grpo
from polopt.models import DecoderConfig, LanguageModel
from polopt.models.config import Experts
from polopt.train.policy import Policy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

WIDE = DecoderConfig(
    vocab_size=32,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=16,
    max_length=64,
)
MESHES = {
    "data fsdp tensor": ("data=2", "fsdp=2", "tensor=2"),
    "fsdp": ("fsdp=8",),
    "tensor beyond the key heads": ("fsdp=2", "tensor=4"),
    "sequence": ("data=2", "fsdp=2", "sequence=2"),
}


def policy_of(shape):
    model = LanguageModel(shape)
    params = model.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim == 2 else leaf, params)
    return Policy(model=model, params=params, tokenizer=toy.Letters())


def runs(monkeypatch, folder, algorithm=grpo, shape=WIDE, **settings):
    monkeypatch.setattr(toy, "policy", lambda: policy_of(shape))
    run = toy.make_run(algorithm, config(**{"group_size": 4, "prompts": 4, **settings}))
    toy.go(run, folder)
    return run, folder


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return runs(patch, tmp_path_factory.mktemp("one"), steps=20, learning_rate=1e-3)


def test_twenty_steps_on_eight_devices_by_pmap(twenty, tmp_path, monkeypatch):
    found = runs(monkeypatch, tmp_path, steps=20, learning_rate=1e-3, parallel="pmap", devices=8)
    test_mesh.assert_same_run(found, twenty)


@pytest.mark.parametrize("name", MESHES)
def test_twenty_steps_on_a_mesh(twenty, name, tmp_path, monkeypatch):
    found = runs(
        monkeypatch, tmp_path, steps=20, learning_rate=1e-3, parallel="mesh", mesh=MESHES[name]
    )
    test_mesh.assert_same_run(found, twenty)


VARIANTS = {
    "packed, by an engine of few lanes": {"pack": "always", "lanes": 8},
    "in micro-batches, recomputed": {"micro_batch": 1, "remat": True},
    "packed, within a bound on tokens": {"pack": "always", "micro_tokens": 24},
    "sampled on another mesh": {"sample_mesh": ("data=4", "tensor=2")},
    "adapters over a quantised base": {"lora_rank": 2, "quantise": "int8"},
    "experts": {
        "shape": dataclasses.replace(WIDE, experts=Experts(count=4, chosen=2, size=8)),
    },
    "memory, a reference and several steps": {"algorithm": toy.remembering()},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_a_run_on_a_mesh(name, tmp_path, monkeypatch):
    assert isinstance(toy.remembering(), Algorithm)
    how = {"steps": 3, "learning_rate": 1e-3, **VARIANTS[name]}
    one = runs(monkeypatch, tmp_path / "one", **how)
    mesh = MESHES["data fsdp tensor"]
    found = runs(monkeypatch, tmp_path / "mesh", parallel="mesh", mesh=mesh, **how)
    test_mesh.assert_same_run(found, one)
