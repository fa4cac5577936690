from polopt import algorithms
from polopt.describe import table
from polopt.describe.facts import facts


def test_the_terminal_table_fits_and_has_every_method():
    lines = table.terminal().splitlines()
    assert max(map(len, lines)) <= 100
    starts = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert set(algorithms.__all__) <= set(starts)


def test_a_row_shows_what_is_changed_and_numbers_that_are_not_the_default():
    method, trajectory, reward, weights, sampling = table.cells(facts(algorithms.dapo()))
    assert method == ["dapo", "2025"]
    assert trajectory == ["token_ratio", "clip(high=0.28)"]
    assert reward[0] == "overlong_soft_penalty"  # the paper's numbers are the piece's own
    assert (weights, sampling) == (["token_mean"], ["G 16", "refill"])
    assert table.cells(facts(algorithms.dr_grpo()))[3] == ["constant_length(length=3000)"]


def test_long_calls_are_folded_where_they_have_joints():
    assert table._fold("clip(low=0.0003, high=0.0004)", 20) == ["clip(low=0.0003,", " high=0.0004)"]
    assert table._fold("sequence_sum_mean", 13) == ["sequence_sum_", " mean"]
    assert table._fold("G 16", 9) == ["G 16"]


def test_markdown_links_papers_and_pieces():
    text = table.markdown()
    assert "[Group Relative Policy Optimization](https://arxiv.org/abs/2402.03300)" in text
    assert "[`clip(high=0.28)`](trajectory_side.md#clip)" in text
    assert text.count('<a id="') == len(algorithms.__all__)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.count(" | ") for line in rows} == {5}
