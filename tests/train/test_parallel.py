"""The forms of running: which is chosen, and what placing and dealing do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crowd import crowd

from polopt.errors import PoloptError
from polopt.train.parallel import Jit, Pmap, choose, forms
from train import toy


@pytest.mark.parametrize(
    ("kind", "devices", "expected"),
    [
        ("auto", None, Pmap(8)),
        ("auto", 1, Jit()),
        ("auto", 2, Pmap(2)),
        ("jit", None, Jit()),
        ("jit", 1, Jit()),
        ("pmap", None, Pmap(8)),
        ("pmap", 1, Pmap(1)),
    ],
)
def test_the_form_that_is_chosen_on_a_host_with_eight_devices(kind, devices, expected):
    assert choose(kind, devices) == expected
    assert (choose(kind, devices).axis is None) == isinstance(expected, Jit)


@pytest.mark.parametrize(
    ("kind", "devices", "message"),
    [
        ("pmap", 9, "devices=9, but this host has 8"),
        ("jit", 2, "jit runs on one device, not 2"),
    ],
)
def test_what_cannot_be_had_is_refused(kind, devices, message):
    with pytest.raises(PoloptError, match=message):
        choose(kind, devices)


def test_processes_choose_one_form_of_all_their_devices():
    for index, form in enumerate(crowd(2, lambda among: choose("auto", 4, (), among))):
        assert (form.each, form.devices, form.parts) == (4, 8, 8)
        assert (form.processes.index, form.processes.count) == (index, 2)
        assert form.local == Pmap(4)
    assert isinstance(crowd(2, lambda among: choose("auto", 1, (), among))[0], Pmap)


def test_processes_that_cannot_run_as_one_are_refused():
    for error in crowd(2, lambda among: choose("jit", None, (), among)):
        assert str(error) == "parallel=jit runs on one device, not 2: use pmap or auto"
    for error in crowd(2, lambda among: choose("pmap", 4 + among.index, (), among)):
        words = "processes need equally many devices: 4 in process 0, 5 in process 1"
        assert str(error) == words
    for error in crowd(2, lambda among: forms("pmap", None, sample_devices=2, processes=among)):
        assert "sample_devices and sample_mesh are for one process" in str(error)


def double(params, shared, rows, more):
    return {"sum": rows * params["scale"] + shared + more.sum(1), "same": more}


def test_rows_are_dealt_in_order_and_come_back_so():
    params = {"scale": jnp.float32(3)}
    rows, more = np.arange(8, dtype=np.float32), np.arange(16, dtype=np.float32).reshape(8, 2)
    expected = {"sum": rows * 3 + 5 + more.sum(1), "same": more}
    for form in (Jit(), Pmap(1), Pmap(4)):
        made = form.rows(double, dealt=2)
        out = made(form.place(params), np.float32(5), rows, more)
        toy.assert_same_tree(jax.device_get(out), expected)


def test_processes_compute_their_shares_and_have_all_rows():
    params, there = {"scale": jnp.float32(3)}, Pmap(2)
    rows, more = np.arange(8, dtype=np.float32), np.arange(16, dtype=np.float32).reshape(8, 2)
    computed = []

    def work(among):
        form = there if among is None else Pmap(2, among)
        made = form.rows(lambda *args: computed.append(args) or double(*args), dealt=2)
        return jax.device_get(made(form.place(params), np.float32(5), rows, more))

    expected = work(None)
    for found in crowd(2, work):
        toy.assert_same_tree(found, expected)
    assert sorted(rows.shape for _, _, rows, _ in computed) == [(2,), (2,), (4,)]


def test_what_is_replicated_is_on_every_device_and_costs_no_second_compilation():
    tree = {"a": jnp.arange(3.0), "key": jax.random.key(3)}
    form = Pmap(3)
    spread = form.place(tree)
    assert spread["a"].shape == (3, 3)
    assert spread["a"].sharding.device_set == set(jax.local_devices()[:3])
    np.testing.assert_array_equal(form.single(spread)["a"], tree["a"])
    assert form.single(spread)["key"] == tree["key"]
    with toy.compilations() as count:
        Pmap(3).place(jax.tree.map(lambda x: x, tree))
        assert count() == 0


def test_a_step_sums_over_devices_and_donates_its_state():
    def update(state, given, trajectories, prepared, rows, layout):
        return state + given + jax.lax.psum((rows * layout).sum(), "data") + trajectories, prepared

    form = Pmap(4)
    state, given = form.place((jnp.float32(1), jnp.float32(100)))
    after, info = form.step(update)(
        state, given, np.float32(10), np.float32(7), np.arange(8), np.full(8, 2)
    )
    assert after.tolist() == [167.0] * 4
    assert info.tolist() == 7
    assert state.is_deleted()
    assert not given.is_deleted()
