"""Checkpoints: what is written comes back, and what is damaged is never taken."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polopt.errors import PoloptError
from polopt.train import checkpoint
from train import toy

COUNTERS = {"cursor": {"prompt": 3, "row": 2**31 - 2}, "first": {"eval/accuracy": 1 / 3}}


def tree(seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "policy": {
            "embed": rng.normal(size=(40, 30)).astype(np.float32),
            "half": jnp.asarray(rng.normal(size=3), jnp.bfloat16),
        }
    }
    return {
        "params": params,
        "opt_state": optax.adam(1e-3).init(params),
        "memory": {"update": {"trajectory/clip": {"width": jnp.float32(seed)}}, "rollout": {}},
        "step": jnp.int32(seed),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("written")
    for step in (1, 2):
        checkpoint.save(folder, step, tree(step), COUNTERS)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints")


def refused(folder, fault):
    """Step 2 is not taken, for the reason given; step 1 is."""
    with pytest.warns(RuntimeWarning, match=fault) as caught:
        step, found, _ = checkpoint.restore(folder, tree())
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "00000002" in message
    assert "\n" not in message
    assert step == 1
    toy.assert_same_tree(found, tree(1))


def test_what_is_written_comes_back_bit_for_bit(folder):
    step, found, counters = checkpoint.restore(folder, tree())
    assert (step, counters) == (2, COUNTERS)
    toy.assert_same_tree(found, tree(2))
    kinds = [x.dtype for x in jax.tree.leaves(found)]
    assert kinds == [x.dtype for x in jax.tree.leaves(tree())]


def test_one_part_is_read_by_its_prefix(folder):
    like = tree()["params"]["policy"]
    _, found, _ = checkpoint.restore(folder, like, prefix="params.policy.")
    toy.assert_same_tree(found, tree(2)["params"]["policy"])


def test_none_is_none(tmp_path):
    assert checkpoint.restore(tmp_path, tree()) is None
    assert checkpoint.restore(tmp_path / "nowhere", tree()) is None


def test_the_newest_two_are_kept_and_leavings_are_swept(folder):
    (folder / "00000009.partial" / "state").mkdir(parents=True)
    checkpoint.save(folder, 3, tree(3), COUNTERS)
    assert sorted(p.name for p in folder.iterdir()) == ["00000002", "00000003"]
    assert checkpoint.restore(folder, tree())[0] == 3


def test_a_step_that_is_there_is_written_over(folder):
    checkpoint.save(folder, 2, tree(7), COUNTERS)
    toy.assert_same_tree(checkpoint.restore(folder, tree())[1], tree(7))


# ---------------------------------------------------------------- damage


def files(folder):
    return sorted(p for p in checkpoint.path_of(folder, 2).rglob("*") if p.is_file())


def test_a_flipped_bit_in_any_file_is_noticed(folder):
    rng = np.random.default_rng(0)
    for path in files(folder):
        whole = path.read_bytes()
        if not whole:
            continue
        for place in {0, len(whole) - 1, *rng.integers(0, len(whole), 4).tolist()}:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            refused(folder, path.name)
        path.write_bytes(whole)
    assert checkpoint.restore(folder, tree())[0] == 2


def test_a_truncated_file_and_a_missing_file_are_noticed(folder):
    for path in files(folder):
        whole = path.read_bytes()
        if whole:
            path.write_bytes(whole[: len(whole) // 2])
            refused(folder, path.name)
        path.unlink()
        refused(folder, f"{path.name} is missing")
        path.write_bytes(whole)
    assert checkpoint.restore(folder, tree())[0] == 2


def test_an_empty_step_is_not_taken(folder):
    shutil.rmtree(folder / "00000002")
    (folder / "00000002").mkdir()
    refused(folder, "manifest.json is missing or unreadable")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": 1, "files": {}}'])
def test_a_manifest_that_is_none(folder, text):
    (folder / "00000002" / "manifest.json").write_text(text)
    refused(folder, "manifest.json is missing or unreadable")


def test_a_counter_that_was_edited_is_noticed(folder):
    path = folder / "00000002" / "manifest.json"
    path.write_text(path.read_text().replace('"prompt": 3', '"prompt": 4'))
    refused(folder, "manifest.json has changed since it was written")


def test_a_later_format_is_named(folder):
    path = folder / "00000002" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    refused(folder, "written in format 2, and this version reads 1")


def test_when_none_is_whole_the_first_fault_is_named(folder):
    for step in (1, 2):
        (checkpoint.path_of(folder, step) / "manifest.json").unlink()
    with pytest.raises(PoloptError, match="no checkpoint can be read of the 2") as error:
        checkpoint.restore(folder, tree())
    assert "00000002: manifest.json is missing" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t["params"]["policy"].update(embed=np.zeros((40, 31), np.float32)),
            r"params.policy.embed is float32\[40, 30\], not float32\[40, 31\]",
        ),
        (
            lambda t: t["params"]["policy"].update(embed=np.zeros((40, 30), np.int32)),
            r"float32\[40, 30\], not int32\[40, 30\]",
        ),
        (lambda t: t["params"].update(critic=np.zeros(2)), "params.critic is on one side only"),
        (lambda t: t.pop("step"), "step is on one side only"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(folder, change, message):
    like = tree()
    change(like)
    with pytest.raises(PoloptError, match=message) as error:
        checkpoint.restore(folder, like)
    assert "\n" not in str(error.value)
