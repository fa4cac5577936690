"""Tree credit against literals, a recursion over the tree, and what it is on a flat one."""

import dataclasses
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt import Trajectories, add, chain, piece
from polopt.reward import (
    batch_whiten,
    by_size,
    drop_truncated,
    group_mean_baseline,
    group_std_scale,
    multi_level_group_mean,
    outcome_return,
    share_tree_tokens,
    shared_prefix_mean,
    sibling_spread,
    tree_backup,
)
from polopt.reward.trees import tree_of
from polopt.testing import LawBroken, check_laws, random_trajectories
from polopt.types import Stop
from reward.handmade import COMPILED, method, near, run

ROOT = 0.25 / np.sqrt(0.25 * 0.75)


def batch(rewards=(1.0, 0.0, 0.0, 0.7), paths=((1, 1, 2), (1, 1, 3), (4, 4, 4), (1, 1, 2)), **more):
    """A tree of three rows: two share node 1, the third is alone; then a group of one."""
    completions = [[9] * len(p) for p in paths]
    made = Trajectories.build([[7]] * 4, completions, list(rewards), group=[0, 0, 0, 3], width=4)
    node = np.full((4, 4), 99, np.int32)  # what stands off the mask is garbage
    for row, path in zip(node, paths, strict=True):
        row[1 : 1 + len(path)] = path
    return dataclasses.replace(made, columns={"node": node}, **more)


def test_paths():
    tree = jax.jit(tree_of)(batch())
    near(tree.depth[:, 1:], [[0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 1]])
    near(tree.through[:, :2], [[0, 0], [0, 1], [2, -1], [3, 3]])


def test_backed_up_values_are_compared_with_their_siblings():
    value = run(batch(), outcome_return(), tree_backup(0.0)).value
    near(value[:3, 1:], [[ROOT, ROOT, 1], [ROOT, ROOT, -1], [-ROOT, -ROOT, -ROOT]])
    near(value[3], 0)
    plain = run(batch(), outcome_return(), tree_backup(0.0, sibling_spread)).value
    near(plain[:3, 1:], [[1, 1, 1], [1, 1, -1], [-1, -1, -1]])


def test_siblings_of_equal_value_have_no_credit():
    value = run(batch(rewards=(1.0, 0.0, 0.5, 0.7)), outcome_return(), tree_backup(0.0)).value
    near(value[:3, 1:], [[0, 0, 1], [0, 0, -1], [0, 0, 0]])


def test_a_row_that_ends_where_others_go_on_is_a_leaf_of_their_node_but_no_sibling():
    on = batch(paths=((1, 1), (1, 1, 3), (2,), (1,)), rewards=(1.0, 0.0, 0.0, 0.7))
    out = run(on, outcome_return(), tree_backup())
    # The first node is worth the mean of 1 and 0, against 0; what follows it is alone.
    near(out.value[:3, 1:], [[ROOT, ROOT, 0], [ROOT, ROOT, 0], [-ROOT, 0, 0]])
    kept = [[True, True, False], [True, True, False], [True, False, False]]
    assert out.keep[:3, 1:].tolist() == kept


def test_a_row_without_a_score_is_no_leaf_but_shares_its_nodes():
    on = batch(scored=np.array([True, False, True, True]))
    value = run(on, outcome_return(), tree_backup()).value
    near(value[:3, 1], [1, 1, -1])
    assert not np.any(value[0, 3])


def test_a_flat_tree_is_a_group_norm():
    on = batch(paths=((1,), (2,), (3,), (1,)))
    group = run(on, outcome_return(), group_mean_baseline(), group_std_scale(ddof=0))
    tree = run(on, outcome_return(), tree_backup(1e-6, sibling_spread))
    near(tree.value[:, 1], group.sequence)


