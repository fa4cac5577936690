"""The oracles themselves: literals worked out by hand, and identities between methods."""

import math
from functools import partial

import numpy as np
import pytest

from . import aggregate, methods, pieces
from .batch import Batch, random_batch, random_logp

SEEDS = [0, 1, 2]
METHODS = {
    "reinforce": methods.reinforce,
    "a2c": methods.a2c,
    "ppo": methods.ppo,
    "rloo": methods.rloo,
    "remax": methods.remax,
    "reinforce_pp": methods.reinforce_pp,
    "grpo": methods.grpo,
    "dr_grpo": methods.dr_grpo,
    "dapo": methods.dapo,
    "gspo": methods.gspo,
    "cispo": methods.cispo,
}
# On-policy the ratio of these is 1, so that every gradient must be that of REINFORCE.
PENALTY_FREE = {
    "a2c": partial(methods.a2c, entropy_coefficient=0.0),
    "grpo": partial(methods.grpo, beta=0.0),
    "rloo_ratio": partial(methods.rloo, clip=(0.2, 0.2)),
    "gspo_token": partial(methods.gspo, token_gradient=True),
    **{k: f for k, f in METHODS.items() if k not in ("a2c", "grpo")},
}


def make(mask: list[str], reward: list[list[float]], group: list[int], **fields) -> Batch:
    """A batch from rows such as `".xx.x"`: x an action, . an observation, one prompt token."""
    is_action = np.array([[c == "x" for c in row] for row in mask])
    zeros, rows = np.zeros(is_action.shape), np.zeros(len(mask))
    columns = {
        "mask": is_action,
        "group": np.array(group),
        "reward": np.array(reward, float),
        "logp_old": zeros,
        "logp_ref": zeros,
        "logp_sampler": zeros,
        "value": zeros,
        "bootstrap_value": rows,
        "greedy_return": rows,
        "length": is_action.sum(axis=1),
        "truncated": rows > 0,
        "turn": np.where(is_action, 0, -1),
        "scored": np.array(group) >= 0,
        "prompt_length": np.ones(len(mask), int),
        "end": np.full(len(mask), len(mask[0])),
    }
    return Batch(**{**columns, **{k: np.array(v) for k, v in fields.items()}})


def outcomes(values: list[float], group: list[int], **fields) -> Batch:
    """One action per row, worth `values`."""
    return make([".x"] * len(values), [[0.0, v] for v in values], group, **fields)


# ------------------------------------------------------------------ the generator


@pytest.mark.parametrize("seed", SEEDS)
def test_random_batch_has_every_awkward_case(seed):
    batch = random_batch(seed)
    padding = batch.group < 0
    sizes = [int((batch.group == g).sum()) for g in set(batch.group[~padding])]
    assert padding.sum() == 1
    assert not batch.mask[padding].any()
    assert (batch.length[~padding] == 0).sum() == 1
    assert min(sizes) == 1 < max(sizes)
    assert (~batch.scored & ~padding).sum() == 2
    assert batch.truncated.any()
    assert any(np.diff(batch.actions(n)).max(initial=1) > 1 for n in range(len(batch.group)))
    assert (batch.bootstrap_value[~batch.truncated] == 0).all()
    assert (batch.turn >= 0).tolist() == batch.mask.tolist()
    assert (batch.group < len(batch.group)).all()
    assert len(set(batch.greedy_return[batch.group == batch.group[~padding][0]])) == 1


def test_random_batch_refuses_sizes_that_cannot_hold_a_row():
    with pytest.raises(ValueError, match="width >= 5"):
        random_batch(0, width=4)


# ------------------------------------------------------------------ aggregation

KEEP = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]], bool)


