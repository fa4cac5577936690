"""The plain record that every oracle reads, and a generator of awkward ones."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Batch:
    """N rows of T aligned tokens; entry `[n, t]` speaks of token t of row n given all before it.

    Off the mask, log-probabilities and values hold garbage on purpose: no oracle may read it.
    """

    mask: np.ndarray  # bool[N, T] action tokens; holes inside a row are tool observations
    group: np.ndarray  # int[N] rows of one prompt; -1 on a padding row, whose mask is all False
    reward: np.ndarray  # [N, T] reward at the token that earned it; the outcome sits on the last
    #   action token, or on the last prompt token of a row without actions; 0 elsewhere
    logp_old: np.ndarray  # [N, T] the policy at the start of the update
    logp_ref: np.ndarray  # [N, T] the frozen reference
    logp_sampler: np.ndarray  # [N, T] the distribution that was sampled
    value: np.ndarray  # [N, T] old critic: V(state before token t)
    bootstrap_value: np.ndarray  # [N] V(state after the last action); 0 where terminated
    greedy_return: np.ndarray  # [N] return of the greedy response to the same prompt
    length: np.ndarray  # int[N] number of action tokens, L_i
    truncated: np.ndarray  # bool[N] cut by the limit rather than ended
    turn: np.ndarray  # int[N, T] k on tokens of the k-th turn of the model, -1 elsewhere
    scored: np.ndarray  # bool[N] False: the reward abstained, credit 0, in no statistic
    prompt_length: np.ndarray  # int[N] tokens before the first action
    end: np.ndarray  # int[N] real tokens are [0, end); 0 on a padding row
    logp_teacher: np.ndarray  # [N, T] the token under the teacher
    logp_prm: np.ndarray  # [N, T] the token under the trained process reward model (PRIME)
    sum_prob_sq: np.ndarray  # [N, T] sum_v pi_old(v | s_t)^2
    optimal_value: np.ndarray  # [N] V*(q) of the row's prompt (A*-PO); 0 on padding
    answer: np.ndarray  # int[N] label of the final answer, -1 none; compared within a group only
    anchor: np.ndarray  # int[N, T] environment state in which the token's turn was taken, -1 none;
    #   compared within a group only
    node: np.ndarray  # int[N, T] tree node of the token, -1 off the mask; unique within a group.
    #   Rows that share a label share the whole path of labels up to it
    prompt: np.ndarray  # int[N] index of the prompt in its data set, -1 on padding
    drift: np.ndarray  # [N] mean |logp then - now| of the prompt's last stored response (SPO)
    parts: dict[str, np.ndarray]  # {name: [N, T]} components of the reward, which is their sum
    span: np.ndarray  # int[N, T] text span on which student and teacher align, -1 none; each label
    #   is one run of actions, unique within a row
    teacher_sorted_prob: np.ndarray  # [N, T, K] the teacher's K largest probabilities, descending,
    #   for the span that starts at this token; garbage elsewhere

    def actions(self, n: int) -> list[int]:
        """Positions of the action tokens of row n, in order."""
        return [t for t in range(self.mask.shape[1]) if self.mask[n, t]]

    def members(self, group: int) -> list[int]:
        """Rows of a group that have a score, the only ones that a baseline may see."""
        return [n for n in range(len(self.group)) if self.group[n] == group and self.scored[n]]


def random_logp(batch: Batch, *, seed: int, scale: float = 0.3) -> np.ndarray:
    """Log-probabilities `[N, T]` of a policy that has moved by `scale` nats from `logp_old`."""
    rng = np.random.default_rng(seed)
    return batch.logp_old + scale * rng.normal(size=batch.mask.shape)


def reordered(batch: Batch, order: np.ndarray) -> Batch:
    """The batch whose row i is row `order[i]` of `batch`."""
    columns = {name: column[order] for name, column in vars(batch).items() if name != "parts"}
    parts = {name: part[order] for name, part in batch.parts.items()}
    return Batch(**columns, parts=parts)


def widened(batch: Batch, extra: int = 2) -> Batch:
    """The batch with `extra` more columns of zeros, which are off every mask, at the end."""

    def wider(column: np.ndarray) -> np.ndarray:
        return (
            np.pad(column, [(0, 0), (0, extra), (0, 0)][: column.ndim])
            if column.ndim > 1
            else column
        )

    columns = {name: wider(column) for name, column in vars(batch).items() if name != "parts"}
    return Batch(**columns, parts={name: wider(part) for name, part in batch.parts.items()})


def random_batch(seed: int, *, n_groups: int = 6, max_group: int = 4, width: int = 10) -> Batch:
    """A ragged batch that contains, when it is large enough, every awkward case at once.

    Group 0 has one member; group 1 has equal rewards; group 2 starts with an empty completion and
    an unscored row; group 3 has two members of which one is unscored; the others are random. One
    padding row is added, all rows are shuffled, and group ids are distinct but not consecutive.
    Needs `n_groups >= 1`, `max_group >= 1` and `width >= 5`.
    """
    if n_groups < 1 or max_group < 1 or width < 5:
        raise ValueError("random_batch needs n_groups >= 1, max_group >= 1 and width >= 5")
    rng = np.random.default_rng(seed)
    rows = [
        _row(rng, g, member, width)
        for g in range(n_groups)
        for member in range(_group_size(rng, g, max_group))
    ]
    rows.append(None)
    order = rng.permutation(len(rows))
    rows = [rows[i] for i in order]
    ids = rng.permutation(len(rows))[:n_groups]
    greedy = rng.choice([0.0, 0.5, 1.0], size=n_groups)
    return _assemble(rng, np.random.default_rng([seed, 1]), rows, ids, greedy, width)


def _group_size(rng: np.random.Generator, g: int, max_group: int) -> int:
    if g == 0:
        return 1
    if g == 1 or g == 3:
        return min(2, max_group)
    if g == 2:
        return max_group
    return int(rng.integers(1, max_group + 1))


def _row(rng: np.random.Generator, g: int, member: int, width: int) -> dict:
    """One row as plain lists: which tokens are actions, their turns, rewards and ending."""
    prompt = int(rng.integers(1, 3))
    empty = g == 2 and member == 0
    end = prompt if empty else int(rng.integers(prompt + 1, width + 1))
    turn = [-1] * width
    t, k = prompt, 0
    while t < end:
        for _ in range(int(rng.integers(1, 4))):
            if t < end:
                turn[t] = k
                t += 1
        t += int(rng.integers(0, 3))  # a tool observation, or the next turn at once
        k += 1
    actions = [t for t in range(width) if turn[t] >= 0]
    scored = not ((g == 2 and member == 1) or (g == 3 and member == 0))
    outcome = 0.7 if g == 1 else float(rng.choice([0.0, 0.25, 1.0]))
    reward = [0.0] * width
    reward[actions[-1] if actions else prompt - 1] = outcome if scored else 5.0  # a trap
    if g > 3 and actions:  # a process reward on some token as well
        reward[actions[int(rng.integers(len(actions)))]] += float(rng.normal()) * 0.1
    return {
        "g": g,
        "prompt": prompt,
        "end": end,
        "turn": turn,
        "reward": reward,
        "scored": scored,
        "truncated": bool(not empty and rng.random() < 0.4),
    }


def _assemble(
    rng: np.random.Generator,
    later: np.random.Generator,
    rows: list[dict | None],
    ids: np.ndarray,
    greedy: np.ndarray,
    width: int,
) -> Batch:
    def column(name: str, padding: object) -> np.ndarray:
        return np.array([padding if row is None else row[name] for row in rows])

    turn = column("turn", [-1] * width)
    shape = turn.shape
    truncated = column("truncated", False)
    reward = column("reward", [0.0] * width)
    logp_old = -np.abs(rng.normal(1.2, 0.7, size=shape)) - 0.05
    return Batch(
        mask=turn >= 0,
        group=np.array([-1 if row is None else ids[row["g"]] for row in rows]),
        reward=reward,
        logp_old=logp_old,
        logp_ref=np.minimum(logp_old + 0.3 * rng.normal(size=shape), -1e-3),
        logp_sampler=np.minimum(logp_old + 0.1 * rng.normal(size=shape), -1e-3),
        value=rng.normal(0.4, 0.5, size=shape),
        bootstrap_value=np.where(truncated, rng.normal(0.4, 0.5, size=len(rows)), 0.0),
        greedy_return=np.array([0.0 if row is None else greedy[row["g"]] for row in rows]),
        length=(turn >= 0).sum(axis=1),
        truncated=truncated,
        turn=turn,
        scored=column("scored", False),
        prompt_length=column("prompt", 0),
        end=column("end", 0),
        **_per_token(later, logp_old),
        **_per_prompt(later, rows, len(ids)),
        **_labels(later, rows, turn),
        parts=_parts(later, rows, turn, reward),
    )


def _per_token(rng: np.random.Generator, logp_old: np.ndarray) -> dict:
    """Columns `[N, T]` that other models or the whole vocabulary would have given."""
    shape = logp_old.shape
    p = np.exp(logp_old)
    share = rng.uniform(0.1, 1.0, size=shape)  # how much the other tokens' mass is on one of them
    vocabulary = rng.dirichlet([0.5] * 5, size=shape)
    return {
        "logp_teacher": np.minimum(logp_old + 0.5 * rng.normal(size=shape), -1e-3),
        "logp_prm": np.minimum(logp_old + 0.4 * rng.normal(size=shape), -1e-3),
        "sum_prob_sq": p**2 + share * (1.0 - p) ** 2,
        "teacher_sorted_prob": -np.sort(-vocabulary, axis=-1)[..., :3],
    }


def _per_prompt(rng: np.random.Generator, rows: list[dict | None], n_groups: int) -> dict:
    """Columns `[N]` that every row of a prompt shares, and the row's answer."""
    index = rng.permutation(n_groups)
    best = rng.uniform(0.0, 1.2, size=n_groups)
    drift = np.where(rng.random(n_groups) < 0.3, 0.0, 0.2 * rng.random(n_groups))
    answers = rng.integers(-1, 2, size=len(rows))  # few labels, so that there are ties

    def column(per_group: np.ndarray, padding: object) -> np.ndarray:
        return np.array([padding if row is None else per_group[row["g"]] for row in rows])

    return {
        "prompt": column(index, -1),
        "optimal_value": column(best, 0.0),
        "drift": column(drift, 0.0),
        "answer": np.array([-1 if row is None else answers[n] for n, row in enumerate(rows)]),
    }


