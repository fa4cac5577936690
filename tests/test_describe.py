"""Reading a method back, and the public names."""

import polopt
from polopt import algorithms

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


def test_an_explanation_names_sides_pieces_sources_and_needs():
    text = polopt.explain(algorithms.grpo())
    reward, trajectory = text.index("reward side"), text.index("trajectory side")
    assert reward < text.index("group_std_scale") < trajectory < text.index("clip(low=0.2")
    assert "2402.03300" in text
    assert "needs    logp_old, logp_ref" in text
    assert "dead_groups" in polopt.explain(algorithms.dapo())


def test_the_map_has_every_method_on_both_sides():
    table = polopt.map()
    assert list(table) == list(algorithms.__all__)
    assert table["dr_grpo"]["reward"] == ("outcome_return", "group_mean_baseline")
    assert table["cispo"]["trajectory"] == ("token_ratio", "detach_weight")