def test_weights_by_hand():
    turn = np.array([[0, 0, 0, 1], [-1, 0, -1, 1], [-1] * 4])
    group = np.array([5, 5, 2])
    expected = {
        "token_mean": (aggregate.token_mean(KEEP), [1 / 6] * 4, 1 / 6),
        "sequence_mean": (aggregate.sequence_mean(KEEP), [1 / 8] * 4, 1 / 4),
        "sequence_sum_mean": (aggregate.sequence_sum_mean(KEEP), [1 / 2] * 4, 1 / 2),
        "sequence_mean_sum": (aggregate.sequence_mean_sum(KEEP), [1 / 4] * 4, 1 / 2),
        "constant_length": (aggregate.constant_length(KEEP, 10), [1 / 20] * 4, 1 / 20),
        "turn_mean": (aggregate.turn_mean(KEEP, turn), [1 / 12] * 3 + [1 / 4], 1 / 4),
        "group_mean": (aggregate.group_mean(KEEP, group), [1 / 8] * 4, 1 / 4),
        "ddof": (aggregate.group_mean(KEEP, group, ddof=1), [1 / 4] * 4, 1 / 2),
        "within": (aggregate.group_mean(KEEP, group, within="sum"), [1 / 2] * 4, 1 / 2),
        "token_sum": (aggregate.token_sum(KEEP), [1.0] * 4, 1.0),
    }
    for name, (got, first, second) in expected.items():
        np.testing.assert_allclose(got[0], first, rtol=1e-15, err_msg=name)
        np.testing.assert_allclose(got[1], [0, second, 0, second], rtol=1e-15, err_msg=name)
        np.testing.assert_array_equal(got[2], 0, err_msg=name)


def test_a_group_no_larger_than_ddof_weighs_nothing_and_is_counted():
    got = aggregate.group_mean(KEEP[[0, 1, 1]], np.array([0, 1, 1]), ddof=1)
    np.testing.assert_array_equal(got[0], 0)
    np.testing.assert_allclose(got[1:].sum(), 1 / 2 * 2)


def test_denominators_are_those_of_each_step():
    step_of = np.array([3, 0, 0])
    np.testing.assert_allclose(aggregate.token_mean(KEEP, step_of=step_of).sum(axis=1), [1, 1, 0])
    np.testing.assert_allclose(
        aggregate.sequence_sum_mean(KEEP, step_of=step_of).sum(axis=1), [4, 2, 0]
    )


def test_nothing_kept_weighs_nothing():
    for weigh in (aggregate.token_mean, aggregate.sequence_mean, aggregate.token_sum):
        assert not weigh(np.zeros((2, 3), bool)).any()


def test_on_equal_lengths_all_aggregations_agree_up_to_a_scalar():
    keep = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 1, 1]], bool)
    turn, group = np.where(keep, 0, -1), np.array([0, 0, 0])
    for weight in (
        aggregate.token_mean(keep),
        aggregate.sequence_mean(keep),
        aggregate.sequence_sum_mean(keep),
        aggregate.sequence_mean_sum(keep),
        aggregate.constant_length(keep, 7),
        aggregate.turn_mean(keep, turn),
        aggregate.group_mean(keep, group, ddof=1),
    ):
        np.testing.assert_allclose(weight, weight.max() * keep, rtol=1e-15)


# ------------------------------------------------------------------ reward side


def test_returns_skip_observations():
    batch = make([".x..x", "....."], [[9, 1, 9, 9, 2], [3, 0, 0, 0, 0]], [0, 0])
    np.testing.assert_array_equal(pieces.outcome_return(batch), [3, 3])
    np.testing.assert_array_equal(pieces.reward_to_go(batch, 0.5)[0], [0, 2, 0, 0, 2])


def test_kl_in_reward_by_hand():
    batch = make([".xx"], [[0, 0, 1]], [0], logp_old=[[9, -1, -2]], logp_ref=[[0, -2, -1.5]])
    for estimator, first, second in (
        (pieces.k1, 1.0, -0.5),
        (pieces.k2, 0.5, 0.125),
        (pieces.k3, math.exp(-1), math.exp(0.5) - 1.5),
        (pieces.k_abs, 1.0, 0.5),
    ):
        got = pieces.kl_in_reward(batch, 0.1, estimator)
        np.testing.assert_allclose(got[0], [0, -0.1 * first, 1 - 0.1 * second], rtol=1e-12)


