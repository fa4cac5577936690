"""Checkpoints that can be made anywhere from a list of names and shapes; NumPy only.

A frozen file `frozen/models/<case>.npz` holds what transformers said of such a checkpoint: `meta`
(JSON: version, case, `config` as transformers 5 wrote it, `older` as transformers 4 spells it,
`dtype`, `tensors` {name: shape} as transformers saved them), `tokens i32[N,T]`, `length` and
`prompt_length i32[N]`, and `logits f32[N,T,V]`, zero on the padding.
"""

import json
import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "frozen" / "models"


def tensor(name: str, shape: list[int]) -> np.ndarray:
    """f32 values, large enough that every part of a model matters, and exact in any float type."""
    values = np.random.default_rng(zlib.crc32(name.encode())).random(shape)
    if "norm" in name:
        values = 0.25 + 0.5 * values
    elif name.endswith("bias"):
        values = values - 0.5
    else:
        scale = 0.25 if "embed" in name else (3 / shape[-1]) ** 0.5
        values = scale * (2 * values - 1)
    return (np.round(values * 128) / 128).astype(np.float32)


def tensors(meta: dict) -> dict[str, np.ndarray]:
    """All tensors of a case."""
    return {name: tensor(name, shape) for name, shape in meta["tensors"].items()}


def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tokens i32[6,20], length, prompt_length: two prompts, three ragged completions of each."""
    rng = np.random.default_rng(5)
    tokens = rng.integers(3, 45, (6, 20)).astype(np.int32)
    prompt_length = np.array([6, 6, 6, 9, 9, 9], np.int32)
    length = prompt_length + np.array([14, 7, 5, 11, 8, 3], np.int32)
    for n in range(6):
        first = n - n % 3
        tokens[n, : prompt_length[n]] = tokens[first, : prompt_length[n]]
    return tokens, length, prompt_length


def frozen(case: str) -> tuple[dict, dict[str, np.ndarray]]:
    """meta, and the arrays of a case."""
    with np.load(FOLDER / f"{case}.npz") as file:
        arrays = dict(file)
    return json.loads(str(arrays.pop("meta"))), arrays
