"""Process rewards against literals, and PRIME against a loop like its authors'."""

import dataclasses

import numpy as np

from polopt import Trajectories, add, chain
from polopt.reward import (
    batch_whiten,
    implicit_process_reward,
    largest_return_scale,
    leave_one_out_baseline,
    outcome_return,
    reward_to_go,
    token_leave_one_out,
)
from polopt.testing import check_laws, random_trajectories
from reward.handmade import COMPILED, method, near, run


def batch(rewards=((1.0, 3.0), (0.0,), (5.0,)), **columns):
    """A group of two and a group of one."""
    rewards = [list(r) for r in rewards]
    made = Trajectories.build([[7]] * 3, [[9] * len(r) for r in rewards], rewards, group=[0, 0, 2])
    return dataclasses.replace(made, columns={k: np.array(v) for k, v in columns.items()})


PRIME = add(
    chain(
        implicit_process_reward(0.05), largest_return_scale(), token_leave_one_out(), reward_to_go()
    ),
    chain(outcome_return(), leave_one_out_baseline()),
    weights=(5.0, 5.0),
)


def test_implicit_reward_is_a_log_ratio_without_the_last_token():
    prm = [[9.0, -1.0, -2.0], [9.0, -3.0, 9.0], [9.0, 0.0, 9.0]]
    ref = [[4.0, -2.0, -4.0], [4.0, -4.0, 4.0], [4.0, -1.0, 4.0]]
    on = batch(logp_prm=prm, logp_ref=ref)
    near(run(on, implicit_process_reward(0.5)).reward, [[0, 0.5, 0], [0, 0, 0], [0, 0, 0]])
    every = run(on, implicit_process_reward(0.5, last=True)).reward
    near(every, [[0, 0.5, 1], [0, 0.5, 0], [0, 0.5, 0]])


def test_tokens_are_compared_with_the_mean_token_of_the_others():
    """Row means 2 and 0: tokens 2·r − 2, in the mean 2 − 0 and 0 − 2."""
    reward = run(batch(), token_leave_one_out()).reward
    near(reward, [[0, 0, 4], [0, -2, 0], [0, 0, 0]])
    unscored = batch()
    unscored = dataclasses.replace(unscored, scored=np.array([True, False, True]))
    assert not np.any(run(unscored, token_leave_one_out()).reward)


def test_returns_are_scaled_by_the_largest_of_the_batch():
    on = batch(rewards=((1.0, -4.0), (0.5,), (8.0,)))
    on = dataclasses.replace(on, scored=np.array([True, True, False]))
    near(run(on, largest_return_scale(0.0)).reward[:2, 1:], [[0.25, -1], [0.125, 0]])


def prime_by_loop(on):
    """The credit before whitening, row by row and token by token, groups of more than one."""
    prm, ref = on.columns["logp_prm"], on.columns["logp_ref"]
    tokens = [np.flatnonzero(m) for m in on.action_mask]
    process = [0.05 * (prm[i, t] - ref[i, t]) for i, t in enumerate(tokens)]
    for r in process:
        r[-1:] = 0
    counted = [i for i, r in enumerate(process) if on.scored[i] and len(r)]
    largest = max(abs(process[i][s:].sum()) for i in counted for s in range(len(process[i])))
    process = [r / (largest + 1e-6) for r in process]
    out = np.zeros(on.tokens.shape)
    for i in np.flatnonzero(on.scored & (on.length > 0)):
        members = np.flatnonzero((on.group == on.group[i]) & on.scored)
        score = {j: sum(part[j].sum() for part in on.reward_parts.values()) for j in members}
        with_tokens = [j for j in members if len(process[j])]
        g, k = len(members), len(with_tokens)
        outcome = score[i] - sum(score[j] for j in members if j != i) / (g - 1) if g > 1 else 0.0
        token = np.zeros(len(process[i]))
        if k > 1:
            baseline = sum(process[j].mean() for j in with_tokens) / (k - 1)
            token = process[i] * k / (k - 1) - baseline
        out[i, tokens[i]] = 5 * np.cumsum(token[::-1])[::-1] + 5 * outcome
    return out


def test_prime_against_a_loop():
    on = random_trajectories(2, columns=("logp_prm", "logp_ref"))
    parts = {k: np.where(on.scored[:, None], v, 0) for k, v in on.reward_parts.items()}
    own = np.where(on.group < 0, -1, np.arange(len(on.group), dtype=np.int32))
    on = dataclasses.replace(on, episode=own, reward_parts=parts)
    counted = on.action_mask & on.scored[:, None]
    branches = [chain(*link.links) for link in PRIME.links]
    got = 5 * run(on, *branches[0].links).value + 5 * run(on, *branches[1].links).per_token()
    near(np.where(counted, got, 0), prime_by_loop(on))


def test_laws():
    check_laws(method(PRIME, batch_whiten()), laws=COMPILED)
