"""Trackers, votes, trees and turns again, each derived in another way than in its module."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from . import agreement, methods, pieces, trackers, trees, turns
from .batch import Batch, random_batch, random_logp
from .handmade import make, outcomes

SEEDS = range(6)


def rewarded(batch: Batch, outcome: np.ndarray) -> Batch:
    """The batch with each row's outcome on its last action, or on its prompt."""
    reward = np.zeros(batch.mask.shape)
    for n, value in enumerate(outcome):
        reward[n, (batch.actions(n) or [0])[-1]] = value
    return replace(batch, reward=reward)


def graded(seed: int) -> Batch:
    """A random batch whose outcomes lie in [0, 1]."""
    batch = random_batch(seed)
    return rewarded(batch, np.random.default_rng(seed).uniform(size=len(batch.group)))


# ------------------------------------------------------------------ SPO


def test_spo_after_many_batches_without_forgetting_is_a_count():
    tracker = trackers.initial_tracker([[]])
    for values in ([1.0, 0.0], [1.0], [0.25]):
        batch = outcomes(values, [0] * len(values))
        tracker = trackers.updated_tracker(batch, tracker, lowest=1.0, highest=1.0)
    assert (tracker["alpha"][0], tracker["beta"][0]) == (0.5 + 2.25, 0.5 + 1.75)


def test_spo_forgets_once_however_many_rows_a_prompt_has():
    batch = outcomes([1, 1, 0], [0, 0, 0], drift=[0.006] * 3)
    after = trackers.updated_tracker(batch, {"alpha": np.array([4.0]), "beta": np.array([2.0])})
    kept = 2.0**-0.1
    np.testing.assert_allclose([after["alpha"][0], after["beta"][0]], [4 * kept + 2, 2 * kept + 1])


# ------------------------------------------------------------------ PRIME


@pytest.mark.parametrize("seed", SEEDS)
def test_the_sum_to_go_of_prime_starts_with_the_whole_row(seed):
    """At a row's first action: `L` times the process credit's mean plus the outcome's part."""
    batch = random_batch(seed)
    reward = trackers.implicit_reward(batch, 0.5, normalise=False)
    outcome = pieces.leave_one_out_baseline(batch, pieces.outcome_return(batch))
    credit = trackers.prime_credit(batch, 0.5, (2.0, 3.0), normalise=False)
    for n in np.flatnonzero(batch.scored):
        others = [j for j in batch.members(batch.group[n]) if batch.actions(j) and j != n]
        if not batch.actions(n) or not others:
            continue
        size, length = len(others) + 1, int(batch.length[n])
        own = reward[n].sum()
        means = sum(reward[j].sum() / batch.length[j] for j in others) + own / length
        process = (size * own - length * means) / (size - 1)
        expected = 2.0 * process + 3.0 * outcome[n]
        assert credit[n, batch.actions(n)[0]] == pytest.approx(expected)


def test_a_process_model_equal_to_the_reference_leaves_the_outcome():
    batch = random_batch(3)
    batch = replace(batch, logp_prm=batch.logp_ref)
    loo = pieces.leave_one_out_baseline(batch, pieces.outcome_return(batch))
    expected = pieces.whiten_tokens(batch, pieces.on_tokens(batch, 5.0 * loo))
    oracle = trackers.prime(batch)
    np.testing.assert_allclose(oracle.credit, expected, atol=1e-12)
    logp = batch.logp_old
    gap = oracle.loss(logp, logp_prm=batch.logp_ref) - oracle.loss(logp)
    rows = batch.mask.any(axis=1)  # log 2 for each scored row, over all rows with an action
    assert gap == pytest.approx(math.log(2.0) * (rows & batch.scored).sum() / rows.sum())


# ------------------------------------------------------------------ agreement


