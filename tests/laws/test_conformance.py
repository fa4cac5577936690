"""Laws 1 to 7 over every method that ships."""

import jax
import numpy as np
import pytest

from polopt import PoloptError
from polopt.compose import coupling, prepare
from polopt.testing import LAWS, Case, check_laws, measure_lanes, on_policy, partition
from polopt.testing.draw import random_outputs, random_trajectories

from .table import FACTORIES, FACTORS

SEEDS = range(1, 4)


@pytest.mark.parametrize("key", FACTORIES)
def test_the_method_keeps_the_laws(key):
    assert check_laws(FACTORIES[key], factor=FACTORS.get(key, 1.0)) == tuple(LAWS)
    for seed in SEEDS:  # nothing is compiled again
        partition(FACTORIES[key](), seed=seed)
        on_policy(FACTORIES[key](), seed=seed, factor=FACTORS.get(key, 1.0))


@pytest.mark.parametrize("key", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"])
def test_a_group_that_agrees_or_has_one_member_has_no_credit(key):
    batch = random_trajectories(0)
    alg = FACTORIES[key]()
    if "max_length" in str(alg):
        alg = alg.replace(reward=FACTORIES["grpo"]().reward)  # the shaped rewards are not equal
    if key == "rloo":
        alg = alg.replace(reward=type(alg.reward)(alg.reward.names[1:], alg.reward.links[1:]))
    case = Case(alg=alg, trajectories=batch, outputs=random_outputs(0, batch))
    credit = measure_lanes([case])[0].credit
    reward = sum(batch.reward_parts.values()).sum(axis=1)
    quiet = 0
    for g in set(batch.group.tolist()) - {-1}:
        rows = (batch.group == g) & batch.scored
        one_episode = len(set(batch.episode[rows].tolist())) == 1
        if one_episode or np.ptp(reward[rows]) == 0:
            quiet += 1
            assert not credit[rows].any(), g
    assert quiet >= 2  # the group of one and the group with equal rewards
    assert credit.any()


def test_equal_rewards_whiten_to_nothing():
    batch = random_trajectories(3)
    last = batch.action_mask & (batch.action_mask[:, ::-1].cumsum(axis=1)[:, ::-1] == 1)
    parts = {"outcome": np.float32(0.7) * last}
    rebuilt = type(batch)(**{**vars(batch), "reward_parts": parts})
    alg = FACTORIES["reinforce_pp"]().replace(kl_in_reward=_identity())
    prepared, _ = prepare(alg, jax.tree.map(np.asarray, rebuilt))
    assert not np.any(prepared.credit)


def _identity():
    from polopt import chain

    return chain()


def test_check_laws_names_an_unknown_law():
    with pytest.raises(PoloptError, match="no law 'partitions'; did you mean 'partition'"):
        check_laws(FACTORIES["rloo"], laws=["partitions"])


def test_the_table_knows_every_coupling_it_tests():
    assert {coupling(make()) for make in FACTORIES.values()} <= {
        "none", "sequence", "group", "batch"}
