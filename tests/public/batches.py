"""Seeded awkward batches on which public implementations were run. Needs NumPy only."""

import math
from dataclasses import dataclass

import numpy as np

N, T, PARTS, VOCAB = 8, 9, 2, 7
ROW_SUM_LIMIT = 12.0  # of a row's log-ratios, so that products stay below every clamp
REF_LIMIT = 2.5  # of |logp - logp_ref|, so that k3 stays below a clamp of its value at 10


@dataclass(frozen=True, kw_only=True)
class PublicBatch:
    """N rows of T completion positions; there are no prompt positions.

    Off the mask every float is finite garbage, except `reward` and `parts`, which are 0 there. An
    empty row (`length` 0) has its reward at position 0, which is off the mask. No column depends
    on another package's convention: what a package wants in another form is built from these.
    """

    seed: int
    mask: np.ndarray  # bool[N, T] tokens that the model wrote; holes are tool observations
    completion: np.ndarray  # bool[N, T] real tokens, holes included; contiguous from position 0
    group: np.ndarray  # int[N] contiguous runs, ids not consecutive; a group may have one row
    reward: np.ndarray  # [N, T] at the token that earned it, the outcome on the last action
    parts: np.ndarray  # [K, N, T] components of another reward, which is their sum
    logp: np.ndarray  # [N, T] the current policy; the losses are differentiated by it
    logp_old: np.ndarray  # [N, T] the policy at the start of the update
    logp_sampler: np.ndarray  # [N, T] the distribution that was sampled
    logp_ref: np.ndarray  # [N, T] the frozen reference
    logp_teacher: np.ndarray  # [N, T] the teacher
    value_old: np.ndarray  # [N, T] the critic at the start of the update, often far from returns
    value: np.ndarray  # [N, T] the current critic
    entropy: np.ndarray  # [N, T] of the current policy, > 0
    sum_prob_sq: np.ndarray  # [N, T] sum of squared probabilities of the old policy, in (0, 1)
    greedy_return: np.ndarray  # [N] return of the greedy response to the same prompt
    optimal_value: np.ndarray  # [N] A*-PO's V* of the prompt
    reference_rewards: np.ndarray  # [N, 4] rewards of reference samples of the row's prompt

    @property
    def length(self) -> np.ndarray:
        """Number of action tokens of each row, `int[N]`."""
        return self.mask.sum(axis=1)

    @property
    def outcome(self) -> np.ndarray:
        """Sum of each row's rewards, `[N]`."""
        return self.reward.sum(axis=1)

    @property
    def has_singleton(self) -> bool:
        """Whether some group has one row only."""
        return bool((np.unique(self.group, return_counts=True)[1] == 1).any())

    @property
    def has_empty_row(self) -> bool:
        """Whether some row has no action token."""
        return bool((self.length == 0).any())

    @property
    def has_holes(self) -> bool:
        """Whether some row has a tool observation between or before its actions."""
        return bool((self.completion & ~self.mask)[self.length > 0].any())


@dataclass(frozen=True, kw_only=True)
class PublicLogits:
    """Logits of two models over a small vocabulary, for divergences, and a plain mask."""

    seed: int
    mask: np.ndarray  # bool[N, T], no holes, no empty row
    token: np.ndarray  # int[N, T] the sampled token, in [0, VOCAB)
    student: np.ndarray  # [N, T, VOCAB]
    teacher: np.ndarray  # [N, T, VOCAB]


def public_batch(
    seed: int,
    *,
    group_size: int | None = None,
    holes: bool | None = None,
    empty: bool | None = None,
    reward_style: str | None = None,
) -> PublicBatch:
    """The batch of a seed; the keywords narrow what a package can take.

    `group_size` gives equal groups and must divide 8; None gives ragged ones, with a group of one
    where `seed % 4 == 0`. `holes` None plants tool observations where `seed % 2 == 1`; `empty` None
    empties one row where `seed % 5 == 4`. `reward_style` is one of `binary`, `real`, `huge`,
    `tiny` and `process`; None draws one.
    """
    rng = np.random.default_rng([20260, seed])
    group = _groups(rng, group_size, singleton=seed % 4 == 0)
    mask, completion = _masks(
        rng,
        holes=seed % 2 == 1 if holes is None else holes,
        empty=seed % 5 == 4 if empty is None else empty,
    )
    reward, parts = _rewards(rng, group, mask, reward_style)
    logps = _logps(rng, mask)
    prob = np.exp(logps["logp_old"])
    value_old = rng.normal(0.3, rng.choice([0.3, 4.0]), size=(N, T))
    per_group = rng.normal(0.4, 1.0, size=(2, N))[:, np.unique(group, return_inverse=True)[1]]
    reference = rng.choice([0.0, 0.5, 1.0], size=(N, 4))
    return PublicBatch(
        seed=seed,
        mask=mask,
        completion=completion,
        group=group,
        reward=reward,
        parts=parts,
        **logps,
        value_old=value_old,
        value=value_old + rng.normal(0.0, rng.choice([0.1, 1.0]), size=(N, T)),
        entropy=rng.gamma(2.0, 0.6, size=(N, T)) + 1e-3,
        sum_prob_sq=prob**2 + rng.uniform(0.05, 0.95, size=(N, T)) * (1 - prob) ** 2,
        greedy_return=per_group[0],
        optimal_value=per_group[1],
        reference_rewards=reference[np.unique(group, return_inverse=True)[1]],
    )