def _labels(rng: np.random.Generator, rows: list[dict | None], turn: np.ndarray) -> dict:
    """Anchors, tree nodes and spans. Anchors and nodes of different groups share labels: a trap."""
    anchor, node, span = (np.full(turn.shape, -1) for _ in range(3))
    nodes: dict[tuple, int] = {}  # (group, path) -> label
    for n, row in enumerate(rows):
        path: tuple[int, ...] = ()
        for k in range(turn[n].max() + 1):
            tokens = np.flatnonzero(turn[n] == k)
            path = (*path, int(rng.integers(2)))
            siblings = sum(1 for group, _ in nodes if group == row["g"])
            node[n, tokens] = nodes.setdefault((row["g"], path), siblings)
            kind = rng.random()
            if kind < 0.7:  # a state that others have met as well; else one of its own, or none
                anchor[n, tokens] = rng.integers(2)
            elif kind < 0.85:
                anchor[n, tokens] = 10 + 10 * n + k
            for t in tokens:  # a span ends with its turn, or by chance; some tokens have none
                if rng.random() < 0.8:
                    goes_on = t > tokens[0] and span[n, t - 1] >= 0 and rng.random() < 0.5
                    span[n, t] = span[n, t - 1] if goes_on else span[n].max() + 1
    return {"anchor": anchor, "node": node, "span": span}


def _parts(
    rng: np.random.Generator, rows: list[dict | None], turn: np.ndarray, reward: np.ndarray
) -> dict[str, np.ndarray]:
    """Two components that sum to the reward; the trap of an unscored row is in `main`."""
    style = np.zeros(reward.shape)
    for n, row in enumerate(rows):
        if row is not None:
            actions = np.flatnonzero(turn[n] >= 0)
            last = actions[-1] if len(actions) else row["prompt"] - 1
            where = rng.choice(actions) if len(actions) and row["g"] > 3 else last
            style[n, where] = rng.choice([0.0, 0.5])
    return {"main": reward - style, "style": style}
