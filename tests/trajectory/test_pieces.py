"""The trajectory side against literals worked out by hand, and against rlax."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import rlax
from single import objectives

from polopt import PolicyOutputs, PoloptError, Trajectories, chain, divergence
from polopt.aggregate import sequence_mean
from polopt.algorithm import Algorithm
from polopt.compose import objective, prepare
from polopt.reward import gae, outcome_return
from polopt.trajectory import (
    clip,
    detach_weight,
    dual_clip,
    entropy_bonus,
    kl_penalty,
    policy_gradient,
    sequence_ratio,
    token_ratio,
    value_loss,
)

close = np.testing.assert_allclose
RATIO = np.array([1.5, 0.5, 0.5, 1.5, 5.0, 1.25])
CREDIT = np.array([2.0, -1.0, 1.0, -1.0, -1.0, 1.0])
LOG = np.log(RATIO)


@jax.jit
def value_and_gradient(alg, batch, outputs):
    return jax.value_and_grad(lambda o: objective(alg)(o, batch), has_aux=True)(outputs)


def near(got, expected):
    close(got, expected, rtol=1e-6, atol=1e-6)


def test_clip():
    terms, gradient, info = objectives(token_ratio(), clip(0.2, 0.2), log_ratio=LOG, credit=CREDIT)
    near(terms["policy"], [2.4, -0.8, 0.5, -1.5, -5.0, 1.2])
    # The loss is minus the objective; d ratio / d logp = ratio; none where the clip holds.
    near(gradient["logp"], [0, 0, -0.5, 1.5, 5.0, 0])
    near(info["policy/clip_fraction"].value(), 3 / 6)
    near(info["policy/ratio_max"].value(), 5.0)


def test_clip_higher_lets_a_rising_token_rise():
    terms, gradient, _ = objectives(token_ratio(), clip(0.2, 0.28), log_ratio=LOG, credit=CREDIT)
    near(terms["policy"], [2.56, -0.8, 0.5, -1.5, -5.0, 1.25])
    near(gradient["logp"], [0, 0, -0.5, 1.5, 5.0, -1.25])


def test_dual_clip_bounds_negative_credit_only():
    terms, gradient, _ = objectives(
        token_ratio(), clip(), dual_clip(3.0), log_ratio=LOG, credit=CREDIT
    )
    near(terms["policy"], [2.4, -0.8, 0.5, -1.5, -3.0, 1.2])
    near(gradient["logp"], [0, 0, -0.5, 1.5, 0, 0])


def test_the_clipped_surrogate_is_that_of_rlax():
    rng = np.random.default_rng(0)
    log, credit = 0.4 * rng.normal(size=6), rng.normal(size=6)
    terms, gradient, _ = objectives(token_ratio(), clip(0.2, 0.2), log_ratio=log, credit=credit)

    def peer(log_ratio):
        return rlax.clipped_surrogate_pg_loss(jnp.exp(log_ratio), jnp.asarray(credit), 0.2)

    value, slope = jax.value_and_grad(peer)(jnp.asarray(log, jnp.float32))
    near(-np.mean(terms["policy"]), value)
    near(gradient["logp"], 6 * slope)  # rlax takes the mean, this is the sum


def test_policy_gradient_has_no_ratio():
    terms, gradient, _ = objectives(policy_gradient(), log_ratio=LOG, credit=CREDIT)
    near(terms["policy"], CREDIT * (LOG - 1))
    near(gradient["logp"], -CREDIT)


def test_detach_weight_bounds_the_weight_and_keeps_every_gradient():
    terms, gradient, info = objectives(
        token_ratio(), detach_weight(low=0.2, high=0.28), log_ratio=LOG, credit=CREDIT
    )
    weight = np.array([1.28, 0.8, 0.8, 1.28, 1.28, 1.25])
    near(terms["policy"], weight * CREDIT * (LOG - 1))
    near(gradient["logp"], -weight * CREDIT)
    near(info["policy/clip_fraction"].value(), 5 / 6)


def test_an_unbounded_detached_weight_is_the_unclipped_surrogate():
    """Identity 7 of the catalogue."""
    _, free, _ = objectives(token_ratio(), detach_weight(), log_ratio=LOG, credit=CREDIT)
    near(free["logp"], -RATIO * CREDIT)


def test_log_ratios_beyond_twenty_are_held_without_gradient():
    terms, gradient, _ = objectives(
        token_ratio(),
        clip(0.2, 0.2),
        log_ratio=np.array([25.0, -25.0]),
        credit=np.array([-1.0, 1.0]),
    )
    close(terms["policy"], [-math.exp(20), math.exp(-20)], rtol=1e-5)
    near(gradient["logp"], [0, 0])


@pytest.mark.parametrize(
    ("estimator", "value", "slope"),
    [
        (divergence.k1, lambda d: d, lambda d: np.ones_like(d)),
        (divergence.k2, lambda d: d**2 / 2, lambda d: d),
        (divergence.k3, lambda d: np.exp(-d) - 1 + d, lambda d: 1 - np.exp(-d)),
        (divergence.absolute, np.abs, np.sign),
    ],
)
def test_kl_penalty(estimator, value, slope):
    d = np.array([0.5, -0.5, 1.0, -2.0])
    terms, gradient, info = objectives(
        policy_gradient(),
        kl_penalty(estimator, 0.1),
        log_ratio=d,
        credit=np.zeros(4),
        columns={"logp_ref": np.full(4, -1.0)},
    )
    near(terms["kl"], -0.1 * value(d))
    near(gradient["logp"], 0.1 * slope(d))
    near(info["policy/kl_ref"].value(), np.mean(value(d)))


def test_entropy_bonus_raises_entropy():
    entropy = np.array([0.3, 0.7])
    terms, gradient, info = objectives(
        policy_gradient(),
        entropy_bonus(0.01),
        log_ratio=np.zeros(2),
        credit=np.ones(2),
        outputs={"entropy": entropy},
    )
    near(terms["entropy"], 0.01 * entropy)
    near(gradient["entropy"], [-0.01, -0.01])
    near(info["policy/entropy"].value(), 0.5)


def test_value_loss_takes_the_larger_error():
    """Old value 0, return 1: a value that ran to 0.9 is judged where the clip holds it."""
    batch = Trajectories.build(
        [[1]] * 3,
        [[2]] * 3,
        [1.0, 1.0, None],
        group=3,
        columns={"value": np.zeros((3, 2), np.float32)},
    )
    alg = Algorithm(
        reward=chain(gae(1.0, 1.0)), trajectory=chain(policy_gradient(), value_loss(2.0, 0.2))
    )
    value = np.array([[0, 0.9], [0, 0.1], [0, 0.5]], np.float32)
    outputs = PolicyOutputs(logp=np.zeros((3, 2), np.float32), columns={"value": value})
    (total, info), gradient = value_and_gradient(alg, batch, outputs)
    # The row without a score has no return: no error, but its token is in the denominator.
    near(total, 2.0 * 0.5 * (0.8**2 + 0.9**2) / 3)
    near(gradient.columns["value"][:, 1], [0, 2.0 * (0.1 - 1) / 3, 0])
    near(info["critic/error"].value(), (0.8**2 + 0.9**2) / 2)


ROWS = Trajectories.build(
    [[1]] * 2,
    [[2, 3, 4, 5], [6, 7]],
    [1.0, -1.0],
    group=2,
    action_mask=[[True, False, True, True], [True, True]],
    columns={"logp_old": np.zeros((2, 5), np.float32)},
)
MOVED = np.array([[9, 0.3, 9, -0.1, 0.4], [9, -0.6, 0.2, 9, 9]], np.float32)


def test_sequence_ratio_is_the_geometric_mean_over_actions():
    alg = Algorithm(
        reward=chain(outcome_return()),
        trajectory=chain(sequence_ratio(), clip(9, 9)),
        aggregate=sequence_mean(),
    )
    (total, info), gradient = value_and_gradient(alg, ROWS, PolicyOutputs(logp=MOVED))
    s = np.exp([0.6 / 3, -0.4 / 2])
    near(total, -(s[0] - s[1]) / 2)
    near(gradient.logp, [[0, -s[0] / 6, 0, -s[0] / 6, -s[0] / 6], [0, s[1] / 4, s[1] / 4, 0, 0]])
    near(info["policy/ratio_max"].value(), s[0])


def test_the_gradient_of_one_token_is_its_own_under_token_ratios():
    alg = Algorithm(
        reward=chain(outcome_return()),
        trajectory=chain(token_ratio(), clip(9, 9)),
        aggregate=sequence_mean(),
    )
    gradient = value_and_gradient(alg, ROWS, PolicyOutputs(logp=MOVED))[1].logp
    expected = -np.exp(MOVED) * np.array([[0, 1, 0, 1, 1], [0, 1, 1, 0, 0]])
    near(gradient, expected * np.array([[1 / 6], [-1 / 4]]))


def test_a_term_may_have_an_aggregation_of_its_own():
    alg = Algorithm(
        reward=chain(outcome_return()),
        trajectory=chain(policy_gradient(), entropy_bonus(1.0, aggregate=sequence_mean())),
    )
    weights = prepare(alg, ROWS)[0].rows.weights
    near(weights["policy"][0], [0, 1 / 5, 0, 1 / 5, 1 / 5])
    near(weights["entropy"][0], [0, 1 / 6, 0, 1 / 6, 1 / 6])


def test_a_clip_without_a_ratio_is_refused():
    with pytest.raises(PoloptError, match="clip reads ratio, but what stands before"):
        Algorithm(reward=chain(outcome_return()), trajectory=chain(clip()))
