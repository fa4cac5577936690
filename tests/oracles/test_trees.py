"""Trees against literals worked out by hand.

The tree: a node 1 that two rows pass, with leaves 2 and 3 after it, and a leaf 4 beside it.
"""

import math

import numpy as np
import pytest

from . import methods, pieces, trees
from .batch import random_batch, random_logp
from .handmade import make

NODES = [[-1, 1, 1, 2], [-1, 1, 1, 3], [-1, 4, -1, -1]]


def tree(values=(1, 0, 0), **fields):
    reward = [[0, 0, 0, values[0]], [0, 0, 0, values[1]], [0, values[2], 0, 0]]
    return make([".xxx", ".xxx", ".x.."], reward, [0, 0, 0], **{"node": NODES, **fields})


def test_paths_and_shares_by_hand():
    batch = tree()
    assert [trees.path(batch, n) for n in range(3)] == [(1, 2), (1, 3), (4,)]
    assert trees.shares(batch).tolist() == [[0, 0.5, 0.5, 1], [0, 0.5, 0.5, 1], [0, 1, 0, 0]]
    apart = make([".x", ".x"], [[0, 1], [0, 0]], [0, 1], node=[[-1, 5], [-1, 5]])
    assert trees.shares(apart)[:, 1].tolist() == [1, 1]  # labels mean nothing across groups


def test_a_shared_token_counts_once():
    batch = tree()
    share = trees.shares(batch)
    tokens = trees.shared_token_mean(batch.mask, share)
    np.testing.assert_allclose(tokens[0], [0, 0.1, 0.1, 0.2])  # five distinct tokens
    assert tokens.sum() == pytest.approx(1)
    rows = trees.shared_sequence_mean(batch.mask, share)
    np.testing.assert_allclose(rows[0], [0, 0.25 / 3, 0.25 / 3, 0.5 / 3])
    np.testing.assert_allclose(rows[2], [0, 1 / 3, 0, 0])
    steps = trees.shared_token_mean(batch.mask, share, step_of=np.array([0, 1, 1]))
    np.testing.assert_allclose(steps.sum(axis=1), [1, 2 / 3, 1 / 3])


def test_node_values_are_means_of_children_not_of_leaves():
    batch = tree((1, 0, 1))
    outcome = pieces.outcome_return(batch)
    assert trees.node_value(batch, outcome, 0, (1,)) == 0.5
    assert trees.node_value(batch, outcome, 0, ()) == 0.75
    unscored = tree((1, 0, 1), scored=[True, False, True])
    assert trees.node_value(unscored, outcome, 0, (1,)) == 1
    assert trees.node_value(unscored, outcome, 0, (1, 3)) is None
    ended = tree((1, 0, 1), node=[[-1, 1, 1, 2], [-1, 1, 1, 1], [-1, 4, -1, -1]])
    assert trees.node_value(ended, outcome, 0, (1,)) == 0.5  # a row that ends there is a leaf


def test_sibling_credit_by_hand():
    batch = tree()
    credit = trees.sibling_credit(batch, pieces.outcome_return(batch), eps=0.0)
    # Top: 0.5 and 0, mean 0.25. Leaves: 1 and 0, mean 0.5.
    top, scale = 0.25, math.sqrt(0.25 * 0.75)
    np.testing.assert_allclose(credit[0], [0, top / scale, top / scale, 1])
    np.testing.assert_allclose(credit[1], [0, top / scale, top / scale, -1])
    np.testing.assert_allclose(credit[2], [0, -top / scale, 0, 0])
    deviation = trees.sibling_credit(batch, pieces.outcome_return(batch), eps=0.0, scale="std")
    np.testing.assert_allclose(deviation[0], [0, *[math.sqrt(0.5)] * 3])


def test_treerpo_drops_siblings_that_agree():
    flat = tree((1, 1, 0))  # the leaves agree, the nodes above do not
    kept = trees.treerpo(flat).weight
    np.testing.assert_allclose(kept[:, 1:].sum(axis=0), [2 / 3, 1 / 3, 0])
    whole = trees.treerpo(flat, drop=False, share=False).weight
    np.testing.assert_allclose(whole, flat.mask / 7)


