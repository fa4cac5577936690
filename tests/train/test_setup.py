"""From a configuration to the parts of a run: the stated scaling rule, and one-line errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polopt.algorithms import cispo, dapo, gspo, ppo, reinforce
from polopt.algorithms import grpo as make_grpo
from polopt.errors import PoloptError, UsageError
from polopt.rollout import Decoding
from polopt.train.config import TrainConfig
from polopt.train.policy import load_policy
from polopt.train.setup import (
    decoding_of,
    make_optimizer,
    reset,
    resolve,
    scale,
    versions,
    with_hyper,
)
from polopt.trajectory import Update


def sizes(method, **settings):
    config = TrainConfig(**settings)
    alg = scale(method, config)
    done = resolve(config, alg)
    assert (done.group_size, done.epochs, done.minibatches) == (
        alg.sampling.group_size,
        alg.update.epochs,
        alg.update.minibatches,
    )
    return done.prompts, done.group_size, done.epochs, done.minibatches


@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        # prompts, group, epochs, minibatches
        (make_grpo, {}, (32, 8, 1, 1)),  # the paper's group of 64
        (gspo, {}, (32, 8, 1, 4)),
        (cispo, {}, (32, 8, 1, 4)),  # the paper's 16 minibatches
        (ppo, {}, (256, 1, 1, 4)),
        (reinforce, {}, (256, 1, 1, 1)),
        (cispo, {"prompts": 2}, (2, 8, 1, 2)),  # no more optimiser steps than groups
        (cispo, {"group_size": 128}, (2, 128, 1, 2)),
        (make_grpo, {"group_size": 300}, (1, 300, 1, 1)),
        (ppo, {"epochs": 9, "minibatches": 16}, (256, 1, 9, 16)),  # what is asked for wins
        (make_grpo().replace(update=Update(epochs=5, minibatches=5)), {}, (32, 8, 4, 4)),
    ],
)
def test_the_batch_of_a_run(method, settings, expected):
    assert sizes(method, **settings) == expected


def test_scaling_twice_changes_nothing():
    config = TrainConfig(set=("clip.low=0.1",))
    once = scale(dapo, config)
    assert scale(once, resolve(config, once)) == once


def test_lengths_of_a_factory_are_those_of_the_run():
    alg = scale(dapo, TrainConfig(max_new_tokens=40))
    penalty = dict(zip(alg.reward.names, alg.reward.links, strict=True))["overlong_soft_penalty"]
    assert penalty.hyper._asdict()["max_length"] == 40
    assert penalty.hyper._asdict()["cache"] == 8


def test_more_optimiser_steps_than_groups_are_refused():
    with pytest.raises(UsageError, match="minibatches=4 is more than the 3 groups"):
        scale(make_grpo, TrainConfig(prompts=3, minibatches=4))


def test_numbers_are_set_by_dotted_name():
    alg = with_hyper(make_grpo(), {"clip.low": 0.1, "clip.high": 0.3, "kl_penalty.coefficient": 0})
    links = dict(zip(alg.trajectory.names, alg.trajectory.links, strict=True))
    assert links["clip"].hyper == (0.1, 0.3)
    assert links["kl_penalty"].hyper == (0.0,)
    scaled = with_hyper(alg, {"group_std_scale.ddof": 0})
    assert dict(scaled.reward.links[2].options)["ddof"] == 0
    assert scaled.trajectory == alg.trajectory


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clp.low": 0.1}, "has no link 'clp'; did you mean 'clip'?"),
        ({"clip.lo": 0.1}, "clip has no number 'lo'; did you mean 'low'? (it has low, high)"),
        ({"low": 0.1}, "has no link ''"),
        ({"group_std_scale.ddof": 0.5}, "group_std_scale.ddof is a whole number, not 0.5"),
        ({"kl_penalty.to": 1}, "kl_penalty has no number 'to'"),
    ],
)
def test_a_wrong_name_is_one_line(values, message):
    with pytest.raises(UsageError) as error:
        with_hyper(make_grpo(), values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_factory_must_make_an_algorithm():
    with pytest.raises(PoloptError, match="gives a int, not a polopt"):
        scale(lambda: 3, TrainConfig())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.3, 0.6, 0.9, 0.9, 0.9, 0.9, 0.9]),
        ("linear", [0.3, 0.6, 0.9, 0.675, 0.45, 0.225, 0.0]),
        ("cosine", [0.3, 0.6, *(0.9 * (1 + np.cos(np.pi * k / 4)) / 2 for k in range(5))]),
    ],
)
def test_the_learning_rate(schedule, expected):
    config = TrainConfig(learning_rate=0.9, warmup=2, schedule=schedule)
    rate = make_optimizer(config, 6)[1]
    np.testing.assert_allclose([rate(k) for k in range(7)], expected, atol=1e-6)


def test_the_learning_rate_without_warm_up_and_in_a_short_run():
    rate = make_optimizer(TrainConfig(learning_rate=0.5, warmup=0), 3)[1]
    np.testing.assert_allclose([rate(k) for k in range(3)], 0.5)
    # A constant schedule does not depend on the number of steps: a run may be lengthened.
    config = TrainConfig(learning_rate=0.6, warmup=5)
    short, long = make_optimizer(config, 2)[1], make_optimizer(config, 100)[1]
    np.testing.assert_allclose([short(k) for k in range(2)], [long(k) for k in range(2)])


def test_a_gradient_is_clipped_by_its_global_norm():
    optimizer, _ = make_optimizer(TrainConfig(max_grad_norm=1.0), 10)
    params = {"a": jnp.zeros(2)}
    state = optimizer.update({"a": jnp.array([30.0, 40.0])}, optimizer.init(params), params)[1]
    moments = jax.tree.leaves(optax.tree.get(state, "mu"))
    np.testing.assert_allclose(moments[0], 0.1 * np.array([0.6, 0.8]), rtol=1e-6)


def test_a_reset_keeps_the_place_in_the_schedule():
    optimizer, _ = make_optimizer(TrainConfig(), 10)
    params = {"a": jnp.ones(2)}
    fresh = old = optimizer.init(params)
    for _ in range(3):
        old = optimizer.update(params, old, params)[1]
    new = reset(old, fresh)
    counts = optax.tree.get_all_with_path(new, "count")
    assert sorted(int(count) for _, count in counts) == [0, 3]  # Adam's and the schedule's
    assert not any(x.any() for x in jax.tree.leaves(optax.tree.get(new, "mu")))


def test_how_tokens_are_drawn():
    config = TrainConfig(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1)
    assert decoding_of(config) == Decoding(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1)
    assert decoding_of(TrainConfig()) == Decoding()


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(PoloptError, match=r"no model 'bse': accepted .*; did you mean 'base'\?"):
        load_policy("bse")
    with pytest.raises(PoloptError, match="accepted are base"):
        load_policy(str(tmp_path))


def test_versions_name_what_decides_the_numbers():
    found = versions()
    assert found["jax"] == jax.__version__
    assert found["device"] == "cpu"
