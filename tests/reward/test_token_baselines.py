"""The optimal token baseline against a loop over groups, places and rows."""

import dataclasses

import numpy as np

from polopt import Trajectories
from polopt.reward import group_mean_baseline, optimal_token_baseline, outcome_return
from reward.handmade import near, run

MASK = [[1, 0, 1, 1], [1, 1], [1, 1, 1], [1, 0, 1]]
REWARDS = [[0, 0, 0.5, 1], [0, 2.0], [0.25, 0, -1], [1, 0, 4]]


def batch(rows=(0, 1, 2, 3), group=(0, 0, 0, 1), **changes):
    """Three rows of 3, 2 and 3 action tokens, two with an observation, and a group of one."""
    rng = np.random.default_rng(0)
    made = Trajectories.build(
        [[1]] * len(rows),
        [[9] * len(MASK[i]) for i in rows],
        [REWARDS[i] for i in rows],
        group=list(group),
        action_mask=[np.array(MASK[i], bool) for i in rows],
        width=6,
    )
    p = rng.uniform(0.1, 0.9, (4, 6))
    columns = {
        "logp_old": np.log(p),
        "logp_behaviour": np.log(p) + rng.normal(size=p.shape),
        "sum_prob_sq": p**2 + (1 - p) ** 2 * rng.uniform(0.2, 1, p.shape),
    }
    columns = {name: x[list(rows)].astype(np.float32) for name, x in columns.items()}
    return dataclasses.replace(made, columns=columns, **changes)


def looped(on, cap=None, zero_tail=True):
    """(G − b)[N,T] of 2602.07078, a place at a time, for rows that are all scored."""
    made = np.zeros(on.action_mask.shape)
    c = {name: np.asarray(x, float) for name, x in on.columns.items()}
    w = 1 - 2 * np.exp(c["logp_old"]) + c["sum_prob_sq"]
    if cap is not None:
        w = w * np.minimum(np.exp(c["logp_old"] - c["logp_behaviour"]), cap) ** 2
    reward = np.asarray(on.reward_parts["reward"], float)
    for g in set(on.group.tolist()):
        rows = np.flatnonzero(on.group == g)
        at = {n: np.flatnonzero(on.action_mask[n]) for n in rows}
        second = sorted(len(x) for x in at.values())[-2] if len(rows) > 1 else 0
        for place in range(max(map(len, at.values()))):
            here = [n for n in rows if place < len(at[n])]
            W = [w[n, at[n][: place + 1]].sum() for n in here]
            G = [reward[n, at[n][place] :].sum() for n in here]
            baseline = np.dot(W, G) / np.sum(W)
            for n, own in zip(here, G, strict=True):
                bare = zero_tail and place >= second
                made[n, at[n][place]] = own - (0 if bare else baseline) if len(rows) > 1 else 0
    return made


def test_it_is_the_loop():
    on = batch()
    near(run(on, optimal_token_baseline()).value, looped(on))
    near(run(on, optimal_token_baseline(0.8)).value, looped(on, 0.8))


def test_the_tail_of_the_longest_row_keeps_its_return():
    """Rows 0 and 1 are 3 and 2 tokens long: the last token of row 0 has no company."""
    on = batch((0, 1), (0, 0))
    bare, own = run(on, optimal_token_baseline()).value, looped(on)
    near(bare, own)
    near(bare[0, 4], 1.0)
    near(run(on, optimal_token_baseline(zero_tail=False)).value, looped(on, zero_tail=False))
    near(run(on, optimal_token_baseline(zero_tail=False)).value[0, 4], 0.0)


def test_equal_weights_and_lengths_make_it_the_group_mean():
    """Identity 13 of the catalogue."""
    on = Trajectories.build([[1]] * 4, [[5, 6]] * 4, [1.0, 0.0, 2.0, 0.5], group=2, width=4)
    half = np.full((4, 4), 0.5, np.float32)
    columns = {"logp_old": np.log(half), "logp_behaviour": np.log(half), "sum_prob_sq": half}
    on = dataclasses.replace(on, columns=columns)
    expected = run(on, outcome_return(), group_mean_baseline()).sequence
    near(run(on, optimal_token_baseline()).value[:, 1:3], np.stack([expected] * 2, axis=1))


def test_rows_without_a_score_are_no_company():
    on = batch((0, 1), (0, 0), scored=np.array([1, 0], bool))
    assert not np.any(run(on, optimal_token_baseline()).value)


def test_rounding_of_sure_tokens_does_not_make_a_baseline_explode():
    """1 − 2π + Σ π² of sure tokens rounds to ±1e-7, and the sum of two such to nothing."""
    on = Trajectories.build([[1]] * 2, [[5, 6]] * 2, [1.0, 0.0], group=2, width=3)
    sum_prob_sq = np.array([[1, 1 + 1.2e-7, 1], [1, 1 - 1.2e-7, 1]], np.float32)
    zero = np.zeros((2, 3), np.float32)
    columns = {"logp_old": zero, "logp_behaviour": zero, "sum_prob_sq": sum_prob_sq}
    value = run(dataclasses.replace(on, columns=columns), optimal_token_baseline()).value
    assert np.abs(value).max() <= 1
