"""Batches small enough to work out by hand."""

import numpy as np

from .batch import Batch


def make(mask: list[str], reward: list[list[float]], group: list[int], **fields) -> Batch:
    """A batch from rows such as `".xx.x"`: x an action, . an observation, one prompt token."""
    is_action = np.array([[c == "x" for c in row] for row in mask])
    zeros, rows = np.zeros(is_action.shape), np.zeros(len(mask))
    columns = {
        "mask": is_action,
        "group": np.array(group),
        "reward": np.array(reward, float),
        "logp_old": zeros,
        "logp_ref": zeros,
        "logp_sampler": zeros,
        "value": zeros,
        "bootstrap_value": rows,
        "greedy_return": rows,
        "length": is_action.sum(axis=1),
        "truncated": rows > 0,
        "turn": np.where(is_action, 0, -1),
        "scored": np.array(group) >= 0,
        "prompt_length": np.ones(len(mask), int),
        "end": np.full(len(mask), len(mask[0])),
        "logp_teacher": zeros,
        "logp_prm": zeros,
        "sum_prob_sq": np.ones(is_action.shape),
        "optimal_value": rows,
        "answer": np.full(len(mask), -1),
        "anchor": np.full(is_action.shape, -1),
        "node": np.where(is_action, np.arange(len(mask))[:, None], -1),
        "prompt": np.array(group),
        "drift": rows,
        "span": np.full(is_action.shape, -1),
        "teacher_sorted_prob": np.zeros((*is_action.shape, 3)),
    }
    given = {k: np.array(v) for k, v in fields.items() if k != "parts"}
    parts = {"main": columns["reward"], **fields.get("parts", {})}
    return Batch(**{**columns, **given}, parts={k: np.array(v, float) for k, v in parts.items()})


def outcomes(values: list[float], group: list[int], **fields) -> Batch:
    """One action per row, worth `values`."""
    return make([".x"] * len(values), [[0.0, v] for v in values], group, **fields)