def test_group_statistics_by_hand():
    # Group 0: 1, 2, 6; an unscored 100 is not seen. Group 1: one scored member. Group 2: equal.
    batch = outcomes(
        [1, 2, 6, 100, 4, 50, 0.1, 0.1],
        [0, 0, 0, 0, 1, 1, 2, 2],
        scored=[True, True, True, False, True, False, True, True],
    )
    outcome = pieces.outcome_return(batch)
    np.testing.assert_allclose(
        pieces.group_mean_baseline(batch, outcome), [-2, -1, 3, 0, 0, 0, 0, 0]
    )
    np.testing.assert_allclose(
        pieces.leave_one_out_baseline(batch, outcome), [-3, -1.5, 4.5, 0, 0, 0, 0, 0]
    )
    np.testing.assert_allclose(pieces.group_std(batch, outcome)[:3], math.sqrt(7))
    np.testing.assert_allclose(pieces.group_std(batch, outcome, ddof=0)[:3], math.sqrt(14 / 3))
    np.testing.assert_allclose(
        pieces.group_normalised(batch, outcome, eps=0.5),
        [x / (math.sqrt(7) + 0.5) for x in (-2, -1, 3)] + [0] * 5,
    )
    np.testing.assert_allclose(
        pieces.batch_std(batch, outcome), np.std([1, 2, 6, 4, 0.1, 0.1], ddof=1)
    )


def test_length_weighted_baseline_by_hand():
    batch = make([".x..", ".xxx"], [[0, 1, 0, 0], [0, 0, 0, 5]], [0, 0])
    got = pieces.length_weighted_baseline(batch, pieces.outcome_return(batch))
    np.testing.assert_allclose(got, [1 - 4, 5 - 4])


def test_whitening_by_hand():
    batch = make([".x.x", ".x..", ".x.."], [[0] * 4] * 3, [0, 0, 0], scored=[True, True, False])
    credit = np.array([[7, 1, 7, 1], [7, 4, 7, 7], [7, 99, 7, 7]], float)
    got = pieces.whiten_tokens(batch, credit, eps=1.0)  # values 1, 1, 4: mean 2, variance 3
    np.testing.assert_allclose(got, [[0, -0.5, 0, -0.5], [0, 1, 0, 0], [0, 0, 0, 0]])
    rows = pieces.whiten_sequences(batch, np.array([1.0, 4.0, 99.0]), eps=0.0)
    np.testing.assert_allclose(rows, [-math.sqrt(0.5), math.sqrt(0.5), 0])


def test_gae_by_hand_and_over_an_observation():
    fields = {"bootstrap_value": [4.0], "truncated": [True]}
    batch = make([".xx"], [[0, 1, 2]], [0], value=[[9, 3, 5]], **fields)
    advantage, returns = pieces.gae(batch, batch.reward, gamma=0.5, lam=0.5)
    last = 2 + 0.5 * 4 - 5
    np.testing.assert_allclose(advantage, [[0, 1 + 0.5 * 5 - 3 + 0.25 * last, last]])
    np.testing.assert_allclose(returns, advantage + batch.value * batch.mask)
    holed = make([".x..x."], [[0, 1, 8, 8, 2, 8]], [0], value=[[9, 3, 9, 9, 5, 9]], **fields)
    bridged, _ = pieces.gae(holed, holed.reward, gamma=0.5, lam=0.5)
    np.testing.assert_array_equal(bridged[0, [1, 4]], advantage[0, 1:])


