import pytest

from polopt import Algorithm, Sampling, Update, add, algorithms, chain, explain
from polopt.catalogue import METHODS
from polopt.describe.cost import costs
from polopt.reward import group_mean_baseline, group_std_scale, outcome_return, remax_baseline
from polopt.trajectory import Keep, Mixture, clip, policy_gradient, token_ratio

TITLES = ("Reward side", "Trajectory side", "Token weights", "Needs", "Costs", "Repairs")


def section(text, title):
    """The lines between a heading and the next empty line."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(title))
    end = next((i for i in range(start, len(lines)) if not lines[i]), len(lines))
    return lines[start + 1 : end]


def test_an_explanation_has_its_parts_in_order():
    text = explain(algorithms.grpo)
    assert [text.index(f"\n{title}\n") for title in TITLES] == sorted(
        text.index(f"\n{title}\n") for title in TITLES
    )
    assert "2402.03300, 2024" in text.splitlines()[2]
    assert any(line.startswith("  group_std_scale(eps=1e-06") for line in section(text, "Reward"))
    assert "      from PPO, 1707.06347, eq. 7; decoupled" in text
    assert [line.split()[0] for line in section(text, "Needs")[:2]] == ["logp_old", "logp_ref"]
    assert any("dead_groups" in line for line in section(explain(algorithms.dapo), "Repairs"))


@pytest.mark.parametrize("key", algorithms.__all__)
def test_every_method_is_explained_within_the_width(key):
    text = explain(getattr(algorithms, key))
    assert max(map(len, text.splitlines())) <= 100
    assert all(f"\n{title}\n" in text for title in TITLES)
    parent = METHODS[key].parent
    if parent in algorithms.__all__:
        assert f"\nDiffers from {parent}\n" in text
    first = (getattr(algorithms, key).__doc__ or "").splitlines()[0]
    assert " ".join(first.split())[:60] in " ".join(text.split())


def test_a_narrow_terminal_is_kept_to():
    assert max(map(len, explain(algorithms.dapo, width=72).splitlines())) <= 72


def test_a_changed_method_is_compared_with_the_shipped_one():
    mine = algorithms.grpo(kl=0.1)
    assert section(explain(mine), "Differs from grpo as it ships") == [
        "  reward side: the same",
        "  trajectory side",
        "      token_ratio(to=logp_old)",
        "      clip(low=0.2, high=0.2)",
        "    ~ kl_penalty.coefficient 0.04 -> 0.1",
        "  token weights: the same",
        "  sampling: the same",
        "  update: the same",
    ]
    # The shipped docstring is not this method's.
    assert "group-normalised returns" in explain(algorithms.grpo())
    assert "group-normalised returns" not in explain(mine)


def test_a_method_of_ones_own_needs_neither_name_nor_card():
    own = Algorithm(
        reward=chain(add(outcome_return(), remax_baseline_after(), weights=(1.0, 0.5))),
        trajectory=chain(policy_gradient()),
    )
    text = explain(own, versus=algorithms.reinforce)
    assert text.startswith("a method without a name")
    assert [line.strip() for line in section(text, "Reward") if "branch" in line] == [
        "branch 1 of 2, weight 1",
        "branch 2 of 2, weight 0.5",
    ]
    assert "    + branch 2 of 2, weight 0.5" in section(text, "Differs from reinforce")
    assert "Differs" not in explain(own)


def remax_baseline_after():
    return chain(outcome_return(), remax_baseline())


def cost(alg, what):
    return dict(costs(alg)).get(what)


def test_costs_follow_from_needs():
    assert costs(algorithms.reinforce()) == [("completions", "one of each prompt")]
    assert "second set of weights; one forward pass over each rollout" in cost(
        algorithms.grpo(), "reference"
    )
    assert "forward and backward in every update" in cost(algorithms.a2c(), "critic")
    assert cost(algorithms.remax(), "companion").startswith("1 more greedy completion")
    assert "10 rounds" in cost(algorithms.dapo(), "refill")
    assert cost(algorithms.dapo(), "update").endswith("16 optimiser steps each")


def test_the_old_log_probability_costs_a_pass_only_where_it_is_read_before_or_used_again():
    assert cost(algorithms.grpo(), "logp_old") is None  # one step: the loss has it already
    assert cost(algorithms.rloo(), "logp_old")  # the KL in the reward reads it before
    reused = Algorithm(
        reward=chain(outcome_return(), group_mean_baseline(), group_std_scale()),
        trajectory=chain(token_ratio(), clip()),
        update=Update(epochs=2),
    )
    assert cost(reused, "logp_old")
    assert cost(reused, "update") == "2 passes over each rollout, 1 optimiser steps each"


def test_pieces_that_couple_rows_cost_a_pass_where_a_step_is_split():
    assert cost(algorithms.clip_cov(), "cotangent").startswith("covariance_clip reads several rows")
    assert cost(algorithms.gspo(), "cotangent") is None


def test_sampling_is_told():
    def sampled(**how):
        return Algorithm(
            reward=chain(outcome_return()),
            trajectory=chain(policy_gradient()),
            sampling=Sampling(**how),
        )

    assert cost(sampled(keep=Keep(by=max, fraction=0.25)), "keep").startswith("4 times")
    assert cost(sampled(mixture=Mixture(share=0.5)), "mixture").startswith("the teacher writes 50%")
    assert cost(algorithms.sdpo(), "hindsight").startswith("the reference reads each row once more")
    assert cost(algorithms.adaptive_entropy(), "memory").endswith("moved once an optimiser step")
