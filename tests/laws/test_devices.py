"""Law 1 over devices: by pmap on 1, 2 and 8, summed once outside the gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.algorithm import coupling, init, needs, wants
from polopt.compose import RECORDED, loss, prepare
from polopt.testing import random_outputs, random_trajectories
from polopt.types import PolicyOutputs

from . import toys
from .table import FACTORIES

N, T, FEATURES, VOCAB = 16, 10, 3, 7
COUPLED = {
    "none": FACTORIES["grpo"],
    "sequence": FACTORIES["gspo"],
    "group": toys.regression,
    "batch": toys.covariance,
}


def setup(alg, seed=0):
    """Rows sorted so that groups lie whole in eighths, two rows each, and a model to pull at."""
    rng = np.random.default_rng(seed)
    columns = sorted({"logp_old", *needs(alg)} - {*RECORDED, "returns"})
    batch = random_trajectories(seed, rows=N, width=T, columns=columns)
    group = np.where(batch.length > 0, np.arange(N) // 2, -1).astype(np.int32)
    episode = np.where(batch.length > 0, np.arange(N), -1).astype(np.int32)
    batch = dataclasses.replace(batch, group=group, episode=episode, prompt=group)
    features = rng.normal(size=(N, T, FEATURES)).astype(np.float32)
    others = random_outputs(seed, batch, wants(alg)).columns
    tokens = rng.integers(0, VOCAB, (N, T))
    params = rng.normal(size=(FEATURES, VOCAB)).astype(np.float32)
    return batch, (features, tokens, others), jnp.asarray(params)


def prepared_of(alg, batch):
    made, _ = prepare(alg, batch, state=init(alg, prompts=N), key=jax.random.key(0))
    return jax.tree.map(np.asarray, dataclasses.replace(made, shared={**made.shared, "key": None}))


def outputs_of(params, inputs):
    """A linear softmax policy: `logp` depends on the parameters, other columns do not."""
    features, tokens, others = inputs
    logp = jnp.take_along_axis(jax.nn.log_softmax(features @ params), tokens[..., None], axis=-1)
    return PolicyOutputs(logp=logp[..., 0], columns=others)


@jax.jit
def gradients(alg, params, inputs, prepared):
    """Of the loss with respect to logp, and pulled through the model."""
    outputs, pull = jax.vjp(lambda p: outputs_of(p, inputs), params)
    (value, _), cotangent = jax.value_and_grad(lambda o: loss(alg, o, prepared), has_aux=True)(
        outputs
    )
    return value, cotangent.logp, pull(cotangent)[0]


def sharded(tree, devices):
    return jax.tree.map(lambda x: np.reshape(x, (devices, N // devices, *x.shape[1:])), tree)


def sharded_rows(rows, devices):
    """The same of prepared rows, whose groups are numbered anew in each block, as `take` does."""
    made = sharded(rows, devices)
    first = np.arange(devices)[:, None] * (N // devices // 2)
    return dataclasses.replace(made, group=jnp.where(made.group < 0, -1, made.group - first))


def on_devices(alg, params, inputs, prepared, devices):
    """The loss and model gradient summed over devices, and the cotangent put together."""

    def own(inputs, rows):
        value, cotangent, gradient = gradients(
            alg, params, inputs, dataclasses.replace(prepared, rows=rows)
        )
        return jax.lax.psum((value, gradient), "devices"), cotangent

    step = jax.pmap(own, axis_name="devices", devices=jax.devices()[:devices])
    rows = sharded_rows(prepared.rows, devices)
    (value, gradient), cotangent = step(sharded(inputs, devices), rows)
    return value[0], np.reshape(cotangent, (N, T)), gradient[0]


def assert_near(got, expected, tolerance):
    scale = float(np.max(np.abs(expected)))
    assert scale > 0, "nothing to compare"
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("scope", ["none", "sequence", "group"])
def test_devices_sum_to_the_whole(scope, devices):
    alg = COUPLED[scope]()
    assert coupling(alg) == scope
    batch, inputs, params = setup(alg)
    prepared = prepared_of(alg, batch)
    value, cotangent, gradient = gradients(alg, params, inputs, prepared)
    got = on_devices(alg, params, inputs, prepared, devices)
    assert_near(got[0], value, 1e-6)
    assert_near(got[1], cotangent, 1e-6)
    assert_near(got[2], gradient, 1e-5)


def test_a_method_that_couples_the_batch_is_exact_in_cotangent_form():
    alg = COUPLED["batch"]()
    batch, inputs, params = setup(alg)
    prepared = prepared_of(alg, batch)
    _, cotangent, gradient = gradients(alg, params, inputs, prepared)

    def pull(inputs, cotangent):
        _, back = jax.vjp(lambda p: outputs_of(p, inputs).logp, params)
        return jax.lax.psum(back(cotangent)[0], "devices")

    got = jax.pmap(pull, axis_name="devices")(sharded(inputs, 8), sharded(cotangent, 8))[0]
    assert_near(got, gradient, 1e-5)
    alone = on_devices(alg, params, inputs, prepared, 8)[2]
    assert np.max(np.abs(alone - gradient)) > 1e-3 * np.max(np.abs(gradient))


# Rows that are coupled through the whole batch need the cotangent form, gkd's gradient is not of
# logp, and two answers always agree as much with each other (empo): these three are pulled through
# a model in tests/train/test_update.py.
SEPARATE = [
    key for key in FACTORIES if coupling(FACTORIES[key]()) != "batch" and key not in ("gkd", "empo")
]


@pytest.mark.slow
@pytest.mark.parametrize("key", SEPARATE)
def test_every_method_sums_over_eight_devices(key):
    """The same by vmap over eight named shards, which compiles in a third of the time."""
    alg = FACTORIES[key]()
    batch, inputs, params = setup(alg, seed=1)
    prepared = prepared_of(alg, batch)

    @jax.jit
    def both(inputs, rows):
        def own(inputs, rows):
            made = gradients(alg, params, inputs, dataclasses.replace(prepared, rows=rows))
            return jax.lax.psum(made[::2], "devices"), made[1]

        summed = jax.vmap(own, axis_name="devices")(sharded(inputs, 8), sharded_rows(rows, 8))
        return gradients(alg, params, inputs, dataclasses.replace(prepared, rows=rows)), summed

    whole, ((value, gradient), cotangent) = both(inputs, prepared.rows)
    assert_near(np.reshape(cotangent, (N, T)), whole[1], 1e-6)
    assert_near(gradient[0], whole[2], 1e-5)
    mass = np.abs(whole[1]).sum()  # a loss may cancel
    assert abs(value[0] - whole[0]) <= 1e-6 * max(mass, abs(whole[0]))
