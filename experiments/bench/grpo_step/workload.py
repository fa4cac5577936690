"""What is run: shapes, prompts, lengths and rewards, equal for everyone. NumPy only."""

import dataclasses
import pathlib

import numpy as np

PAD, EOS, FIRST = 0, 1, 3  # ids; prompts and rewards are of ids from FIRST on
LEARNING_RATE = 1e-6
CLIP = 0.2


@dataclasses.dataclass(frozen=True)
class Case:
    """One GRPO step of a Llama shape, in float32."""

    prompts: int
    group: int
    prompt: int  # tokens of each
    completion: int  # most tokens
    shortest: int = 0  # completions are uniform between it and `completion`; 0: all the longest
    vocab: int = 8192
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 4
    mlp: int = 688
    theta: float = 1e6  # what tunix 0.1.7 rotates by, whatever its configuration says
    tied: bool = True

    @property
    def rows(self) -> int:
        """N."""
        return self.prompts * self.group

    @property
    def head_dim(self) -> int:
        """Of every head."""
        return self.hidden // self.heads


CASES = {
    "tiny": Case(  # to see that the scripts run
        prompts=2,
        group=2,
        prompt=8,
        completion=8,
        vocab=64,
        hidden=32,
        layers=1,
        heads=2,
        mlp=48,
        kv_heads=1,
        shortest=3,
    ),
    "a": Case(prompts=4, group=8, prompt=64, completion=128),
    "b": Case(prompts=2, group=16, prompt=512, completion=128),
    "c": Case(prompts=4, group=8, prompt=64, completion=256, shortest=16),
    "d": Case(  # SmolLM2-135M
        prompts=4,
        group=8,
        prompt=64,
        completion=128,
        vocab=49_152,
        hidden=576,
        layers=30,
        heads=9,
        kv_heads=3,
        mlp=1536,
    ),
}


def prompts_of(case: Case) -> np.ndarray:
    """i32[P,S]."""
    rng = np.random.default_rng(0)
    return rng.integers(FIRST, case.vocab, (case.prompts, case.prompt)).astype(np.int32)


def lengths_of(case: Case) -> np.ndarray:
    """i32[N]: tokens of each completion, its end included."""
    if not case.shortest:
        return np.full(case.rows, case.completion, np.int32)
    spread = np.linspace(case.shortest, case.completion, case.rows).round().astype(np.int32)
    return np.random.default_rng(1).permutation(spread)


def reward_of(completion: np.ndarray) -> float:
    """The share of even ids."""
    return float((np.asarray(completion) % 2 == 0).mean())


def write_batch(case: Case, path: pathlib.Path) -> None:
    """A batch that nobody sampled, for the comparison of gradients.

    It holds completions i32[N,C] (PAD after their end) and the credit f32[N] of each row.
    """
    rng = np.random.default_rng(2)
    tokens = rng.integers(FIRST, case.vocab, (case.rows, case.completion)).astype(np.int32)
    length = lengths_of(case)
    column = np.arange(case.completion)[None]
    tokens = np.where(column < length[:, None], tokens, PAD)
    tokens[np.arange(case.rows), length - 1] = EOS
    credit = rng.normal(size=case.rows).astype(np.float32)
    np.savez(path, completions=tokens, length=length, credit=credit)