@pytest.mark.parametrize("seed", SEEDS)
def test_gae_ends_are_monte_carlo_and_td_error(seed):
    batch = random_batch(seed)
    alive = batch.mask & batch.scored[:, None]
    monte_carlo, _ = pieces.gae(batch, batch.reward, gamma=1.0, lam=1.0)
    to_go = pieces.reward_to_go(batch, 1.0) + batch.bootstrap_value[:, None]
    np.testing.assert_allclose(monte_carlo[alive], (to_go - batch.value)[alive], atol=1e-12)
    td, returns = pieces.gae(batch, batch.reward, gamma=0.9, lam=0.0)
    for n in np.flatnonzero(batch.scored):
        actions = batch.actions(n)
        nexts = [batch.value[n, t] for t in actions[1:]] + [batch.bootstrap_value[n]]
        for t, following in zip(actions, nexts, strict=False):  # a row may have no action
            assert returns[n, t] == pytest.approx(batch.reward[n, t] + 0.9 * following)
            assert td[n, t] == pytest.approx(returns[n, t] - batch.value[n, t])


def test_overlong_penalty_has_three_cases():
    for length, expected in ((80, 0), (81, -0.05), (90, -0.5), (100, -1), (101, -1), (500, -1)):
        assert pieces.overlong_penalty(length, 100, 20) == pytest.approx(expected)


def test_filters():
    batch = outcomes([1, 0, 1, 1, 0.5], [0, 0, 1, 1, 2], truncated=[True] + [False] * 4)
    kept = pieces.keep_spread_groups(batch, batch.mask, pieces.outcome_return(batch))
    assert kept.any(axis=1).tolist() == [True, True, False, False, False]
    kept = pieces.keep_terminated(batch, batch.mask)
    assert kept.any(axis=1).tolist() == [False, True, True, True, True]


# ------------------------------------------------------------------ trajectory side


def test_ratios_by_hand():
    batch = make([".x.x"], [[0] * 4], [0], logp_old=[[9.0, -1.0, 9.0, -2.0]])
    logp = np.array([[0.0, -0.5, 0.0, -1.7]])
    assert pieces.token_ratio(-0.5, -1.0) == pytest.approx(math.exp(0.5))
    assert pieces.sequence_ratio_full(batch, 0, logp, batch.logp_old) == pytest.approx(
        math.exp(0.8)
    )
    geometric = pieces.sequence_ratio_geometric(batch, 0, logp, batch.logp_old)
    assert geometric == pytest.approx(math.exp(0.4))
    assert pieces.gspo_token_ratio(batch, 0, 1, logp, logp) == geometric


@pytest.mark.parametrize(
    ("ratio", "credit", "clip", "dual"),
    [(1.5, 2, 2.4, 2.4), (0.5, 2, 1, 1), (0.5, -2, -1.6, -1.6), (1.5, -2, -3, -3), (4, -2, -8, -6)],
)
def test_clips_by_hand(ratio, credit, clip, dual):
    assert pieces.clipped(ratio, credit, 0.2, 0.2) == pytest.approx(clip)
    assert pieces.dual_clipped(ratio, credit, 0.2, 0.2, 3.0) == pytest.approx(dual)


def test_detached_weights_by_hand():
    assert pieces.ratio_capped(5.0, 4.0) == 4.0
    assert pieces.ratio_capped(3.0, 4.0) == 3.0
    assert [pieces.cispo_weight(r, 0.2, 0.3) for r in (0.5, 1.1, 2.0)] == [0.8, 1.1, 1.3]
    assert pieces.cispo_weight(0.1, math.inf, 4.0) == 0.1
    assert pieces.truncated_is(0.0, 2.0) == 1.0  # sampler and trainer agree
    assert pieces.truncated_is(3.0, 2.0) == 2.0
    assert pieces.masked_is(math.log(1.5), 0.5, 5.0) == pytest.approx(1.5)
    assert pieces.masked_is(math.log(0.4), 0.5, 5.0) == 0.0
    assert pieces.masked_is(math.log(6.0), 0.5, 5.0) == 0.0


def test_value_error_takes_the_worse_of_raw_and_clipped():
    assert pieces.value_error(3.0, 1.0, 0.0) == 2.0
    assert pieces.value_error(3.0, 1.0, 0.0, clip=0.5) == 2.0
    assert pieces.value_error(1.0, 1.0, 0.0, clip=0.5) == 0.125


