"""Credit of turns: what a turn earned, against other turns or against a critic.

A turn is the k-th run of tokens that the model wrote. Its reward is the sum of what its tokens
earned. Everything stays `[N,T]`: a turn's number stands on its first token, on its last, or on all.
Each row is read as an episode of its own; group statistics count the rows of one episode once.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from polopt.numerics import centre, group_std, label_ids, suffix_sum, turn_total
from polopt.reward.gae import generalised_advantage, last_value
from polopt.reward.returns import episode_return, episode_weight
from polopt.transform import Column, piece
from polopt.types import Array, Credit, Trajectories


def run_starts(label: Array, mask: Array) -> Array:
    """bool[N,T]: True at masked-in tokens whose label is not that of the masked-in token before.

    >>> label, mask = jnp.array([[4, 4, 0, 4, 5]]), jnp.array([[True, True, False, True, True]])
    >>> run_starts(label, mask).astype(int).tolist()
    [[1, 0, 0, 0, 1]]
    """
    at = jnp.where(mask, jnp.arange(mask.shape[1])[None], -1)
    latest = jax.lax.associative_scan(jnp.maximum, at, axis=1)  # on CPU faster than `cummax`
    before = jnp.pad(latest[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    previous = jnp.take_along_axis(label, jnp.maximum(before, 0), axis=1)
    return mask & ((before < 0) | (label != previous))


def action_turn(trajectories: Trajectories) -> Array:
    """i32[N,T]: the turn of every trained token, -1 elsewhere."""
    return jnp.where(trajectories.action_mask, trajectories.turn, -1)


def turn_starts(turn: Array) -> Array:
    """bool[N,T]: the first token of every turn."""
    return run_starts(turn, turn >= 0)


def turn_ends(turn: Array) -> Array:
    """bool[N,T]: the last token of every turn."""
    return turn_starts(turn[:, ::-1])[:, ::-1]


def _everywhere(x: Array, at: Array, turn: Array) -> Array:
    """What stands at one marked token of each turn, on all tokens of the turn."""
    return turn_total(jnp.where(at, x, 0), turn)


def _normalised(x: Array, ids: Array, weight: Array, eps: Array | None, ddof: int) -> Array:
    """(x − mean) / (std + ε) over the members of each id, ε None for the mean alone; 0 at -1."""
    weight = jnp.where(ids < 0, 0, weight)
    centred = centre(x, ids, weight)
    return centred if eps is None else centred / (group_std(x, ids, weight, ddof) + eps)


@piece(
    "reward",
    reads="reward",
    writes="value",
    formula="A_it = A_O,i + c·A_T,ik in turn k; A_O,i alone in the last turn",
    source="MT-GRPO, 2505.11821; its authors' code, for two turns",
    repairs=("sparse_credit",),
    min_group=2,
    differs=(
        "any number of turns, as in re-implementations: turn k is compared with turn k of those"
        " rows of its group that also go on after it",
        "the outcome is what is earned in the last turn, so that a row of one turn brings all it"
        " earned; the authors' code compares the sum of both rewards of a row that called no tool"
        " with the sums of the others",
    ),
)
def per_turn_group_norm(
    credit: Credit,
    trajectories: Trajectories,
    *,
    coefficient: float = 1.0,
    eps: float = 1e-4,
    ddof: int = 1,
) -> Credit:
    """Compare the outcome with the group's, and every earlier turn with the same turn of others.

    With one turn per row it is GRPO's group norm.
    """
    turn, group = action_turn(trajectories), trajectories.group
    weight = episode_weight(trajectories)
    last = jnp.max(turn, axis=1, keepdims=True)  # -1 where nothing was written: paid at the prompt
    earned = jnp.where(turn == last, credit.reward, 0)
    outcome = _normalised(episode_return(earned, trajectories), group, weight, eps, ddof)

    starts = turn_starts(turn) & (turn < last)
    ids = jnp.where(starts & (group >= 0)[:, None], group[:, None] * turn.shape[1] + turn, -1)
    own = jnp.broadcast_to(weight[:, None], turn.shape)
    flat = (turn_total(credit.reward, turn).reshape(-1), ids.reshape(-1), own.reshape(-1))
    step = _everywhere(_normalised(*flat, eps, ddof).reshape(turn.shape), starts, turn)
    return dataclasses.replace(credit, value=outcome[:, None] + coefficient * step)


@piece(
    "reward",
    reads="reward",
    writes="value",
    needs=("anchor",),
    formula="A_ik = (G_ik − mean_c(G)) / (std_c(G) + ε),  G_ik = Σ_{j≥k} γ^{j−k} r_ij",
    source="GiGPO, 2505.10978, eq. 5-7",
    repairs=("sparse_credit",),
    differs=(
        "a step is a turn of its row, where the authors' code makes each step a row of its own",
        "the paper also leaves the standard deviation out (ε = None), which is the default of the"
        " authors' code",
    ),
)
def step_group_advantage(
    credit: Credit,
    trajectories: Trajectories,
    *,
    gamma: float = 0.95,
    eps: float | None = 1e-6,
    ddof: int = 1,
) -> Credit:
    """Compare the return of a turn with all turns of its group taken in the same state.

    A state met once, and a turn without an anchor (-1), have credit 0. GiGPO adds it to the
    episode's: `add(chain(outcome_return(), group_mean_baseline()), step_group_advantage())`.
    """
    turn = action_turn(trajectories)
    starts = turn_starts(turn)
    anchor = jnp.where(starts, trajectories.columns["anchor"].astype(jnp.int32), -1)
    group = jnp.broadcast_to(trajectories.group[:, None], turn.shape)
    returns = suffix_sum(turn_total(credit.reward, turn), gamma, starts)
    counted = trajectories.scored[:, None] & starts
    flat = (returns.reshape(-1), label_ids(group, anchor), counted.reshape(-1).astype(float))
    step = _normalised(*flat, eps, ddof).reshape(turn.shape)
    return dataclasses.replace(credit, value=_everywhere(step, starts, turn))


@piece(
    "reward",
    reads="reward",
    writes="value",
    needs=("value",),
    formula="A_k = Σ_j (γλ)^j δ_{k+j},  δ_k = r_k + γV_{k+1} − V_k, V_k read"
    " before the turn's first token",
    source="Turn-PPO, 2512.17008 (turns as actions; γ, λ from summaries of it)",
    repairs=("sparse_credit", "no_baseline"),
    differs=(
        "a truncated row ends in value 0 unless `bootstrap` names a column with the value of its"
        " last state",
    ),
)
def turn_gae(
    credit: Credit,
    trajectories: Trajectories,
    *,
    gamma: float = 0.99,
    lam: float = 0.9,
    bootstrap: Column | None = None,
) -> Credit:
    """GAE with whole turns as actions: one credit for all tokens of a turn.

    The critic's target `returns` stands on the first token of each turn and is 0 elsewhere: a
    value loss must read no other token (`turn_starts`).
    """
    turn, value = action_turn(trajectories), trajectories.columns["value"]
    starts, last = turn_starts(turn), last_value(trajectories, bootstrap)
    reward = turn_total(credit.reward, turn)
    advantage = generalised_advantage(reward, value, starts, last, gamma, lam)
    returns = jnp.where(starts, advantage + value, 0)
    targets = {**credit.targets, "returns": returns}
    return dataclasses.replace(credit, value=_everywhere(advantage, starts, turn), targets=targets)


@piece(
    "reward",
    reads="reward",
    writes="value",
    needs=("value",),
    formula="A^K_k = δ_k + ΓΛ·A^K_{k+1},  δ_k = r_k + Γ·V_{k+1} − V_k at turn ends; then GAE(γ, λ)"
    " inside each turn, whose last token earns A^K_k + V_k",
    source="VAGEN and RAGEN (2504.20073), as released; Verlog for a λ of its own per level",
    repairs=("sparse_credit", "no_baseline"),
    differs=(
        "the released code finds turn ends by a non-zero reward and so loses turns that earned"
        " nothing; here they are recorded",
        "what a turn earns is summed on its last token, so that a reward inside a turn counts once",
        "a truncated row ends in value 0 unless `bootstrap` names a column with the value of its"
        " last state",
    ),
)
def bi_level_gae(
    credit: Credit,
    trajectories: Trajectories,
    *,
    gamma_turn: float = 0.95,
    lam_turn: float = 1.0,
    gamma: float = 1.0,
    lam: float = 1.0,
    bootstrap: Column | None = None,
) -> Credit:
    """Credit from turn to turn, then from token to token inside each turn.

    The released code has one λ for both levels. The critic's target `returns = A + V` stands on
    every token.
    """
    turn, value = action_turn(trajectories), trajectories.columns["value"]
    inside, ends = turn >= 0, turn_ends(turn)
    last, reward = last_value(trajectories, bootstrap), turn_total(credit.reward, turn)
    high = generalised_advantage(reward, value, ends, last, gamma_turn, lam_turn)
    earned = jnp.where(ends, high + value, 0)
    advantage = _inside_turns(earned, value, inside, ends, gamma, lam)
    returns = jnp.where(inside, advantage + value, 0)
    targets = {**credit.targets, "returns": returns}
    return dataclasses.replace(credit, value=advantage, targets=targets)


def _inside_turns(
    reward: Array, value: Array, inside: Array, ends: Array, gamma: Array, lam: Array
) -> Array:
    """[N,T]: GAE in which every turn ends an episode; zero outside turns."""

    def step(
        carry: tuple[Array, Array], column: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], Array]:
        r, v, counted, end = column
        next_value, next_advantage = (jnp.where(end, 0, x) for x in carry)
        advantage = r + gamma * next_value - v + gamma * lam * next_advantage
        kept = (jnp.where(counted, v, carry[0]), jnp.where(counted, advantage, carry[1]))
        return kept, jnp.where(counted, advantage, 0)

    start = (jnp.zeros_like(value[:, 0]), jnp.zeros_like(value[:, 0]))
    columns = (reward.T, value.T, inside.T, ends.T)
    return jax.lax.scan(step, start, columns, reverse=True)[1].T
