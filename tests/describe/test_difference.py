from polopt import algorithms
from polopt.describe.difference import ADDED, CHANGED, KEPT, REMOVED, difference


def marked(old, new, section):
    return [(change.mark, change.text) for change in difference(old, new)[section]]


def test_a_method_differs_in_nothing_from_itself():
    for changes in difference(algorithms.dapo(), algorithms.dapo()).values():
        assert {change.mark for change in changes} <= {KEPT}


def test_numbers_are_changed_and_pieces_come_and_go():
    *kept, (mark, gone) = marked(algorithms.grpo(), algorithms.dapo(), "trajectory side")
    assert kept == [(KEPT, "token_ratio(to=logp_old)"), (CHANGED, "clip.high 0.2 -> 0.28")]
    assert (mark, gone[:10]) == (REMOVED, "kl_penalty")
    reward = marked(algorithms.grpo(), algorithms.dapo(), "reward side")
    assert [text.split("(")[0] for mark, text in reward if mark == ADDED] == [
        "overlong_soft_penalty",
        "drop_zero_spread_groups",
    ]
    assert [text.split("(")[0] for mark, text in reward if mark == KEPT] == [
        "outcome_return",
        "group_mean_baseline",
        "group_std_scale",
    ]


def test_the_way_back_has_the_opposite_marks():
    flip = {ADDED: REMOVED, REMOVED: ADDED, KEPT: KEPT}
    there = marked(algorithms.rloo(), algorithms.remax(), "reward side")
    back = marked(algorithms.remax(), algorithms.rloo(), "reward side")
    assert sorted((flip[mark], text) for mark, text in there if mark != CHANGED) == sorted(
        (mark, text) for mark, text in back if mark != CHANGED
    )


def test_weights_sampling_and_update_are_compared():
    old, new = algorithms.grpo(), algorithms.dapo()
    assert marked(old, new, "token weights") == [
        (REMOVED, "sequence_mean(count_empty=False)"),
        (ADDED, "token_mean()"),
    ]
    assert marked(old, new, "sampling") == [
        (CHANGED, "group_size 64 -> 16"),
        (ADDED, "refill (by=spread)"),
    ]
    assert marked(old, new, "update") == [(CHANGED, "minibatches 1 -> 16")]
    assert marked(new, old, "sampling")[1] == (REMOVED, "refill (by=spread)")


def test_an_argument_that_is_switched_off_is_a_change():
    old = algorithms.a2c()
    new = algorithms.ppo()
    assert (CHANGED, "value_loss.value_clip none -> 0.2") in marked(old, new, "trajectory side")


def test_what_moves_into_a_branch_of_a_sum_is_kept():
    assert marked(algorithms.grpo(), algorithms.gigpo(), "reward side") == [
        (ADDED, "branch 1 of 2, weight 1"),
        (KEPT, "outcome_return()"),
        (KEPT, "group_mean_baseline()"),
        (KEPT, "group_std_scale(eps=1e-06, ddof=1)"),
        (ADDED, "branch 2 of 2, weight 1"),
        (ADDED, "step_group_advantage(gamma=0.95, eps=1e-06, ddof=1)"),
    ]
    changes = difference(algorithms.grpo(), algorithms.gigpo())["reward side"]
    assert [change.depth for change in changes] == [0, 1, 1, 1, 0, 1]