def test_entropy_of_known_distributions():
    assert pieces.entropy([2.0, 2.0, 2.0, 2.0]) == pytest.approx(math.log(4))
    p = 0.25
    two = pieces.entropy([math.log(p), math.log(1 - p)])
    assert two == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))


def test_ratio_weighted_k3_has_the_gradient_of_k2_on_policy():
    def slope(f, x, h=1e-6):
        return (f(x + h) - f(x - h)) / (2 * h)

    for d in (-1.3, -0.2, 0.4, 2.0):
        weighted = slope(lambda x, d=d: math.exp(x - d) * pieces.k3(x), d)
        assert weighted == pytest.approx(slope(pieces.k2, d), rel=1e-6)
        assert slope(pieces.k3, d) == pytest.approx(1 - math.exp(-d), rel=1e-6)
        assert slope(pieces.k1, d) == pytest.approx(1.0)


# ------------------------------------------------------------------ methods


def on_policy_gradient(make_oracle, batch, **kw):
    oracle = make_oracle(batch, **kw)
    return oracle, methods.gradient(oracle.loss, batch.logp_old)


@pytest.mark.parametrize("key", sorted(PENALTY_FREE))
def test_on_policy_gradient_is_reinforce(key):
    batch = random_batch(3)
    oracle, got = on_policy_gradient(PENALTY_FREE[key], batch)
    np.testing.assert_allclose(got, -oracle.weight * oracle.credit, atol=1e-8)
    assert np.abs(got).max() > 1e-5


@pytest.mark.parametrize("key", sorted(METHODS))
def test_what_is_off_the_mask_changes_nothing(key):
    batch = random_batch(4)
    poison = {
        name: np.where(batch.mask, getattr(batch, name), np.nan)
        for name in ("logp_old", "logp_ref", "logp_sampler", "value")
    }
    logp = random_logp(batch, seed=5, scale=0.2)
    clean, dirty = METHODS[key](batch), METHODS[key](Batch(**{**vars(batch), **poison}))
    np.testing.assert_array_equal(clean.credit, dirty.credit)
    spoiled = np.where(batch.mask, logp, np.nan)
    extra = {"value": batch.value, "entropy": -logp}
    spoiled_extra = {"value": poison["value"], "entropy": -spoiled}
    assert dirty.loss(spoiled, **spoiled_extra) == clean.loss(logp, **extra)
    assert not clean.credit[~batch.mask].any()
    assert not clean.credit[~batch.scored].any()
    assert not clean.weight[~batch.mask].any()


@pytest.mark.parametrize("key", sorted(METHODS))
def test_row_order_and_padding_do_not_matter(key):
    batch = random_batch(6)
    logp = random_logp(batch, seed=7, scale=0.2)
    order = np.random.default_rng(0).permutation(len(batch.group))
    rows = {name: column[order] for name, column in vars(batch).items()}
    pad = {name: _wider(column) for name, column in rows.items()}
    whole = METHODS[key](batch).loss(logp)
    assert METHODS[key](Batch(**rows)).loss(logp[order]) == pytest.approx(whole, rel=1e-12)
    assert METHODS[key](Batch(**pad)).loss(_wider(logp[order])) == pytest.approx(whole, rel=1e-12)


def _wider(column: np.ndarray) -> np.ndarray:
    return np.pad(column, [(0, 0), (0, 2)]) if column.ndim == 2 else column


