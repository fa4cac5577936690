"""The shape of a decoder: everything that tells one model family from another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from polopt.errors import PoloptError

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "mlp_size",
    "max_length",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A Llama-shaped decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    Hashable and equal by value, hence a static argument that never retraces.

    >>> config = DecoderConfig(vocab_size=64, hidden_size=16, num_layers=2, num_heads=2,
    ...                        num_kv_heads=1, head_dim=8, mlp_size=32, max_length=128)
    >>> DecoderConfig.from_dict(config.to_dict()) == config
    True

    Raises:
      PoloptError: a size below 1, an odd `head_dim`, `num_heads` not a multiple of
        `num_kv_heads`, or a `rope_theta` or `norm_eps` that is not positive.
    """

    vocab_size: int  # rows of the embedding, padding rows included
    hidden_size: int
    num_layers: int
    num_heads: int  # query heads
    num_kv_heads: int  # key and value heads, each shared by num_heads / num_kv_heads queries
    head_dim: int  # even: rotary positions turn pairs
    mlp_size: int
    max_length: int  # longest row, prompt and completion together
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True  # the output matrix is the embedding
    qkv_bias: bool = False  # Qwen2: biases on the three input projections
    qk_norm: bool = False  # Qwen3: RMSNorm of queries and keys, per head, before the rotation

    def __post_init__(self) -> None:
        for name in _SIZES:
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise PoloptError(f"DecoderConfig.{name} is {size!r}: give an integer of 1 or more")
        if self.num_heads % self.num_kv_heads:
            raise PoloptError(
                f"DecoderConfig.num_heads is {self.num_heads}: "
                f"give a multiple of num_kv_heads ({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise PoloptError(f"DecoderConfig.head_dim is {self.head_dim}: give an even number")
        for name in ("rope_theta", "norm_eps"):
            if not getattr(self, name) > 0:
                raise PoloptError(
                    f"DecoderConfig.{name} is {getattr(self, name)!r}: give a number above 0"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and booleans, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DecoderConfig:
        """The inverse of `to_dict`; an unknown or missing key is an error that names it."""
        fields = dataclasses.fields(cls)
        unknown = sorted(set(values) - {field.name for field in fields})
        missing = [name for name in _SIZES if name not in values]
        if unknown or missing:
            wrong = [f"unknown {name!r}" for name in unknown]
            wrong += [f"missing {name!r}" for name in missing]
            accepted = ", ".join(field.name for field in fields)
            raise PoloptError(f"DecoderConfig.from_dict: {', '.join(wrong)}; keys are {accepted}")
        return cls(**values)
