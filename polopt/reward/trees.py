"""Credit of tree nodes: rows of a group that share a beginning share its tokens.

The column `node` labels the tree node of every token, uniquely within a group. The path of a row
is the sequence of labels along its action tokens; rows that share a label share the path up to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from polopt.numerics import centre, differ, group_mean, group_std, label_ids, segment_total
from polopt.reward.returns import episode_weight, scored_rows
from polopt.reward.turns import run_starts
from polopt.transform import piece
from polopt.types import Array, Credit, Trajectories


class Tree(NamedTuple):
    """The paths of a batch. `D` is T: no path has more nodes than tokens."""

    depth: Array  # i32[N,T] the place of a token's node in its row's path, -1 without one
    through: Array  # i32[N,D] the first row through the row's node at that depth, -1 beyond its end

    def ids(self) -> Array:
        """i32[N·D]: segment ids of the nodes."""
        depths = self.through.shape[1]
        ids = self.through * depths + jnp.arange(depths)[None]
        return jnp.where(self.through < 0, -1, ids).reshape(-1)

    def at_tokens(self, table: Array, otherwise: float) -> Array:
        """f32[N,T]: for every token what stands in `table[N,D]` at its node."""
        found = jnp.take_along_axis(table, jnp.maximum(self.depth, 0), axis=1)
        return jnp.where(self.depth < 0, otherwise, found)


def tree_of(trajectories: Trajectories) -> Tree:
    """The paths of a batch, from its column `node`. O(N·T) memory."""
    node = trajectories.columns["node"].astype(jnp.int32)
    rows, width = node.shape
    inside = trajectories.action_mask & (node >= 0)
    depth = jnp.where(inside, jnp.cumsum(run_starts(node, inside), axis=1) - 1, -1)
    row, place = jnp.arange(rows)[:, None], jnp.maximum(depth, 0)
    path = jnp.full_like(node, -1).at[row, place].max(jnp.where(inside, node, -1))
    group = jnp.broadcast_to(trajectories.group[:, None], path.shape)
    depths = jnp.broadcast_to(jnp.arange(width)[None], path.shape)
    first = label_ids(group, depths, path).reshape(path.shape)
    return Tree(depth=depth, through=jnp.where(first < 0, -1, first // width))


@piece(
    "reward",
    needs=("node",),
    formula="a token of a node that m rows share counts 1/m in each of them",
    source="bookkeeping of tree samples, of no single paper",
)
def share_tree_tokens(credit: Credit, trajectories: Trajectories) -> Credit:
    """Count a shared token once in denominators and token statistics, not once per row.

    Rows that a filter took out do not share: it stands after the filters.
    """
    tree = tree_of(trajectories)
    row = jnp.arange(tree.depth.shape[0])[:, None]
    kept = (credit.keep & (tree.depth >= 0)).astype(float)
    holds = jnp.zeros_like(kept).at[row, jnp.maximum(tree.depth, 0)].max(kept)
    rows = segment_total(holds.reshape(-1), tree.ids()).reshape(holds.shape)
    share = 1 / jnp.maximum(tree.at_tokens(rows, 1.0), 1)
    return dataclasses.replace(credit, share=share)


@piece(
    "reward",
    reads="sequence",
    writes="value",
    needs=("node",),
    formula="A_it = mean of A_j over the rows j that share the token's node",
    source="ARPO, 2507.19849 (hard advantage estimation)",
    repairs=("sparse_credit",),
    differs=("the authors train with the soft form, which is plain GRPO on the rows of the tree",),
)
def shared_prefix_mean(credit: Credit, trajectories: Trajectories) -> Credit:
    """Give shared tokens the mean credit of the rows that share them, the others their own."""
    tree = tree_of(trajectories)
    scored = scored_rows(trajectories)
    row_credit, weight = (
        jnp.broadcast_to(x[:, None], tree.through.shape).reshape(-1)
        for x in (credit.sequence, scored.astype(float))
    )
    mean = group_mean(row_credit, tree.ids(), weight).reshape(tree.through.shape)
    own = credit.per_token()
    return dataclasses.replace(
        credit, value=jnp.where(tree.depth < 0, own, tree.at_tokens(mean, 0))
    )


def bernoulli_spread(mean: Array, std: Array) -> Array:
    """√(μ(1−μ)), the largest standard deviation that values in [0, 1] of mean μ can have.

    Values outside [0, 1] can spread wider than that: there it is their standard deviation.
    """
    return jnp.maximum(jnp.sqrt(jnp.maximum(mean * (1 - mean), 0)), std)


def sibling_spread(mean: Array, std: Array) -> Array:
    """The standard deviation of the siblings."""
    del mean
    return std


@piece(
    "reward",
    reads="sequence",
    writes="value",
    needs=("node",),
    formula="v_node = mean of its children's v, v_leaf = R;  A = (v − mean_siblings(v)) / (σ + ε)",
    source="TreeRPO, 2506.05183",
    repairs=("sparse_credit",),
    min_group=2,
    differs=(
        "that the paper's σ is √(μ(1−μ)) is not verified: its text and code were not to be had",
        "a row that ends where others go on counts in the value of that node, but is no sibling of"
        " the nodes that follow it",
    ),
)
def tree_backup(
    credit: Credit,
    trajectories: Trajectories,
    *,
    eps: float = 1e-6,
    scale: Callable = bernoulli_spread,
    ddof: int = 0,
    drop: bool = True,
) -> Credit:
    """Back returns up the tree and compare each node with its siblings, at any depth.

    Args:
      scale: `f(mean f32[N], std f32[N]) -> f32[N]`, the σ of siblings from their mean and standard
        deviation (of `ddof`).
      drop: take tokens of nodes out whose siblings are all of one value, as the paper prunes them.
    """
    tree, weight = tree_of(trajectories), episode_weight(trajectories)
    rows = jnp.arange(weight.shape[0])
    through = jnp.pad(tree.through, ((0, 0), (0, 1)), constant_values=-1)
    deepest = jnp.max(jnp.sum(through >= 0, axis=1))

    # At each depth a row stands for its node there, or for itself once its path has ended.
    def level(step: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        value, weight, table = carry
        depth = deepest - step
        first = jnp.where(through[:, depth] < 0, rows, through[:, depth])
        parent = jnp.where(depth > 0, through[:, depth - 1], trajectories.group)
        once = jnp.where((first == rows) & (parent >= 0), weight, 0)
        going_on = jnp.where(through[:, depth] < 0, 0, once)
        spread = scale(
            group_mean(value, parent, going_on), group_std(value, parent, going_on, ddof)
        )
        advantage = (centre(value, parent, going_on) / (spread + eps))[first]
        apart = differ(value, parent, going_on)[first]
        value = jnp.where(parent < 0, value, group_mean(value, parent, once))
        # Rows of one episode weigh one row together; a node weighs one, however many rows it has.
        weight = jnp.where(parent < 0, weight, jnp.minimum(segment_total(once, parent), 1))
        made = jnp.stack([advantage, apart.astype(advantage.dtype)])
        return value, weight, table.at[:, :, depth].set(made)

    start = (credit.sequence, weight, jnp.zeros((2, *through.shape), credit.sequence.dtype))
    advantage, apart = jax.lax.fori_loop(0, deepest + 1, level, start)[2]
    made = dataclasses.replace(credit, value=tree.at_tokens(advantage, 0.0))
    if not drop:
        return made
    return dataclasses.replace(made, keep=made.keep & (tree.at_tokens(apart, 0.0) > 0))


def alike(size: Array) -> Array:
    """Every level counts the same."""
    return jnp.ones_like(size)


def by_size(size: Array) -> Array:
    """A level counts as many times as its sub-group has members."""
    return size


@piece(
    "reward",
    reads="sequence",
    needs=("node",),
    formula="A_i = Σ_d w_d·(R_i − mean_{g_d}(R)) / Σ_d w_d,  g_0 the group, g_d the rows that share"
    " the first d nodes of row i, more than one",
    source="TreePO, 2508.17445; authors' code",
    repairs=("sparse_credit", "no_baseline"),
    invariant=("shift",),
    min_group=2,
    differs=(
        "the authors' code defaults to weights by size and trains with the plain average; it can"
        " leave out sub-groups without spread (`skip_equal`)",
    ),
)
def multi_level_group_mean(
    credit: Credit,
    trajectories: Trajectories,
    *,
    weight: Callable = alike,
    skip_equal: bool = False,
) -> Credit:
    """Compare a return with its group, and with every sub-group that shares a longer beginning.

    Args:
      weight: `f(size f32) -> f32`, how much a sub-group of that many members counts.
      skip_equal: leave sub-groups out in which all returns are equal.
    """
    tree, own = tree_of(trajectories), episode_weight(trajectories)
    group = trajectories.group
    shape = tree.through.shape
    flat_return, flat_own = (
        jnp.broadcast_to(x[:, None], shape).reshape(-1) for x in (credit.sequence, own)
    )
    ids = tree.ids()
    size = segment_total(flat_own, ids).reshape(shape)
    centred = centre(flat_return, ids, flat_own).reshape(shape)
    counted = size > 1.001  # rows of one episode weigh one, up to rounding
    if skip_equal:
        counted &= differ(flat_return, ids, flat_own).reshape(shape)
    below = jnp.where(counted, weight(size), 0)
    root = weight(segment_total(own, group))
    total = root * centre(credit.sequence, group, own) + jnp.sum(below * centred, axis=1)
    share = root + jnp.sum(below, axis=1)
    return dataclasses.replace(credit, sequence=total / jnp.where(share > 0, share, 1))