@pytest.mark.parametrize("seed", SEEDS)
def test_loo_is_the_scaled_group_mean(seed):
    batch = random_batch(seed)
    rloo, mean = methods.rloo(batch, beta=0.0).credit, methods.dr_grpo(batch).credit
    for n in np.flatnonzero(batch.scored):
        size = len(batch.members(batch.group[n]))
        if size > 1:
            np.testing.assert_allclose(rloo[n], mean[n] * size / (size - 1), atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_remax_with_the_group_mean_for_greedy_is_dr_grpo(seed):
    batch = random_batch(seed)
    outcome = pieces.outcome_return(batch)
    final_only = np.zeros(batch.reward.shape)
    mean = np.zeros(len(outcome))
    for n in range(len(outcome)):
        members = batch.members(batch.group[n])
        mean[n] = np.mean([outcome[j] for j in members]) if members else 0.0
        if batch.actions(n):
            final_only[n, batch.actions(n)[-1]] = outcome[n]
        else:
            final_only[n, max(batch.prompt_length[n] - 1, 0)] = outcome[n]
    stub = Batch(**{**vars(batch), "greedy_return": mean, "reward": final_only})
    np.testing.assert_allclose(methods.remax(stub).credit, methods.dr_grpo(stub).credit, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-5, 3e-3])  # inside the clip range, and mostly clipped
def test_gspo_and_gspo_token_are_one_method_for_sequence_credit(scale):
    batch = random_batch(8)
    logp = random_logp(batch, seed=9, scale=scale)
    plain, token = methods.gspo(batch), methods.gspo(batch, token_gradient=True)
    assert plain.loss(logp) == pytest.approx(token.loss(logp), rel=1e-12)
    np.testing.assert_allclose(
        methods.gradient(plain.loss, logp, h=1e-8),
        methods.gradient(token.loss, logp, h=1e-8),
        atol=1e-7,
    )


def test_cispo_without_bounds_is_the_unclipped_policy_gradient():
    batch = random_batch(10)
    logp = random_logp(batch, seed=11)
    cispo = methods.cispo(batch, low=math.inf, high=math.inf)
    unclipped = methods._clip_loss(batch, cispo.credit, cispo.weight, (math.inf, math.inf))
    by_hand = -cispo.weight * cispo.credit * np.exp(np.where(batch.mask, logp - batch.logp_old, 0))
    np.testing.assert_allclose(methods.gradient(cispo.loss, logp), by_hand, atol=1e-8)
    np.testing.assert_allclose(methods.gradient(unclipped, logp), by_hand, atol=1e-8)


def test_a_clip_is_a_ratio_weight_under_a_one_sided_mask():
    batch = random_batch(12)
    logp = random_logp(batch, seed=13)
    oracle = methods.dapo(batch)
    ratio = np.exp(np.where(batch.mask, logp - batch.logp_old, 0))
    open_side = np.where(oracle.credit >= 0, ratio <= 1.28, ratio >= 0.8)
    assert not open_side[batch.mask].all()
    np.testing.assert_allclose(
        methods.gradient(oracle.loss, logp),
        -oracle.weight * oracle.credit * ratio * open_side,
        atol=1e-8,
    )


def test_opo_with_equal_lengths_is_the_group_mean():
    batch = outcomes([1, 2, 6, 3], [0, 0, 0, 1])
    outcome = pieces.outcome_return(batch)
    np.testing.assert_allclose(
        pieces.length_weighted_baseline(batch, outcome),
        pieces.group_mean_baseline(batch, outcome),
        atol=1e-12,
    )


def test_ppo_at_one_step_has_the_gradient_of_a2c():
    batch = random_batch(14)
    ppo, from_ppo = on_policy_gradient(methods.ppo, batch, beta=0.0, lam=0.9, whiten=False)
    a2c, from_a2c = on_policy_gradient(methods.a2c, batch, lam=0.9)
    np.testing.assert_array_equal(ppo.credit, a2c.credit)
    np.testing.assert_allclose(from_ppo, from_a2c, atol=1e-8)


def test_critic_and_entropy_terms_have_their_own_gradients():
    batch = random_batch(15)
    oracle = methods.ppo(batch, value_coefficient=0.5, entropy_coefficient=0.01)
    value = batch.value + 0.05  # inside the clip, so the plain square
    kw = {"value": value, "entropy": -batch.logp_old}
    target = np.where(batch.scored[:, None], value - oracle.returns, 0.0)
    np.testing.assert_allclose(
        methods.gradient(oracle.loss, batch.logp_old, wrt="entropy", **kw),
        -0.01 * oracle.weight,
        atol=1e-8,
    )
    np.testing.assert_allclose(
        methods.gradient(oracle.loss, batch.logp_old, wrt="value", **kw),
        0.5 * oracle.weight * target,
        atol=1e-8,
    )


