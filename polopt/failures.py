"""What goes wrong, in a line each: the words that pieces name in `repairs=`. Data, without jax."""

from __future__ import annotations

from typing import NamedTuple


class Failure(NamedTuple):
    """A failure of training and the side of the map on which it lies."""

    side: str  # trajectory, reward, aggregation, sampling, implementation, or both
    text: str


_T = {
    "ratio_explosion": "ratios run away when one batch is used several times",
    "entropy_collapse": "the policy stops exploring before it has learned",
    "pivotal_tokens_clipped": "rare tokens that paid off are clipped first and never learned",
    "negative_explosion": "negative credit of stale samples pushes without bound",
    "token_ratio_noise": "token ratios are a noisy correction for a reward of the whole sequence",
    "sampler_mismatch": "sampler and trainer do not compute the same probabilities",
    "staleness": "the data comes from policies that are long gone",
    "reference_drift": "the policy leaves the region where its reward can be trusted",
    "kl_misused": "the KL estimator stands where its expected gradient does not regularise",
    "observation_leak": "tokens that the policy did not write receive gradient",
}
_R = {
    "no_baseline": "the variance of the raw return drowns the signal",
    "dead_groups": "all rewards of a group are equal, so the group teaches nothing",
    "difficulty_bias": "nearly solved and nearly hopeless prompts weigh too much",
    "reward_swamping": "one component of a summed reward hides the others",
    "reward_hacking": "a part of the reward that is easy to farm is farmed",
    "sparse_credit": "one number at the end pays for a long or many-turned episode",
    "truncation_noise": "answers that were cut are punished as if they were wrong",
    "never_solved": "no sample ever succeeds, so there is nothing to reinforce",
    "critic_lag": "the critic is biased or behind, and so is the credit made from it",
    "sharpening": "the first try gets better while the best of many gets worse",
    "kl_rescaled_by_std": "the group's spread rescales the KL that stands in the reward",
    "noisy_verifier": "the reward itself is wrong or changes from call to call",
}
_OTHER = {
    "length_bias": ("aggregation", "dividing by the length makes long wrong answers cheap"),
    "split_dependent_loss": ("implementation", "a mean of means changes with the micro-batches"),
    "wrong_groups": ("implementation", "rows of different prompts share a baseline"),
    "numerics": ("implementation", "a number is not finite, or close to it"),
    "off_the_end": ("implementation", "learning rate or batch size is so that nothing moves"),
}
# Neither side alone repairs these: the interaction is the failure.
_BOTH = {
    "collapse_starves_groups": "collapsed entropy makes groups unanimous, and those cannot recover",
    "length_truncation_spiral": "wrong answers grow, are cut, and the cut is punished as noise",
    "turn_credit_and_mask": "outcome credit over turns meets token ratios over long tool episodes",
    "stale_negatives": "stale data and negative credit multiply",
    "teacher_ceiling": "imitation ends at the teacher, the outcome alone never starts",
    "tiny_std_amplifies_mismatch": "a near-zero spread multiplies the sampler's mismatch",
    "sequence_ratio_token_credit": "one ratio a sequence does not fit credit that varies in it",
}

FAILURES: dict[str, Failure] = {
    **{key: Failure("trajectory", text) for key, text in _T.items()},
    **{key: Failure("reward", text) for key, text in _R.items()},
    **{key: Failure(side, text) for key, (side, text) in _OTHER.items()},
    **{key: Failure("both", text) for key, text in _BOTH.items()},
}
