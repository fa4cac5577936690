"""The forms of running: which is chosen, and what placing and dealing do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.errors import PoloptError
from polopt.train.parallel import Jit, Pmap, choose
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