@pytest.mark.parametrize("key", ["ttrl", "empo"])
def test_agreement_methods_are_grpo_with_another_reward(key):
    method, reward = {
        "ttrl": (agreement.ttrl, agreement.majority_reward),
        "empo": (agreement.empo, agreement.cluster_probability),
    }[key]
    batch = random_batch(6)
    logp = random_logp(batch, seed=1)
    expected = methods.grpo(rewarded(batch, reward(batch)), beta=0.04)
    got = method(batch, beta=0.04)
    np.testing.assert_allclose(got.credit, expected.credit, atol=1e-12)
    assert got.loss(logp) == pytest.approx(expected.loss(logp))


def test_a_strict_majority_does_not_depend_on_the_names_of_answers():
    names = np.array([7, 2, 9, 4])
    for seed in SEEDS:
        answer = np.random.default_rng(seed).permutation([0, 0, 0, 1, 2, 3, 3])
        batch = outcomes([0] * 7, [0] * 7, answer=answer)
        renamed = replace(batch, answer=names[answer])
        for reward in (agreement.majority_reward, agreement.cluster_probability):
            np.testing.assert_array_equal(reward(batch), reward(renamed))


# ------------------------------------------------------------------ trees


def nodes(batch: Batch, n: int) -> list[int]:
    return list(dict.fromkeys(int(batch.node[n, t]) for t in batch.actions(n)))


def linked_values(batch: Batch, g: int, outcome: np.ndarray) -> tuple[dict, dict]:
    """{node: value} and {node: parent} of one group, from links between nodes; root None."""
    parent, ends = {}, {}
    for n in batch.members(g):
        at = None
        for label in nodes(batch, n):
            parent[label], at = at, label
        ends.setdefault(at, []).append(outcome[n])

    def value(at):
        below = [value(child) for child, up in parent.items() if up == at]
        return np.mean(below + ends.get(at, []))

    return {at: value(at) for at in [None, *parent]}, parent


@pytest.mark.parametrize("seed", SEEDS)
def test_sibling_credit_from_linked_nodes(seed):
    batch = graded(seed)
    outcome = pieces.outcome_return(batch)
    got = trees.sibling_credit(batch, outcome)
    for g in set(batch.group[batch.scored]):
        value, parent = linked_values(batch, g, outcome)
        stops = {(nodes(batch, n) or [None])[-1] for n in batch.members(g)}
        for n in batch.members(g):
            for t in batch.actions(n):
                label = int(batch.node[n, t])
                level = [value[at] for at, up in parent.items() if up == parent[label]]
                if parent[label] in stops:
                    continue  # whether a row that ends there is a sibling is left open
                mu = np.mean(level)
                sigma = math.sqrt(mu * (1 - mu))
                spread = len(level) > 1 and max(level) > min(level)
                expected = (value[label] - mu) / (sigma + 1e-6) if spread else 0.0
                assert got[n, t] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_shares_count_each_token_of_a_node_once(seed):
    batch = random_batch(seed)
    shares = trees.shares(batch)
    for g in set(batch.group[batch.group >= 0]):
        rows = np.flatnonzero(batch.group == g)  # scored or not
        labels = {label for n in rows for label in nodes(batch, n)}
        for label in labels:
            own = [(batch.node[n] == label) & batch.mask[n] for n in rows]
            lengths = [mask.sum() for mask in own if mask.any()]
            total = sum(shares[n][mask].sum() for n, mask in zip(rows, own, strict=True))
            assert total == pytest.approx(np.mean(lengths))


@pytest.mark.parametrize("weighting", ["average", "size"])
def test_levels_of_one_shared_path_or_of_none_are_the_group(weighting):
    alike = make([".xx"] * 3, [[0, 0, v] for v in (1, 0, 0.5)], [0] * 3, node=[[-1, 4, 5]] * 3)
    apart = replace(alike, node=np.array([[-1, 2 * n, 2 * n + 1] for n in range(3)]))
    for batch in (alike, apart):
        got = trees.level_credit(batch, pieces.outcome_return(batch), weighting=weighting)
        np.testing.assert_allclose(got, [0.5, -0.5, 0], atol=1e-15)


