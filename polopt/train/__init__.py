"""Training: the pure update, its parallel forms, the loop, checkpoints and the run folder."""

from __future__ import annotations

from typing import Any

from polopt.train.config import TrainConfig

__all__ = ["TrainConfig", "train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # brings jax
        from polopt.train.loop import train

        return train
    raise AttributeError(f"module 'polopt.train' has no attribute {name!r}")
