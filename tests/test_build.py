import numpy as np
import pytest

from polopt import PoloptError, Stop, Trajectories
from polopt.build import earned_at, turns

PROMPTS, COMPLETIONS = [[1, 2], [1, 2], [3]], [[4, 5, 6], [7], []]


def build(**changes):
    given = {
        "prompts": PROMPTS,
        "completions": COMPLETIONS,
        "rewards": [1.0, 0.5, 2.0],
        "group": [0, 0, 1],
        **changes,
    }
    return Trajectories.build(
        given.pop("prompts"), given.pop("completions"), given.pop("rewards"), **given
    )


def test_rows_are_left_aligned_and_padded_on_the_right():
    made = build(width=6, temperature=0.7)
    assert made.tokens.tolist() == [[1, 2, 4, 5, 6, 0], [1, 2, 7, 0, 0, 0], [3, 0, 0, 0, 0, 0]]
    assert made.length.tolist() == [5, 3, 1]
    assert made.prompt_length.tolist() == [2, 2, 1]
    assert made.action_mask.sum(axis=1).tolist() == [3, 1, 0]
    assert made.group.tolist() == [0, 0, 1]
    assert made.episode.tolist() == made.id.tolist() == [0, 1, 2]
    np.testing.assert_allclose(made.temperature, 0.7)
    assert made.scored.all()


def test_an_outcome_stands_at_the_last_action_or_the_last_prompt_token():
    reward = build().reward_parts["reward"]
    assert reward.tolist() == [[0, 0, 0, 0, 1], [0, 0, 0.5, 0, 0], [2, 0, 0, 0, 0]]
    mask = np.array([[False, True, False], [False] * 3])
    assert earned_at(mask, np.array([1, 2])).tolist() == [1, 1]


def test_rewards_per_token_parts_and_abstention():
    made = build(rewards={"outcome": [[0, 0, 3.0], None, 1.0], "format": [0.1, 0.2, 0.3]})
    assert made.reward_parts["outcome"].sum(axis=1).tolist() == [3, 0, 1]
    np.testing.assert_allclose(made.reward_parts["format"].sum(axis=1), [0.1, 0.2, 0.3])
    assert made.scored.tolist() == [True, False, True]


def test_a_turn_is_a_run_of_actions():
    mask = np.array([[0, 1, 1, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0, 0]], bool)
    assert turns(mask).tolist() == [[-1, 0, 0, -1, 1, -1, -1, 2], [0] + [-1] * 7]
    made = build(action_mask=[[True, False, True], [True], []])
    assert made.turn[0].tolist() == [-1, -1, 0, -1, 1]


def test_log_probabilities_and_stops_are_recorded():
    made = build(logp_sampler=[[-0.1, -0.2, -0.3], [-0.4], []], stop=[Stop.EOS, Stop.LENGTH, 0])
    np.testing.assert_allclose(made.logp_sampler[0], [0, 0, -0.1, -0.2, -0.3])
    assert made.stop.tolist() == [1, 3, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"completions": [[4]]}, "completions has 1 rows but there are 3 prompts"),
        ({"rewards": [1.0]}, r"rewards\['reward'\] has 1 rows but there are 3 prompts"),
        (
            {"rewards": [[1.0], 0.0, 0.0]},
            r"rewards\['reward'\]\[0\] has 1 entries but its completion "
            "has 3 tokens",
        ),
        ({"rewards": [float("nan"), 0, 0]}, r"rewards\['reward'\]\[0\] is not finite; None says"),
        ({"logp_sampler": [[-1.0], [-1.0], []]}, r"logp_sampler\[0\] has 1 entries"),
        ({"action_mask": [[True] * 3, [True] * 2, []]}, r"action_mask\[1\] has 2 entries"),
        ({"stop": [1]}, "stop has 1 rows"),
        ({"group": 2}, "group=2 does not divide the 3 rows"),
        ({"group": 0}, "group=0 does not divide"),
        ({"group": [0, 1]}, "group has 2 ids but there are 3 rows"),
        ({"group": [0, 0, 3]}, r"group ids must lie in \[0, 3\); got 0..3"),
        ({"group": [0, 1, 1]}, "rows 1 and 2 are in group 1 but have different prompts"),
        ({"width": 4}, "row 0 has 5 tokens; width is 4"),
    ],
)
def test_bad_input_is_one_clear_line(changes, message):
    with pytest.raises(PoloptError, match=message) as caught:
        build(**changes)
    assert "\n" not in str(caught.value)
