"""The mesh: each device has a part of the state, and a run is what it is on one device."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from polopt.algorithms import grpo
from polopt.errors import PoloptError
from polopt.models import LanguageModel
from polopt.rollout.draw import Decoding
from polopt.rollout.sampler import generate
from polopt.train.loop import train
from polopt.train.parallel import Jit, choose, make_mesh
from polopt.train.parallel.mesh import read_sizes
from train import toy
from train.toy import config

SIZES = ("data=2", "fsdp=2", "tensor=2")


def test_the_same_tokens_are_drawn_on_a_mesh():
    def complete(params, key, prompts, lengths, ids, offset):
        return generate(
            toy.MODEL,
            params,
            prompts,
            lengths,
            ids.reshape(-1),
            key=key,
            group_size=2,
            max_new_tokens=4,
            decoding=Decoding(),
            eos_ids=toy.Letters().eos_ids,
            offset=offset.reshape(-1),
        )

    rng = np.random.default_rng(0)
    prompts, lengths = rng.integers(3, 32, (4, 5), np.int32), np.array([5, 2, 3, 0], np.int32)
    ids = np.arange(8, dtype=np.int32).reshape(4, 2)
    one, mesh = (
        jax.device_get(
            form.rows(complete, dealt=4)(
                form.place(toy.params()), jax.random.key(0), prompts, lengths, ids, 0 * ids
            )
        )
        for form in (Jit(), choose("mesh", None, SIZES))
    )
    np.testing.assert_array_equal(mesh.tokens, one.tokens)
    np.testing.assert_array_equal(mesh.stop, one.stop)
    np.testing.assert_allclose(mesh.logp_sampler, one.logp_sampler, atol=1e-5)
    assert len(np.unique(one.tokens[:6], axis=0)) >= 4


# ---------------------------------------------------------------- the state


def state_and_update(form, optimizer):
    """A state of a toy model and an update that moves all of it, without rows."""

    def update(state, given, trajectories, prepared, rows, layout):
        total = jnp.sum(rows.astype(jnp.float32)) + jnp.sum(prepared)
        grads = jax.tree.map(lambda x: x * total, state["params"])
        changes, moments = optimizer.update(grads, state["opt_state"], state["params"])
        moved = optax.apply_updates(state["params"], changes)
        return {"params": moved, "opt_state": moments}, total

    def make(params):
        return {"params": jax.tree.map(jnp.copy, params), "opt_state": optimizer.init(params)}

    return form.build(make, toy.params()), update


def test_each_device_has_a_part_and_a_step_leaves_it_so():
    form, optimizer = choose("mesh", None, SIZES), optax.adamw(1e-3)
    state, update = state_and_update(form, optimizer)
    before = jax.tree.map(lambda x: x.sharding, state)
    parts = {"embed": (16, 8), "up": (8, 8), "down": (8, 8), "scale": (16,)}
    for tree in (state["params"], state["opt_state"][0].mu, state["opt_state"][0].nu):
        block = tree["layers"]["0"]
        found = {
            "embed": tree["embed"]["embedding"],
            "up": block["mlp"]["up"]["kernel"],
            "down": block["mlp"]["down"]["kernel"],
            "scale": block["mlp_norm"]["scale"],
        }
        for name, leaf in found.items():
            shapes = {shard.data.shape for shard in leaf.addressable_shards}
            assert shapes == {parts[name]}, name
    held = sum(shard.data.nbytes for x in jax.tree.leaves(state) for shard in x.addressable_shards)
    whole = sum(x.nbytes for x in jax.tree.leaves(state))
    assert held < 0.3 * 8 * whole  # the matrices a quarter on each, small vectors whole
    step = form.step(chex.assert_max_traces(update, n=1))
    rows, prepared = np.arange(8, dtype=np.int32), np.ones(3, np.float32)
    for _ in range(3):
        old = state
        state, total = step(state, {}, None, prepared, rows, None)
        assert old["params"]["embed"]["embedding"].is_deleted()
        assert float(total) == 28 + 3
        assert jax.tree.map(lambda x: x.sharding, state) == before
    assert step._jitted._cache_size() == 1


def test_rows_are_dealt_in_order_and_come_back_whole():
    form = choose("mesh", None, SIZES)

    def double(params, shared, rows, more):
        return {"sum": rows * params["scale"] + shared + more.sum(1), "same": more}

    rows, more = np.arange(8, dtype=np.float32), np.arange(16, dtype=np.float32).reshape(8, 2)
    params = form.place({"scale": jnp.float32(3)})
    out = form.rows(double, dealt=2)(params, np.float32(5), rows, more)
    np.testing.assert_array_equal(out["sum"], rows * 3 + 5 + more.sum(1))
    np.testing.assert_array_equal(out["same"], more)
    assert out["sum"].is_fully_replicated


def test_shardings_follow_from_shapes_alone_for_any_devices():
    """What `lower` gives is a program for the mesh's devices, of arrays that nobody made."""
    form, optimizer = choose("mesh", 4, ("fsdp=4",)), optax.sgd(1e-3)
    shapes = jax.eval_shape(toy.MODEL.init, jax.random.key(0))
    state = form.abstract({"params": shapes, "opt_state": jax.eval_shape(optimizer.init, shapes)})
    assert state["params"]["embed"]["embedding"].sharding.spec == P(None, "fsdp")
    _, update = state_and_update(Jit(), optimizer)
    rows = jax.ShapeDtypeStruct((8,), jnp.int32)
    prepared = jax.ShapeDtypeStruct((3,), jnp.float32)
    compiled = form.step(update).lower(state, {}, None, prepared, rows, None).compile()
    inputs, _ = compiled.input_shardings
    assert inputs[0]["params"]["embed"]["embedding"].spec == P(None, "fsdp")
    assert inputs[4].spec == P(("data", "fsdp"))
    outputs = compiled.output_shardings[0]["params"]["embed"]["embedding"]
    assert outputs.spec == P(None, "fsdp")
    assert len(outputs.device_set) == 4


