"""Laws 1 to 7 over every method that ships."""

import dataclasses

import numpy as np
import pytest

from polopt import PoloptError, chain
from polopt.algorithm import pieces
from polopt.compose import prepare
from polopt.testing import LAWS, check_laws, on_policy, partition, random_trajectories
from polopt.transform import Chain, Transform

from .table import FACTORIES, FACTORS

SEEDS = range(1, 4)
# Methods that have between them a piece of every kind, on both sides; the others are slow.
CORE = (
    *("a2c", "adaptive_entropy", "bapo", "clip_cov", "dcpo", "dpo", "dppo_kl", "gkd", "gold"),
    *("grpo", "gvpo", "icepop", "iw_opd", "prime", "remax", "treerpo", "two_sided", "vapo"),
)


def kinds(key):
    """What the pieces of a method read, write, couple and remember, and how they are joined."""
    alg = FACTORIES[key]()
    found = {type(link) for side in (alg.reward, alg.trajectory) for link in side.links}
    for _, transform in pieces(alg):
        card = transform.card
        found.add((card.side, card.reads, card.writes, card.couples, card.clock, card.term))
    return found


def test_the_core_has_a_piece_of_every_kind():
    every, core = (set().union(*map(kinds, keys)) for keys in (FACTORIES, CORE))
    assert core == every
    assert len(every - {Transform}) > 20


@pytest.mark.parametrize(
    "key", [pytest.param(k, marks=() if k in CORE else pytest.mark.slow) for k in FACTORIES]
)
def test_the_method_keeps_the_laws(key):
    assert check_laws(FACTORIES[key], factor=FACTORS.get(key, 1.0)) == tuple(LAWS)
    for seed in SEEDS:  # nothing is compiled again
        partition(FACTORIES[key](), seed=seed)
        on_policy(FACTORIES[key](), seed=seed, factor=FACTORS.get(key, 1.0))


# The part of each group method's reward side that compares: shaped rewards are not equal.
COMPARED = {"grpo": 0, "dr_grpo": 0, "dapo": 1, "gspo": 0, "cispo": 0, "rloo": 1}


@pytest.mark.parametrize("key", COMPARED)
def test_a_group_that_agrees_or_has_one_member_has_no_credit(key):
    alg, batch = FACTORIES[key](), random_trajectories(0)
    first = COMPARED[key]
    alg = alg.replace(reward=Chain(alg.reward.names[first:], alg.reward.links[first:]))
    credit = np.asarray(prepare(alg, batch)[0].credit)
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
    batch = dataclasses.replace(batch, reward_parts={"outcome": np.float32(0.7) * last})
    alg = FACTORIES["reinforce_pp"]().replace(kl_in_reward=chain())
    assert not np.any(prepare(alg, batch)[0].credit)


def test_check_laws_names_an_unknown_law():
    with pytest.raises(PoloptError, match="no law 'partitions'; did you mean 'partition'"):
        check_laws(FACTORIES["rloo"], laws=["partitions"])
