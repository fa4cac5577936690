"""Identities between methods: the numbers are those of the catalogue's list."""

import dataclasses

import jax
import numpy as np
import pytest

from polopt import algorithms, chain, loss, prepare
from polopt.aggregate import constant_length, sequence_mean, sequence_sum_mean, token_mean
from polopt.reward import gae, group_mean_baseline, leave_one_out_baseline, outcome_return
from polopt.testing import Case, measure, random_outputs, random_trajectories
from polopt.trajectory import clip, detach_weight, policy_gradient, token_ratio
from polopt.transform import Chain

A = algorithms


def gradient(alg, batch, outputs):
    return np.asarray(measure(Case(alg=alg, trajectories=batch, outputs=outputs)).gradient.logp)


def near(got, expected, **kw):
    scale = np.max(np.abs(expected))
    assert scale > 0
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * scale, **kw)


@pytest.fixture(scope="module")
def batch():
    return random_trajectories(11)


def test_a_clip_at_ratio_one_is_reinforce(batch):
    """1: and so it is for every aggregation."""
    outputs = dataclasses.replace(random_outputs(0, batch), logp=batch.columns["logp_old"])
    for aggregate in (token_mean(), sequence_mean(), constant_length(9.0)):
        clipped = A.dr_grpo().replace(aggregate=aggregate)
        plain = clipped.replace(trajectory=chain(policy_gradient()))
        near(gradient(clipped, batch, outputs), gradient(plain, batch, outputs))


def test_rloo_is_dr_grpo_with_a_larger_credit(batch):
    """2: by G/(G−1), G the scored members, an episode of several rows counted once."""
    reward = [
        chain(outcome_return(), piece()) for piece in (group_mean_baseline, leave_one_out_baseline)
    ]
    mean, others = (
        np.asarray(prepare(A.reinforce().replace(reward=r), batch)[0].credit) for r in reward
    )
    for g in set(batch.group.tolist()) - {-1}:
        rows = (batch.group == g) & batch.scored
        size = len(set(batch.episode[rows].tolist()))
        if size > 1 and np.any(mean[rows]):
            near(others[rows], size / (size - 1) * mean[rows])


def test_remax_with_the_group_mean_as_greedy_return_is_dr_grpo(batch):
    """3"""
    batch = dataclasses.replace(
        batch,
        episode=np.where(batch.group < 0, -1, np.arange(len(batch.group))),
        scored=batch.group >= 0,
    )
    raw = np.asarray(prepare(A.reinforce(), batch)[0].credit).max(axis=1)
    total = sum(batch.reward_parts.values()).sum(axis=1)
    mean = np.array([total[batch.group == g].mean() if g >= 0 else 0 for g in batch.group])
    assert raw.any()
    greedy = dataclasses.replace(
        batch, columns={**batch.columns, "greedy_return": mean.astype(np.float32)}
    )
    remax = A.remax().replace(
        reward=Chain(
            ("outcome_return", "remax_baseline"), (outcome_return(), A.remax().reward.links[-1])
        )
    )
    near(prepare(remax, greedy)[0].credit, prepare(A.dr_grpo(), batch)[0].credit)


def test_cispo_without_bounds_is_the_unclipped_surrogate(batch):
    """7"""
    outputs = random_outputs(2, batch)
    free = A.cispo().replace(detach_weight=detach_weight())
    near(
        gradient(free, batch, outputs),
        gradient(free.replace(trajectory=chain(token_ratio(), clip(1e6, 1e6))), batch, outputs),
    )


def test_gae_without_decay_is_the_return_to_go_less_the_value(batch):
    """15"""
    decayless = A.a2c().replace(gae=gae(1.0, 1.0))
    advantage = np.asarray(prepare(decayless, batch)[0].credit)
    to_go = np.asarray(prepare(A.remax(kl=0.0).replace(remax_baseline=chain()), batch)[0].credit)
    counted = batch.action_mask & batch.scored[:, None]
    near(advantage[counted], (to_go - batch.columns["value"])[counted])


def test_the_reward_kl_of_rloo_is_a_k1_gradient(batch):
    """With no reward but the penalty, −β·k1 of the row is what each token's score is weighed by."""
    quiet = dataclasses.replace(
        batch,
        reward_parts={k: 0 * v for k, v in batch.reward_parts.items()},
        episode=np.where(batch.group < 0, -1, np.arange(len(batch.group))).astype(np.int32),
    )
    alg = A.rloo(kl=0.5).replace(leave_one_out_baseline=chain())
    d = (batch.columns["logp_old"] - batch.columns["logp_ref"]) * batch.action_mask
    expected = -0.5 * d.sum(axis=1, keepdims=True) * batch.action_mask * batch.scored[:, None]
    near(prepare(alg, quiet)[0].credit, expected)


def test_equal_rows_make_the_mean_of_tokens_the_mean_of_rows():
    """18: gspo and grpo alike may then be weighed either way."""
    batch = random_trajectories(12)
    mask = np.zeros_like(batch.action_mask)
    mask[:, 2:5] = batch.group[:, None] >= 0
    length = np.where(batch.group >= 0, 10, 0).astype(np.int32)
    batch = dataclasses.replace(
        batch, action_mask=mask, length=length, turn=np.where(mask, 0, -1).astype(np.int32)
    )
    outputs = random_outputs(3, batch)
    alg = A.dr_grpo()
    rows = gradient(alg.replace(aggregate=sequence_mean()), batch, outputs)
    near(gradient(alg.replace(aggregate=token_mean()), batch, outputs), rows)
    near(gradient(alg.replace(aggregate=sequence_sum_mean()), batch, outputs), 3 * rows)
    near(gradient(alg.replace(aggregate=constant_length(3.0)), batch, outputs), rows)


def test_the_loss_of_a_slice_is_linear_in_the_credit(batch):
    outputs = random_outputs(4, batch)
    alg = A.reinforce()
    prepared, _ = prepare(alg, batch)
    twice = dataclasses.replace(
        prepared, rows=dataclasses.replace(prepared.rows, credit=2 * prepared.rows.credit)
    )
    slope = [jax.grad(lambda o, p=p: loss(alg, o, p)[0])(outputs).logp for p in (prepared, twice)]
    near(slope[1], 2 * np.asarray(slope[0]))