def public_logits(seed: int) -> PublicLogits:
    """Logits of a student and of a teacher that is near, far or nearly certain."""
    rng = np.random.default_rng([20261, seed])
    mask = np.arange(T) < rng.integers(1, T + 1, size=(N, 1))
    student = rng.normal(0.0, rng.choice([0.5, 2.0, 5.0]), size=(N, T, VOCAB))
    near = student + rng.normal(0.0, 0.3, size=student.shape)
    far = rng.normal(0.0, rng.choice([0.5, 2.0, 5.0]), size=student.shape)
    return PublicLogits(
        seed=seed,
        mask=mask,
        token=rng.integers(0, VOCAB, size=(N, T)),
        student=student,
        teacher=np.where(rng.random((N, 1, 1)) < 0.4, near, far),
    )


def byte_ends(seed: int, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each student's and each teacher's token ends in the text, `int[N, T]`; 0 off the mask.

    Both cut a row of L tokens' 2 L bytes in L pieces. A span closes where the two agree.
    """
    rng = np.random.default_rng([20263, seed])
    ends = np.zeros((2, *mask.shape), int)
    for row, length in enumerate(mask.sum(axis=1)):
        for ends_of in ends:
            cuts = rng.choice(np.arange(1, 2 * length), size=length - 1, replace=False)
            ends_of[row, :length] = [*np.sort(cuts), 2 * length]
    return ends[0], ends[1]


def projections(*shape: int) -> np.ndarray:
    """Two fixed random directions of a shape, `[2, *shape]`."""
    return np.random.default_rng([20262, *shape]).normal(size=(2, *shape))


def project(x: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Inner products `[2]` of `x`, taken as 0 off the mask, with the two directions."""
    x = np.asarray(x, np.float64)
    if mask is not None:
        x = np.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, 0.0)
    return (projections(*x.shape) * x).reshape(2, -1).sum(axis=1)


def _groups(rng: np.random.Generator, size: int | None, *, singleton: bool) -> np.ndarray:
    ragged = [[1, 3, 4], [1, 2, 5], [1, 1, 6]] if singleton else [[2, 6], [3, 5], [2, 3, 3], [4, 4]]
    sizes = ragged[rng.integers(len(ragged))] if size is None else [size] * (N // size)
    sizes = [int(n) for n in rng.permutation(sizes)]
    ids = rng.permutation(10)[: len(sizes)]
    return np.repeat(ids, sizes)


def _masks(rng: np.random.Generator, *, holes: bool, empty: bool) -> tuple[np.ndarray, np.ndarray]:
    lengths = rng.integers(1, T + 1, size=N)
    lengths[rng.integers(N)] = T  # the width of the batch is used
    completion = np.arange(T) < lengths[:, None]
    mask = completion.copy()
    if holes:
        mask &= rng.random((N, T)) > 0.35
        mask[np.arange(N), lengths - 1] = True  # the last token is the model's own
    if empty:
        mask[rng.integers(N)] = False
    return mask, completion


def _rewards(
    rng: np.random.Generator, group: np.ndarray, mask: np.ndarray, style: str | None
) -> tuple[np.ndarray, np.ndarray]:
    style = style or rng.choice(["binary", "real", "huge", "tiny", "process"])
    scale = {"huge": 1e3, "tiny": 1e-3}.get(style, 1.0)
    binary = rng.choice([0.0, 1.0], size=N)
    outcome = binary if style == "binary" else scale * rng.normal(0.3, 1.0, size=N)
    if rng.random() < 0.4:  # every member of one group earns the same, a number exact in binary
        outcome[group == rng.choice(group)] = float(rng.choice([0.0, 0.75, 1.0])) * scale
    last = np.where(mask.any(axis=1), mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1), 0)
    reward = np.zeros(mask.shape)
    reward[np.arange(N), last] = outcome
    if style == "process":
        reward += np.where(mask, 0.3 * rng.normal(size=mask.shape), 0.0)
    parts = np.zeros((PARTS, *mask.shape))
    parts[0, np.arange(N), last] = binary
    parts[1, np.arange(N), last] = rng.choice([0.25, 0.5, 2.0], size=N) * rng.normal(size=N)
    return reward, parts


def _logps(rng: np.random.Generator, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Five log-probabilities: negative on the mask, and negative garbage off it."""
    old = -rng.uniform(0.05, rng.choice([1.0, 4.0]), size=mask.shape)
    logp = _moved(rng, old, rng.choice([0.0, 0.05, 0.5, 1.0, 3.0]), mask)
    sampler = _moved(rng, old, rng.choice([0.0, 0.05, 0.5, 1.5]), mask)
    ref = _moved(rng, logp, rng.choice([0.05, 0.5, REF_LIMIT]), mask)
    teacher = _moved(rng, sampler, rng.choice([0.05, 0.5, 3.0]), mask)
    names = ["logp", "logp_old", "logp_sampler", "logp_ref", "logp_teacher"]
    garbage = -np.abs(rng.normal(0.0, 3.0, size=(len(names), *mask.shape))) - 0.01
    columns = zip(names, [logp, old, sampler, ref, teacher], garbage, strict=True)
    return {name: np.where(mask, x, junk) for name, x, junk in columns}


def _moved(
    rng: np.random.Generator, start: np.ndarray, scale: float, mask: np.ndarray
) -> np.ndarray:
    """`start` plus up to `scale` nats either way, still negative, row sums within the limit."""
    step = rng.uniform(-scale, scale, size=start.shape)
    step = np.where(start + step > -0.01, -np.abs(step), step)
    total = np.abs(np.where(mask, step, 0.0).sum(axis=1, keepdims=True))
    return start + step * np.minimum(1.0, ROW_SUM_LIMIT / np.maximum(total, math.ulp(1.0)))