@pytest.mark.parametrize("seed", SEEDS)
def test_hard_attribution_only_shares_out_what_soft_gives(seed):
    batch = random_batch(seed)
    hard = trees.arpo(batch, attribution="hard").credit
    soft = trees.arpo(batch).credit
    for g in set(batch.group[batch.scored]):
        rows = batch.members(g)
        for label in {label for n in rows for label in nodes(batch, n)}:
            at = [(n, np.flatnonzero(batch.node[n] == label)) for n in rows]
            at = [(n, where[0]) for n, where in at if len(where)]
            total = [sum(credit[spot] for spot in at) for credit in (hard, soft)]
            assert total[0] == pytest.approx(total[1], abs=1e-9)
            assert len({hard[spot] for spot in at}) == 1


# ------------------------------------------------------------------ turns


def test_a_single_state_and_turn_make_both_parts_of_gigpo_one():
    batch = outcomes([1, 0, 0.5], [0, 0, 0], anchor=[[-1, 3]] * 3)
    grpo = methods.grpo(batch).credit
    for w in (0.0, 1.0, 0.5):
        np.testing.assert_allclose(turns.gigpo(batch, step_weight=w).credit, (1 + w) * grpo)


@pytest.mark.parametrize("seed", SEEDS)
def test_turn_gae_with_lambda_one_is_the_discounted_return_less_the_critic(seed):
    batch = random_batch(seed)
    turn, targets = turns.turn_gae(batch, gamma=0.9, lam=1.0)
    both, returns = turns.two_level_gae(batch, gamma=1.0, lam=1.0, turn_gamma=0.9)
    for n in np.flatnonzero(batch.scored):
        rewards, spans = turns.turn_rewards(batch, n), turns.turns(batch, n)
        for k, tokens in enumerate(spans):
            after = [0.9**j * r for j, r in enumerate(rewards[k:])]
            total = sum(after) + 0.9 ** (len(spans) - k) * batch.bootstrap_value[n]
            expected = total - batch.value[n, tokens]
            np.testing.assert_allclose(turn[n, tokens], expected[0], atol=1e-12)
            np.testing.assert_allclose(both[n, tokens], expected, atol=1e-12)
            np.testing.assert_allclose(returns[n, tokens], total, atol=1e-12)
            assert targets[n, tokens[0]] == pytest.approx(total, abs=1e-12)


def test_the_ratio_of_turn_ppo_ignores_what_cancels_inside_a_turn():
    batch = random_batch(2)
    oracle = turns.turn_ppo(batch)
    shift = np.zeros(batch.mask.shape)
    for n in range(len(shift)):
        for tokens in turns.turns(batch, n):
            shift[n, tokens[0]] += 0.7
            shift[n, tokens[-1]] -= 0.7
    logp = random_logp(batch, seed=4)
    assert oracle.loss(logp + shift) == pytest.approx(oracle.loss(logp))
    assert oracle.loss(logp + 0.7 * batch.mask) != pytest.approx(oracle.loss(logp))


def test_the_critic_of_turn_ppo_is_trained_on_first_tokens_and_averaged_over_turns():
    batch = random_batch(2)
    oracle = turns.turn_ppo(batch, value_clip=None, value_coefficient=1.0)
    loss = partial(oracle.loss, batch.logp_old)
    count = sum(len(turns.turns(batch, n)) for n in range(len(batch.group)))
    for n in range(len(batch.group)):
        for tokens in turns.turns(batch, n):
            for t in tokens:
                moved = batch.value.copy()
                moved[n, t] += 1.0
                gap = loss(value=moved) - loss(value=batch.value)
                pull = batch.value[n, t] - oracle.returns[n, t]
                trained = t == tokens[0] and batch.scored[n]
                expected = (pull + 0.5) / count if trained else 0.0
                assert gap == pytest.approx(expected, abs=1e-12)