def test_reinforce_with_agreeing_sampler_has_weight_one():
    batch = random_batch(16)
    logp = random_logp(batch, seed=17)
    agree = Batch(**{**vars(batch), "logp_sampler": logp})
    weighted, plain = methods.reinforce(agree, importance_cap=2.0), methods.reinforce(agree)
    np.testing.assert_allclose(weighted.loss(logp), plain.loss(logp), rtol=1e-12)


def test_rloo_credit_and_loss_by_hand():
    batch = make([".xx", ".x."], [[0, 0, 1], [0, 0, 0]], [0, 0], logp_old=[[0, 1, 2], [0, 3, 0]])
    oracle = methods.rloo(batch, beta=0.1)  # returns 1 - 0.3 and 0 - 0.3
    np.testing.assert_allclose(oracle.credit, [[0, 1, 1], [0, -1, 0]], atol=1e-12)
    logp = np.array([[0, -1, -2], [0, -5, 0]], float)
    assert oracle.loss(logp) == pytest.approx(-(1 * -3 + -1 * -5) / 2)
    ratio = methods.rloo(batch, beta=0.1, clip=(0.2, 0.2)).loss(batch.logp_old + 0.05)
    assert ratio == pytest.approx(-(math.exp(0.1) - math.exp(0.05)) / 2)


def test_grpo_loss_by_hand():
    batch = make([".xx", ".x."], [[0, 0, 1], [0, 0, 0]], [0, 0])
    oracle = methods.grpo(batch, eps=0.0)  # credit +-sqrt(1/2)
    up = math.log(1.5)
    logp = np.array([[0, up, 0], [0, up, 0]])
    penalty = 0.04 * (1 / 1.5 - 1 + up)
    first = ((1.2 + 1.0) * math.sqrt(0.5) - penalty) / 2
    second = -1.5 * math.sqrt(0.5) - penalty
    assert oracle.loss(logp) == pytest.approx(-(first + second) / 2)
    capped = methods.grpo(batch, eps=0.0, beta=0.0, ratio_cap=1.3).loss(logp)
    assert capped == pytest.approx(-(2.2 / 2 - 1.3) * math.sqrt(0.5) / 2)


def test_dapo_drops_unanimous_groups_from_the_denominator():
    batch = outcomes([1, 0, 1, 1, 1], [0, 0, 1, 1, 2])
    oracle = methods.dapo(batch)
    assert oracle.weight.sum(axis=1).tolist() == [0.5, 0.5, 0, 0, 0]
    graded = methods.dapo(batch, accuracy=np.array([0.0, 0, 1, 0, 1]))
    assert graded.weight.sum(axis=1).tolist() == [0, 0, 0.5, 0.5, 0]
    shaped = methods.dapo(batch, overlong=(2.0, 2.0))  # every length is 1: all lose a half
    np.testing.assert_allclose(shaped.credit, oracle.credit)


def test_reinforce_to_go_credit_by_hand():
    batch = make([".xx"], [[0, 1, 2]], [0])
    assert methods.reinforce(batch).credit.tolist() == [[0, 3, 3]]
    assert methods.reinforce(batch, gamma=0.5).credit.tolist() == [[0, 2, 2]]


def test_steps_split_the_loss_without_changing_credit():
    batch = random_batch(18)
    step_of = np.arange(len(batch.group)) % 2
    split = methods.grpo(batch, step_of=step_of)
    np.testing.assert_array_equal(split.credit, methods.grpo(batch).credit)
    for step in (0, 1):
        assert split.weight[step_of == step].sum() == pytest.approx(1.0)
