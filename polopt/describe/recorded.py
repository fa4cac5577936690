"""What a column of a batch means, in words, and which model it takes to fill it. Data."""

from __future__ import annotations

from typing import NamedTuple


class Recorded(NamedTuple):
    """A column that pieces need or want."""

    text: str
    model: str | None = None  # the model besides the policy that it takes


MODELS: dict[str, str] = {
    "reference": "a policy to stay near",
    "critic": "a value model trained beside the policy",
    "teacher": "a policy to learn from",
    "prm": "a process reward model trained beside the policy",
    "log_z": "a head trained to predict each prompt's partition",
}

COLUMNS: dict[str, Recorded] = {
    "logp_old": Recorded("log-probability under the policy at the start of the batch's update"),
    "logp_sampler": Recorded("log-probability under the distribution that was sampled"),
    "logp_behaviour": Recorded("the sampler's log-probability, its filters undone"),
    "log_keep": Recorded("log of the probability mass that the sampler's filters kept"),
    "logp_ref": Recorded("log-probability under the reference", "reference"),
    "logp_teacher": Recorded("log-probability under the teacher", "teacher"),
    "logp_prm": Recorded("log-probability under the process reward model", "prm"),
    "value": Recorded("the critic's value of the state before the token", "critic"),
    "bootstrap_value": Recorded("the critic's value of the last state", "critic"),
    "log_z": Recorded("the learned log-partition of the prompt", "log_z"),
    "entropy": Recorded("entropy of the next-token distribution"),
    "sum_prob_sq": Recorded("chance that two draws of the next token agree"),
    "sorted_prob": Recorded("the policy's largest probabilities, descending"),
    "greedy_return": Recorded("reward of the prompt's greedy completion"),
    "optimal_value": Recorded("value of the best policy near the reference, from its samples"),
    "answer": Recorded("label of the row's final answer, compared within a group"),
    "anchor": Recorded("label of the state in which the token's turn was taken"),
    "node": Recorded("label of the tree node that the token belongs to"),
    "drift": Recorded("how far the prompt's last response has moved since it was stored"),
    "span": Recorded("label of the text span on which two tokenizers agree"),
    "teacher_sorted_prob": Recorded("the teacher's largest probabilities of a span", "teacher"),
    "kl_teacher": Recorded("KL to the teacher over the whole vocabulary", "teacher"),
    "jsd_teacher": Recorded("Jensen-Shannon divergence to the teacher", "teacher"),
}