def backup_by_recursion(on, returns):
    """{(row, position): credit}: every tree is built as nested dictionaries."""
    out = {}
    weight = np.asarray(on.scored & (on.length > 0), float)
    for g in set(on.group[on.group >= 0].tolist()):
        tree, leaves = defaultdict(list), {}
        for i in np.flatnonzero(on.group == g).tolist():
            path = ()
            for t in np.flatnonzero(on.action_mask[i]):
                label = int(on.columns["node"][i, t])
                if not path or path[-1] != label:
                    if (*path, label) not in tree[path]:
                        tree[path].append((*path, label))
                    path = (*path, label)
                out[i, t] = path
            if weight[i]:
                tree[path].append(i)
                leaves[i] = returns[i]

        def value(node, tree=tree, leaves=leaves):
            if not isinstance(node, tuple):
                return leaves[node]
            values = [v for v in map(value, tree[node]) if v is not None]
            return float(np.mean(values)) if values else None

        for place, node in list(out.items()):
            if on.group[place[0]] == g and isinstance(node, tuple):
                siblings = [value(c) for c in tree[node[:-1]] if isinstance(c, tuple)]
                siblings = [v for v in siblings if v is not None]
                mean = np.mean(siblings) if siblings else 0.0
                spread = max(np.sqrt(max(mean * (1 - mean), 0)), np.std(siblings or [0.0]))
                own = value(node)
                equal = own is None or np.ptp(siblings) < 1e-9
                out[place] = 0.0 if equal else (own - mean) / (spread + 1e-6)
    return out


def test_against_a_recursion_over_the_tree():
    for seed in range(4):
        on = random_trajectories(seed, rows=20, columns=("logp_old", "node"))
        alone = np.where(on.group < 0, -1, np.arange(20, dtype=np.int32))
        on = dataclasses.replace(on, episode=alone)
        expected = np.zeros(on.tokens.shape)
        parts = {k: np.where(on.scored[:, None], v, 0) for k, v in on.reward_parts.items()}
        on = dataclasses.replace(on, reward_parts=parts)
        returns = sum(parts.values()).sum(axis=1)
        for place, credit in backup_by_recursion(on, returns).items():
            expected[place] = credit
        assert np.count_nonzero(expected) > 10
        got = run(on, outcome_return(), tree_backup()).value
        near(np.where(on.scored[:, None], got, 0), expected * on.scored[:, None])


def test_levels_of_sub_groups():
    on = batch()
    near(
        run(on, outcome_return(), multi_level_group_mean()).sequence,
        [(2 / 3 + 1 / 2) / 2, (-1 / 3 - 1 / 2) / 2, -1 / 3, 0],
    )
    near(
        run(on, outcome_return(), multi_level_group_mean(by_size)).sequence,
        [(3 * 2 / 3 + 2 / 2) / 5, (-3 / 3 - 2 / 2) / 5, -1 / 3, 0],
    )
    equal = batch(rewards=(1.0, 1.0, 0.0, 0.7))
    near(run(equal, outcome_return(), multi_level_group_mean()).sequence[:2], [1 / 6, 1 / 6])
    skipped = run(equal, outcome_return(), multi_level_group_mean(skip_equal=True)).sequence
    near(skipped, [1 / 3, 1 / 3, -2 / 3, 0])


def test_levels_of_a_flat_tree_are_the_group_mean():
    on = batch(paths=((1,), (2,), (3,), (1,)))
    near(
        run(on, outcome_return(), multi_level_group_mean()).sequence,
        run(on, outcome_return(), group_mean_baseline()).sequence,
    )


def test_shared_tokens_have_the_mean_credit_of_their_rows():
    sequence = np.array([1.0, -3.0, 5.0, 2.0], np.float32)
    value = run(batch(), shared_prefix_mean(), sequence=sequence).value
    near(value[:, 1:], [[-1, -1, 1], [-1, -1, -3], [5, 5, 5], [2, 2, 2]])


def test_shared_tokens_count_once():
    on = batch(stop=np.array([Stop.EOS, Stop.LENGTH, Stop.EOS, Stop.EOS], np.int32))
    near(
        run(on, share_tree_tokens()).share[:, 1:], [[0.5, 0.5, 1], [0.5, 0.5, 1], [1] * 3, [1] * 3]
    )
    filtered = run(on, drop_truncated(), share_tree_tokens()).share
    near(filtered[0], 1)


TREE = add(
    chain(outcome_return(), tree_backup()),
    chain(outcome_return(), multi_level_group_mean(by_size, True), shared_prefix_mean()),
)


def test_laws():
    check_laws(method(TREE, share_tree_tokens(), batch_whiten()), laws=COMPILED)


@piece("reward", needs=("node",))
def first_row_owns(credit, trajectories):
    """A shared token counts in the first of its rows, whose place in the batch is an accident."""
    tree = tree_of(trajectories)
    row = jnp.arange(tree.through.shape[0])[:, None]
    first = (tree.through == row).astype(float)
    return dataclasses.replace(credit, share=tree.at_tokens(first, 1.0))


def test_broken_trees_break_laws():
    with pytest.raises(LawBroken, match="partition"):
        check_laws(method(outcome_return(), first_row_owns()), laws=["partition"])
