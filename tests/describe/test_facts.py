import json

import pytest

from polopt import Algorithm, PoloptError, Sampling, add, algorithms, chain
from polopt.columns import jsd
from polopt.describe.facts import as_json, built, facts, method_map
from polopt.describe.recorded import COLUMNS, MODELS
from polopt.reward import group_mean_baseline, outcome_return, reward_to_go
from polopt.trajectory import Companion, Refill, divergence_loss, policy_gradient
from polopt.transform import Add


def make(**changes):
    given = {
        "reward": chain(outcome_return()),
        "trajectory": chain(policy_gradient()),
        "name": "mine",
        **changes,
    }
    return Algorithm(**given)


@pytest.mark.parametrize(
    ("changes", "sides"),
    [
        ({}, ()),
        ({"reward": chain(reward_to_go())}, ("reward",)),
        ({"reward": chain(outcome_return(), group_mean_baseline())}, ("reward",)),
        ({"sampling": Sampling(group_size=8)}, ()),
        ({"sampling": Sampling(refill=Refill(by=max))}, ("trajectory",)),
        ({"sampling": Sampling(companion=Companion(column="greedy_return"))}, ()),
        ({"trajectory": algorithms.grpo().trajectory}, ("trajectory",)),
    ],
)
def test_sides_are_read_from_the_composition(changes, sides):
    assert facts(make(**changes)).sides == sides


def test_what_a_sum_is_made_of_counts():
    both = add(outcome_return(), chain(outcome_return(), group_mean_baseline()))
    entry = facts(make(reward=chain(both)))
    assert isinstance(both, Add)
    assert [piece.name for piece in entry.changed["reward"]] == ["group_mean_baseline"]


@pytest.mark.parametrize(
    ("key", "models"),
    [
        ("reinforce", ()),
        ("dr_grpo", ()),
        ("grpo", ("reference",)),
        ("a2c", ("critic",)),
        ("ppo", ("reference", "critic")),
        ("opd", ("teacher",)),
        ("sdpo", ("reference",)),  # its teacher is an average of the policy
        ("prime", ("reference", "prm")),
        ("flowrl", ("reference", "log_z")),
    ],
)
def test_models_follow_from_columns(key, models):
    assert facts(getattr(algorithms, key)()).models == models


def test_models_follow_from_wanted_columns_and_from_sampling():
    teacher = chain(policy_gradient(), divergence_loss(jsd(0.5, "teacher")))
    assert facts(make(trajectory=teacher)).models == ("teacher",)
    value = Companion(column="optimal_value", policy="reference", samples=8)
    assert facts(make(sampling=Sampling(companion=value))).models == ("reference",)


def test_every_column_that_a_shipped_method_reads_is_explained():
    for entry in method_map().values():
        assert set(entry.needs) | set(entry.wants) <= set(COLUMNS), entry.key
    assert {column.model for column in COLUMNS.values()} - {None} == set(MODELS)


def test_json_holds_everything_as_plain_data():
    entry = as_json(facts(algorithms.dapo()))
    assert json.loads(json.dumps(entry)) == entry
    assert entry["sides"] == ["reward", "trajectory"]
    assert entry["pieces"]["trajectory"][1] == {
        "name": "clip",
        "arguments": {"low": 0.2, "high": 0.28},
    }
    assert entry["sampling"]["refill"]["by"] == "spread"
    assert (entry["year"], entry["parent"], entry["models"]) == (2025, "grpo", [])


def test_what_is_not_a_method_is_refused():
    with pytest.raises(PoloptError, match=r"expected a polopt\.Algorithm"):
        built(lambda: 3)
