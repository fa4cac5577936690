"""Methods that learn from a teacher, on the student's own samples."""

from polopt.aggregate import sequence_mean, token_mean
from polopt.algorithm import Algorithm
from polopt.algorithms.grpo import grpo
from polopt.columns import jsd, kl_full
from polopt.reward import (
    future_mean_return,
    outcome_return,
    position_weight,
    teacher_credit,
    teacher_reward,
)
from polopt.trajectory import (
    Hindsight,
    Mixture,
    Sampling,
    Update,
    clip,
    divergence_loss,
    policy_gradient,
    reverse_kl_loss,
    sorted_distance_loss,
    teacher_surrogate,
    token_ratio,
    unclipped,
)
from polopt.transform import add, chain


def gkd(*, beta: float = 0.5, data: float = 0.5) -> Algorithm:
    """GKD (2306.13649): a generalised Jensen-Shannon divergence over the whole vocabulary.

    A share `data` of the prompts is completed by the teacher, the others by the student.
    """
    return Algorithm(
        name="gkd",
        reward=chain(outcome_return()),
        trajectory=chain(divergence_loss(1.0, jsd(beta, "teacher"))),
        aggregate=token_mean(),
        sampling=Sampling(mixture=Mixture(share=data)),
    )


def minillm() -> Algorithm:
    """MiniLLM (2306.08543): the sequence's reverse KL: one step exactly, the rest as a reward."""
    return Algorithm(
        name="minillm",
        reward=chain(teacher_reward(source="logp_old", alone=True), future_mean_return()),
        trajectory=chain(
            token_ratio("logp_behaviour"), clip(0.2, 0.2), divergence_loss(1.0, kl_full("teacher"))
        ),
        aggregate=token_mean(),
        sampling=Sampling(mixture=Mixture(alpha=0.2)),
    )


def opd(*, coefficient: float = 1.0) -> Algorithm:
    """On-policy distillation (Thinking Machines 2025): each token's reverse KL as its credit."""
    return Algorithm(
        name="opd",
        reward=chain(teacher_credit(coefficient)),
        trajectory=chain(token_ratio("logp_behaviour"), unclipped()),
        aggregate=token_mean(),
        sampling=Sampling(group_size=4),
    )


def iw_opd(*, gain: float = 0.5) -> Algorithm:
    """IW-OPD (2606.22600): early tokens weigh more, by the gap that is still to come."""
    return Algorithm(
        name="iw_opd",
        reward=chain(teacher_credit(), position_weight(gain)),
        trajectory=chain(policy_gradient()),
        aggregate=token_mean(),
        sampling=Sampling(group_size=4),
    )


def sdpo() -> Algorithm:
    """SDPO (2601.20802): the teacher is the policy itself, shown a sibling that succeeded."""
    return Algorithm(
        name="sdpo",
        reward=chain(outcome_return()),
        trajectory=chain(token_ratio(), reverse_kl_loss(bound=2.0)),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8),
        update=Update(reference="ema", teacher=Hindsight(policy="reference")),
    )


def gold() -> Algorithm:
    """GOLD (Hugging Face 2025): distil across tokenizers, by sorted probabilities of spans."""
    return Algorithm(
        name="gold",
        reward=chain(outcome_return()),
        trajectory=chain(sorted_distance_loss()),
        aggregate=sequence_mean(),
        sampling=Sampling(group_size=1),
    )


def grpo_opd(*, coefficient: float = 1.0, level: str = "advantage") -> Algorithm:
    """GRPO-OPD (2606.16733): outcome credit and teacher credit, added at one of three points.

    `level` is "advantage" (after the group norm), "reward" (before it) or "loss" (a term).
    """
    made = grpo(kl=0.0).replace(kl_penalty=chain(), aggregate=token_mean(), name="grpo_opd")
    sides = {
        "advantage": {"reward": add(chain(made.reward), teacher_credit(coefficient))},
        "reward": {"reward": chain(teacher_reward(coefficient), made.reward)},
        "loss": {"trajectory": chain(made.trajectory, teacher_surrogate(coefficient))},
    }
    return made.replace(**sides[level])