def test_level_credit_by_hand():
    batch = tree((1, 0, 0.5))
    outcome = pieces.outcome_return(batch)
    # Levels: the group, mean 0.5 of 3; node 1, mean 0.5 of 2. A leaf by itself is no level.
    np.testing.assert_allclose(trees.level_credit(batch, outcome), [0.5, -0.5, 0])
    tilted = tree((1, 0, 0))
    outcome = pieces.outcome_return(tilted)
    average = trees.level_credit(tilted, outcome)
    np.testing.assert_allclose(average, [(2 / 3 + 0.5) / 2, (-1 / 3 - 0.5) / 2, -1 / 3])
    size = trees.level_credit(tilted, outcome, weighting="size")
    np.testing.assert_allclose(size, [(2 + 1) / 5, (-1 - 1) / 5, -1 / 3])
    flat = tree((1, 1, 0))
    outcome = pieces.outcome_return(flat)
    np.testing.assert_allclose(trees.level_credit(flat, outcome), [1 / 6, 1 / 6, -2 / 3])
    dropped = trees.level_credit(flat, outcome, drop_flat=True)
    np.testing.assert_allclose(dropped, [1 / 3, 1 / 3, -2 / 3])


def test_treepo_whitens_over_tokens_of_rows_and_clips():
    batch = tree()
    oracle = trees.treepo(batch, eps=0.0)
    raw = np.array([7 / 12] * 3 + [-5 / 12] * 3 + [-1 / 3])
    white = (raw - raw.mean()) / raw.std(ddof=1)
    np.testing.assert_allclose(oracle.credit[batch.mask], white)
    share = np.array([0.5, 0.5, 1, 0.5, 0.5, 1, 1]) / 5
    far = np.full((3, 4), math.log(20.0))
    pushed = np.where(white > 0, 1.28 * white, 10 * white)
    assert oracle.loss(far) == pytest.approx(-(share * pushed).sum())


def test_arpo_by_hand():
    batch = tree()
    soft = trees.arpo(batch, eps=0.0).credit
    root = math.sqrt(1 / 3)  # the deviation of 1, 0, 0
    np.testing.assert_allclose(soft[:, 1], np.array([2 / 3, -1 / 3, -1 / 3]) / root)
    hard = trees.arpo(batch, attribution="hard", eps=0.0).credit
    np.testing.assert_allclose(hard[0], np.array([0, 1 / 6, 1 / 6, 2 / 3]) / root)
    np.testing.assert_allclose(hard[1], np.array([0, 1 / 6, 1 / 6, -1 / 3]) / root)
    np.testing.assert_array_equal(hard[2], soft[2])
    lonely = tree(scored=[True, False, True])
    np.testing.assert_allclose(
        trees.arpo(lonely, attribution="hard").credit, trees.arpo(lonely).credit
    )


def test_arpo_without_shares_is_grpo():
    batch = random_batch(2)
    logp = random_logp(batch, seed=3)
    got = trees.arpo(batch, share=False, beta=0.04)
    assert got.loss(logp) == pytest.approx(methods.grpo(batch).loss(logp))
    np.testing.assert_array_equal(got.weight, methods.grpo(batch).weight)


def test_soft_and_hard_attribution_pull_a_shared_token_alike_where_rows_have_one_length():
    batch = tree()
    shared = batch.mask & (np.array(NODES) == 1)
    for attribution in ("soft", "hard"):
        oracle = trees.arpo(batch, attribution=attribution)
        slope = methods.gradient(oracle.loss, batch.logp_old)
        pull = np.where(shared, slope, 0.0).sum(axis=0)[1]
        expected = -2 * 0.25 / 3 * (2 / 3 - 1 / 3) / 2 / (math.sqrt(1 / 3) + 1e-6)
        assert pull == pytest.approx(expected, rel=1e-6)
