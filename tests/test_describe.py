"""The public names, and the two that read a method back."""

import polopt
from polopt import algorithms
from polopt.catalogue import METHODS

SPINE = [
    "chain",
    "add",
    "Algorithm",
    "Sampling",
    "Update",
    "Trajectories",
    "PolicyOutputs",
    "algorithms",
    "init",
    "prepare",
    "loss",
    "advance",
    "objective",
    "score",
    "methods",
    "map",
    "explain",
    "testing",
]


def test_the_public_spine_is_there():
    for name in SPINE:
        assert getattr(polopt, name) is not None
        assert name in polopt.__all__
    assert callable(polopt.testing.check_laws)


def test_the_map_has_every_method_that_ships():
    table = polopt.map()
    assert set(table) == set(algorithms.__all__)
    assert list(table) == [key for key in METHODS if key in table]
    assert [piece.name for piece in table["dr_grpo"].reward] == [
        "outcome_return",
        "group_mean_baseline",
    ]
    assert [piece.name for piece in table["cispo"].changed["trajectory"]] == [
        "token_ratio",
        "detach_weight",
    ]


def test_explain_is_text():
    assert polopt.explain(algorithms.grpo()).startswith("grpo  Group Relative Policy Optimization")