# ---------------------------------------------------------------- what is asked for


def test_the_mesh_that_is_chosen():
    form = choose("auto", None, ("data=2", "fsdp=-1"))
    assert dict(form.mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1, "sequence": 1}
    assert (form.devices, form.parts, form.shards, form.axis) == (8, 8, 8, None)
    assert set(form.mesh.axis_types) == {AxisType.Auto}
    assert choose("mesh", 4).mesh.shape["fsdp"] == 4
    assert choose("mesh", None, ("tensor=2", "data=4")).parts == 4


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (("model=2",), "'model' is no axis: accepted are data, fsdp, tensor, sequence"),
        (("data=2", "data=4"), "'data' is given twice"),
        (("data=two",), "'data=two' is no size: accepted are data=1 and up, and data=-1"),
        (("data",), "'data' is no size"),
        (("data=0",), "'data=0' is no size"),
        (("data=-2",), "'data=-2' is no size"),
        (("data=-1", "fsdp=-1"), "more than one axis is -1"),
        (("data=3",), "data=3 does not make 8 devices"),
        (("data=3", "fsdp=-1"), "data=3 x fsdp=-1 does not make 8 devices"),
        (("data=4", "fsdp=4"), "data=4 x fsdp=4 does not make 8 devices"),
        (("data=1",), "one device does not make 8 devices"),
    ],
)
def test_sizes_that_make_no_mesh_are_refused_in_one_line(sizes, message):
    with pytest.raises(PoloptError, match=message) as error:
        choose("mesh", None, sizes)
    assert "\n" not in str(error.value)


def test_what_the_mesh_cannot_carry_is_refused_before_a_folder_is_made(tmp_path):
    door = {"algorithm": grpo, "policy": toy.policy(), "task": toy.task()}
    for settings, message in [
        ({"parallel": "pmap", "mesh": ("data=8",)}, "parallel=pmap has none: use mesh or auto"),
        ({"parallel": "mesh", "devices": 9}, "devices=9, but this host has 8"),
        (
            {"mesh": ("data=4", "sequence=2")},
            "deal the key heads to 2 devices, and the model has 1",
        ),
        ({"mesh": ("devices=8",)}, "'devices' is no axis"),
    ]:
        with pytest.raises(PoloptError, match=message) as error:
            train(config(run=str(tmp_path / "run"), **{"parallel": "auto", **settings}), **door)
        assert "\n" not in str(error.value)
    odd = LanguageModel(dataclasses.replace(toy.MODEL.config, vocab_size=33))
    policy = dataclasses.replace(toy.policy(), model=odd, params=odd.init(jax.random.key(0)))
    with pytest.raises(PoloptError, match="tensor=8 does not divide the 33 of 'vocab' in embed/"):
        train(
            config(run=str(tmp_path / "run"), parallel="mesh", mesh=("tensor=8",)),
            **{**door, "policy": policy},
        )
    assert not (tmp_path / "run").exists()


def test_a_mesh_is_made_of_the_devices_that_it_is_given():
    mesh = make_mesh(read_sizes(("fsdp=2", "tensor=-1")), jax.devices()[2:6])
    assert {d.id for d in mesh.devices.flat} == {2, 3, 4, 5}
