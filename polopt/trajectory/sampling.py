"""Which trajectories are drawn, and how often a batch is used: static descriptions.

They change p_θ(τ), so they belong to the trajectory side. The rollout reads `Sampling`, the
training loop reads `Update`; the algebra only carries them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from polopt.errors import PoloptError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refill:
    """Sample again until enough groups pass a test (DAPO's dynamic sampling, 2503.14476).

    Attributes:
      by: `f(trajectories) -> bool[N]`, True on rows of groups worth keeping.
      max_rounds: how often to sample at the most.
      short: what to do when rounds run out: "train" on what there is, or "error".
    """

    by: Callable
    max_rounds: int = 10
    short: str = "train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """Draw more groups than are trained on and keep those that rank highest.

    StarPO-S (2504.20073) keeps the quarter of the prompts whose rewards spread most.

    Attributes:
      by: `f(trajectories) -> f32[N]`, a statistic of the row's group, the same on all its rows.
      fraction: share of the drawn groups that is trained on, in (0, 1]: `prompts / fraction`
        groups are drawn, rounded up.
    """

    by: Callable
    fraction: float = 0.25

    def __post_init__(self) -> None:
        _check_share("Keep.fraction", self.fraction, above=True)


@dataclasses.dataclass(frozen=True)
class LogMeanExp:
    """`β log mean_j exp(R_j / β)` of each row of returns `[P,K]`, as f64[P].

    The optimal value of a prompt under a KL penalty of weight β, from K samples of the reference
    (A*-PO, 2505.20686, eq. 5).

    >>> LogMeanExp(0.5)(np.array([[1.0, 1.0], [0.0, 1.0]])).round(3).tolist()
    [1.0, 0.717]
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise PoloptError(f"LogMeanExp: beta is {self.beta}; give a number above 0")

    def __call__(self, returns: np.ndarray) -> np.ndarray:
        """f64[P] of `returns [P,K]`."""
        scaled = np.asarray(returns, np.float64) / self.beta
        return self.beta * (np.logaddexp.reduce(scaled, axis=1) - np.log(scaled.shape[1]))


def mean_return(returns: np.ndarray) -> np.ndarray:
    """f64[P]: the mean of each row of returns `[P,K]`."""
    return np.asarray(returns, np.float64).mean(axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Companion:
    """Completions beside the batch that are scored but not trained on: one number per prompt.

    Attributes:
      column: the recorded column `f32[N]` that it fills, the same on all rows of a prompt.
      policy: who writes them: "policy" as it is now, or "reference" (see `Update.reference`).
      greedy: take the likeliest token always, unfiltered; otherwise as the batch is sampled.
      samples: completions per prompt, K.
      reduce: `f(returns f32[P,K]) -> [P]`.
      cache: compute each prompt once and remember it: for a frozen reference on a finite number
        of prompts. Draws of the reference are addressed by the prompt, so that a remembered value
        is the one that would be computed.
    """

    column: str
    policy: str = "policy"
    greedy: bool = False
    samples: int = 1
    reduce: Callable[[np.ndarray], np.ndarray] = mean_return
    cache: bool = False

    def __post_init__(self) -> None:
        _check_policy("Companion.policy", self.policy, ("policy", "reference"))
        if self.samples < 1 or (self.greedy and self.samples > 1):
            raise PoloptError(
                f"Companion.samples is {self.samples}: give 1 or more, and 1 if greedy, as all "
                "greedy completions of a prompt are equal"
            )
        if self.cache and self.policy != "reference":
            raise PoloptError(
                'Companion.cache remembers what never changes: give policy="reference"'
            )


def uncertainty(rate: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """f64[M]: `sqrt(p (1 - p)) + 0.05` of success rates, most at a half (SPO, 2509.13232)."""
    return np.sqrt(rate * (1 - rate)) + 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prioritise:
    """Draw prompts of a finite pool by what is known of them, each at most once per round.

    The weight of a prompt is read from two running sums over its scored completions, which fade
    with every further rollout that shows it: `seen`, and the share of `seen` that was right, as
    `rate = (right + 1/2) / (seen + 1)`. A prompt that was never shown has rate 1/2.

    Attributes:
      by: `f(rate f64[M], seen f64[M]) -> [M]`, weights of at least 0 over the M prompts.
      decay: what stays of both sums when the prompt is shown again, in [0, 1].
    """

    by: Callable[[np.ndarray, np.ndarray], np.ndarray] = uncertainty
    decay: float = 0.875

    def __post_init__(self) -> None:
        _check_share("Prioritise.decay", self.decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Another model stands in for the policy, wholly on some prompts or partly on every token.

    What is recorded is what was sampled: `logp_sampler + log_keep` is the log-probability under
    the model, or the mixture, that drew the token. Tokens that the policy did not draw alone have
    `version` -1.

    Attributes:
      policy: who stands in: "teacher" or "reference".
      share: share of each rollout's prompts whose completions it writes alone, in [0, 1] (GKD's
        1 - λ, 2306.13649). Their number is `prompts * share`, rounded; which ones is drawn anew.
      alpha: weight of its distribution in that of every token of the other prompts, in [0, 1]:
        `α p_other + (1 - α) p_policy`, at the temperature of the run (MiniLLM, 2306.08543, eq. 6).
    """

    policy: str = "teacher"
    share: float = 0.0
    alpha: float = 0.0

    def __post_init__(self) -> None:
        _check_policy("Mixture.policy", self.policy, ("teacher", "reference"))
        _check_share("Mixture.share", self.share)
        _check_share("Mixture.alpha", self.alpha)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uncertain:
    """Fork with probability `threshold + weight ΔH` (ARPO, 2507.19849, section 3.1).

    ΔH is how much the mean entropy of a turn's first tokens exceeds that of the row's first turn,
    in units of log V.

    Attributes:
      weight, threshold: of that probability.
      tokens: how many first tokens of a turn are looked at.
    """

    weight: float = 0.2
    threshold: float = 0.5
    tokens: int = 20

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise PoloptError(f"Uncertain.tokens is {self.tokens}: give 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branch:
    """Draw a group as a tree whose rows share beginnings, token for token: column `node`.

    A tree has as many rows as the group; one that ends with fewer begins again from the prompt.
    Segments are of fixed length, and every row forks at the end of each (TreeRPO, 2506.05183;
    TreePO, 2508.17445); or, where the task has an environment, they are turns, and a row forks
    before a turn in which the policy has become unsure (ARPO, 2507.19849).

    Rows that live on have more descendants than those that end early, so that means over the rows
    of a tree are not means over samples of the policy.

    Attributes:
      width: children of a node that forks, while places are left.
      depth: most segments of a row; None where segments are turns.
      segment: tokens of a segment; an equal part of `max_new_tokens` if not given.
      initial: rows that begin at the prompt together; if not given `width`, or half of the group
        where segments are turns.
      uncertain: when a row forks before a turn.

    Raises:
      PoloptError: a number out of range, or both or neither of depth and uncertain.
    """

    width: int = 2
    depth: int | None = None
    segment: int | None = None
    initial: int | None = None
    uncertain: Uncertain | None = None

    def __post_init__(self) -> None:
        for name in ("width", "depth", "segment", "initial"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PoloptError(f"Branch.{name} is {value}: give 1 or more")
        if (self.depth is None) == (self.uncertain is None):
            raise PoloptError(
                "Branch takes depth=, for segments of fixed length, or uncertain=, for turns: "
                "give one of them"
            )

    def straight(self, rows: int) -> Branch:
        """The same segments without a fork: so many rows from the prompt, each by itself."""
        return dataclasses.replace(self, width=1, initial=rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which trajectories are drawn for a prompt.

    Attributes:
      group_size: samples per prompt, G.
      refill: sample again until enough groups pass a test.
      keep: or sample more groups at once and keep the highest.
      companion: completions beside the batch that become a column.
      prioritise: which prompts of a finite pool are drawn; in their own order if not given.
      mixture: another model that writes a part.
      branch: draw each group as a tree.
    """

    group_size: int = 1
    refill: Refill | None = None
    keep: Keep | None = None
    companion: Companion | None = None
    prioritise: Prioritise | None = None
    mixture: Mixture | None = None
    branch: Branch | None = None

    def __post_init__(self) -> None:
        if self.refill and self.keep:
            raise PoloptError(
                "Sampling has both refill and keep: a group that fails a test is not ranked; "
                "give one of them"
            )


def after_a_success(question: str, success: str) -> str:
    """A prompt that shows a right completion of the question before it asks again."""
    return f"{question}\n{success}\n{question}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hindsight:
    """The policy is its own teacher, shown what worked (SDPO, 2601.20802).

    `logp_teacher` is its log-probability of the row after a prompt that holds a completion of the
    same group that succeeded: the first one that is not the row itself. A row without one keeps
    the log-probability that it was sampled with, so that it has nothing to learn from.

    Attributes:
      policy: "policy" as it is at the start of the update, or "reference" (see `Update`).
      above: the return from which a completion is a success.
      render: `f(question, success) -> question`, the text that stands in for the question.
    """

    policy: str = "policy"
    above: float = 1.0
    render: Callable[[str, str], str] = after_a_success

    def __post_init__(self) -> None:
        _check_policy("Hindsight.policy", self.policy, ("policy", "reference"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """How a rollout batch is used.

    Attributes:
      epochs: passes over the batch.
      minibatches: optimiser steps per pass.
      reset_optimizer: start each rollout with a fresh optimiser state.
      reference: "frozen", "previous" (the policy at the start of each rollout), or "ema", an
        average of the policies so far, moved once after each rollout.
      ema: how far it is moved: `reference ← (1 - ema) reference + ema policy`, in [0, 1].
      teacher: who says `logp_teacher`: None for a model of its own, or the policy in hindsight.
    """

    epochs: int = 1
    minibatches: int = 1
    reset_optimizer: bool = False
    reference: str = "frozen"
    ema: float = 0.05
    teacher: Hindsight | None = None

    def __post_init__(self) -> None:
        _check_policy("Update.reference", self.reference, ("frozen", "previous", "ema"))
        _check_share("Update.ema", self.ema)


def _check_policy(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise PoloptError(f"{name} is {value!r}: accepted are {', '.join(accepted)}")


def _check_share(name: str, value: float, *, above: bool = False) -> None:
    if not 0 <= value <= 1 or (above and value == 0):
        raise PoloptError(
            f"{name} is {value}: give a number {'above 0, at most 1' if above else 'in [0, 1]'}"
        )
