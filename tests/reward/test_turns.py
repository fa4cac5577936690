"""Turn credit against literals, and what it is where turns are rows or tokens."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from polopt import Trajectories, add, chain, piece
from polopt.numerics import turn_total
from polopt.reward import (
    bi_level_gae,
    gae,
    group_mean_baseline,
    group_std_scale,
    outcome_return,
    per_turn_group_norm,
    step_group_advantage,
    turn_gae,
)
from polopt.reward.turns import action_turn, turn_ends, turn_starts
from polopt.testing import LawBroken, check_laws, random_trajectories
from reward.handmade import COMPILED, method, near, run

ROOT = np.sqrt(0.5)
TWO_TURNS = [True, True, False, True]


def batch(rewards, **columns):
    """Rows of two turns with an observation between them: tokens 1 and 2, then token 4."""
    n = len(rewards)
    made = Trajectories.build(
        [[7]] * n, [[9] * 4] * n, rewards, group=n, action_mask=[TWO_TURNS] * n
    )
    return dataclasses.replace(made, columns={k: np.array(v) for k, v in columns.items()})


def test_where_turns_start_and_end():
    turn = action_turn(batch([[0.0] * 4]))
    near(turn_starts(turn), [[0, 1, 0, 0, 1]])
    near(turn_ends(turn), [[0, 0, 1, 0, 1]])


def test_a_turn_is_compared_with_the_same_turn_of_others():
    on = batch([[0.25, 0.75, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    value = run(on, per_turn_group_norm(0.5, 0.0)).value
    near(value[0, [1, 2, 4]], [1.5 * ROOT, 1.5 * ROOT, ROOT])
    near(value[1], -np.asarray(value[0]))


def test_a_last_turn_is_in_no_turn_statistic():
    """The third row stops after one turn: what it earned there is its outcome."""
    on = batch([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0]])
    mask = on.action_mask.copy()
    mask[2, 4] = False
    on = dataclasses.replace(on, action_mask=mask, turn=np.where(mask, on.turn, -1))
    value = run(on, per_turn_group_norm(1.0, 0.0)).value
    outcome = np.array([-1, -1, 2]) / np.sqrt(3)
    near(value[:, 1], outcome + np.array([ROOT, -ROOT, 0]))
    near(value[:2, 4], outcome[:2])


def test_one_turn_is_a_group_norm():
    on = random_trajectories(3)
    turn = np.where(on.action_mask, 0, -1)
    on = dataclasses.replace(on, turn=turn)
    group = run(on, outcome_return(), group_mean_baseline(), group_std_scale(1e-4)).sequence
    near(run(on, per_turn_group_norm()).value, np.broadcast_to(group[:, None], turn.shape))


def test_turns_taken_in_one_state_are_compared():
    """Returns at γ = ½: ½ and 1 in the first row, 0 and 0 in the second."""
    rewards = [[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    on = batch(rewards, anchor=[[-1, 5, 5, -1, 6], [-1, 5, 5, -1, 5]])
    value = run(on, step_group_advantage(0.5, None)).value
    near(value[:, 1:], [[1 / 3, 1 / 3, 0, 0], [-1 / 6, -1 / 6, 0, -1 / 6]])
    scaled = run(on, step_group_advantage(0.5, 0.5, 1)).value
    near(scaled[0, 1], (1 / 3) / (np.sqrt(1 / 12) + 0.5))


def test_states_are_compared_within_a_group_and_only_where_known():
    rewards = [[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    on = batch(rewards, anchor=[[-1, 5, 5, -1, -1], [-1, 5, 5, -1, -1]])
    near(run(on, step_group_advantage(1.0, None)).value[:, [1, 4]], [[0.5, 0], [-0.5, 0]])
    apart = dataclasses.replace(on, group=np.array([0, 1], np.int32))
    assert not np.any(run(apart, step_group_advantage(1.0, None)).value)
    unscored = dataclasses.replace(on, scored=np.array([True, False]))
    assert not np.any(run(unscored, step_group_advantage(1.0, None)).value)


def test_turn_gae():
    on = batch([[0.25, 0.75, 0.0, 2.0]], value=[[7.0, 0.5, 7.0, 7.0, 0.25]])
    out = run(on, turn_gae(0.5, 0.5))
    near(out.value, [[0, 1.0625, 1.0625, 0, 1.75]])  # δ = 1 + ½·¼ − ½ and 2 − ¼
    near(out.targets["returns"], [[0, 1.5625, 0, 0, 2]])
    on = batch([[0.0] * 4], value=[[0.0] * 5], bootstrap_value=[4.0])
    near(run(on, turn_gae(0.5, 1.0, "bootstrap_value")).value, [[0, 1, 1, 0, 2]])


def test_bi_level_gae():
    on = batch([[0.25, 0.75, 0.0, 2.0]], value=[[7.0, 0.5, 0.25, 7.0, 0.25]])
    out = run(on, bi_level_gae(0.5, 0.5, 0.5, 0.5))
    # Ends: δ = 1 + ½·¼ − ¼ and 2 − ¼; inside: δ = ½·¼ − ½.
    end = 0.875 + 0.25 * 1.75
    near(out.value, [[0, -0.375 + 0.25 * end, end, 0, 1.75]])
    near(out.targets["returns"], [[0, 0.125 + 0.25 * end, 0.25 + end, 0, 2]])


def test_bi_level_gae_keeps_a_turn_that_earned_nothing():
    on = batch([[0.0, 0.0, 0.0, 2.0]], value=[[0.0] * 5])
    near(run(on, bi_level_gae(0.5)).value, [[0, 1, 1, 0, 2]])


def test_turns_of_one_token_are_gae():
    on = random_trajectories(5)
    turn = np.where(on.action_mask, np.cumsum(on.action_mask, axis=1) - 1, -1)
    on = dataclasses.replace(on, turn=turn.astype(np.int32))
    expected = np.asarray(run(on, gae(0.9, 0.8, bootstrap="bootstrap_value")).value)
    for link in (
        turn_gae(0.9, 0.8, bootstrap="bootstrap_value"),
        bi_level_gae(0.9, 0.8, 0.3, 0.2, "bootstrap_value"),
    ):
        near(np.asarray(run(on, link).value)[on.action_mask], expected[on.action_mask])


STEPS = add(
    chain(outcome_return(), group_mean_baseline()),
    per_turn_group_norm(0.5),
    step_group_advantage(),
    turn_gae(),
    bi_level_gae(lam=0.9, bootstrap="bootstrap_value"),
)


def test_laws():
    check_laws(method(STEPS), laws=COMPILED)


@piece("reward", reads="reward", writes="value")
def neighbours_turn(credit, trajectories):
    """The baseline of a turn is what the row above earned in it, whichever row that is."""
    reward = turn_total(credit.reward, action_turn(trajectories))
    return dataclasses.replace(credit, value=reward - jnp.roll(reward, 1, axis=0))


def test_broken_turns_break_laws():
    with pytest.raises(LawBroken, match="partition"):
        check_laws(method(neighbours_turn()), laws=["partition"])
