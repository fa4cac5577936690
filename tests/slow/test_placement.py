"""One run in every placement: twenty steps on one device, on eight copies, and on meshes."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from train import toy
from train.toy import config

from polopt.algorithms import grpo
from polopt.models import DecoderConfig, LanguageModel
from polopt.models.config import Experts
from polopt.train import checkpoint
from polopt.train.parallel import Sharded
from polopt.train.policy import Policy
from polopt.train.record import read_metrics
from polopt.train.state import arrays

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
MESH, SEQUENCE = ("data=2", "fsdp=2", "tensor=2"), ("data=2", "fsdp=2", "sequence=2")
BEYOND_KEY_HEADS = ("fsdp=2", "tensor=4")


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


def saved(run, folder):
    return checkpoint.restore(folder / "checkpoints", arrays(run._shapes))


def assert_same_run(found, expected, atol=1e-5):
    """The same tokens, and losses and parameters that differ by rounding."""
    (run, folder), (other, wanted) = found, expected
    assert toy.left_behind(folder)[1] == toy.left_behind(wanted)[1]
    for row, like in zip(read_metrics(folder), read_metrics(wanted), strict=True):
        assert row.keys() == like.keys()
        if row["step"]:
            for name in ("policy/loss", "reward/mean", "rollout/length"):
                np.testing.assert_allclose(row[name], like[name], atol=atol, err_msg=name)
            np.testing.assert_allclose(row["update/grad_norm"], like["update/grad_norm"], rtol=1e-4)
    params, like = (
        jax.device_get(saved(*each)[1]["params"]) for each in ((run, folder), (other, wanted))
    )
    chex.assert_trees_all_close(params, like, rtol=0, atol=atol)


TWENTY = {"steps": 20, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return runs(patch, tmp_path_factory.mktemp("one"), parallel="jit", **TWENTY)


@pytest.fixture(scope="module")
def on_mesh(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("mesh")
        return runs(patch, folder, parallel="mesh", mesh=MESH, **TWENTY)


def test_twenty_steps_on_a_mesh(twenty, on_mesh):
    assert isinstance(on_mesh[0].parallel, Sharded)
    assert_same_run(on_mesh, twenty)
    start = policy_of(WIDE).params
    after = saved(*twenty)[1]["params"]["policy"]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after, start)
    assert min(jax.tree.leaves(moved)) > 1e-4  # or there would be nothing to compare
    assert on_mesh[0].update._jitted._cache_size() == 1


def test_a_checkpoint_of_a_mesh_is_read_on_one_device_and_the_reverse(twenty, on_mesh):
    (meshed, there), (single, here) = on_mesh, twenty
    whole = saved(single, there)[1]
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(whole))
    toy.assert_same_tree(whole["params"], jax.device_get(saved(meshed, there)[1]["params"]))
    cut, expected = saved(meshed, here)[1], saved(single, here)[1]
    toy.assert_same_tree(jax.device_get(cut["opt_state"]), expected["opt_state"])
    kernel = cut["params"]["policy"]["layers"]["0"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec("fsdp", "tensor")


@pytest.mark.parametrize(
    "form",
    [{"parallel": "pmap", "devices": 8}, {"parallel": "mesh", "mesh": SEQUENCE}],
    ids=["pmap", "sequence"],
)
def test_twenty_steps_otherwise(twenty, form, tmp_path, monkeypatch):
    assert_same_run(runs(monkeypatch, tmp_path, **form, **TWENTY), twenty)


# What is run, and the mesh on which it is.
VARIANTS = {
    "packed, within a bound on tokens, by an engine of few lanes": (
        {"pack": "always", "micro_tokens": 24, "lanes": 8},
        {"mesh": MESH},
    ),
    "in micro-batches, recomputed, sampled on another mesh": (
        {"micro_batch": 1, "remat": True},
        {"mesh": MESH, "sample_mesh": ("data=4", "tensor=2")},
    ),
    "adapters over a quantised base": (
        {"lora_rank": 2, "quantise": "int8"},
        {"mesh": ("fsdp=8",)},
    ),
    "experts": (
        {"shape": dataclasses.replace(WIDE, experts=Experts(count=4, chosen=2, size=8))},
        {"mesh": MESH},
    ),
    "memory, a reference and several steps": (
        {"algorithm": toy.remembering()},
        {"mesh": BEYOND_KEY_HEADS},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_a_run_on_a_mesh(name, tmp_path, monkeypatch):
    settings, mesh = VARIANTS[name]
    how = {"steps": 3, "learning_rate": 1e-3, **settings}
    one = runs(monkeypatch, tmp_path / "one", **how)
    found = runs(monkeypatch, tmp_path / "mesh", parallel="mesh", **mesh, **how)
    assert_same_run(found, one)
