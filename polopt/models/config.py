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
_POSITIVE = (
    "rope_theta",
    "norm_eps",
    "embed_scale",
    "attention_scale",
    "attention_softcap",
    "logit_softcap",
    "window",
    "local_rope_theta",
)
_ACTIVATIONS = ("silu", "gelu")
_SCALINGS = ("linear", "llama3", "yarn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts beyond those of pretraining.

    Args:
      kind: "linear" (2306.15595: all of them divided by `factor`), "llama3" (Llama 3.1: only those
        of long wavelengths) or "yarn" (2309.00071, section 3.4, with its attention temperature).
      factor: of the stretch, at least 1.
      original_length: positions of pretraining; read by llama3 and yarn.
      low, high: llama3's bounds: wavelengths above `original_length / low` are divided, those below
        `original_length / high` kept, and those between interpolated.
      beta_fast, beta_slow: yarn's bounds, in turns within `original_length`.
      attention_factor: what cosine and sine are multiplied by; yarn's `0.1 ln(factor) + 1` if not
        given.
      truncate: round yarn's bounds to whole dimensions.

    Raises:
      PoloptError: an unknown kind, or a number outside its range.
    """

    kind: str
    factor: float
    original_length: int = 0
    low: float = 1.0
    high: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in _SCALINGS:
            raise PoloptError(
                f"RopeScaling.kind is {self.kind!r}: accepted are {', '.join(_SCALINGS)}"
            )
        if not self.factor >= 1:
            raise PoloptError(f"RopeScaling.factor is {self.factor!r}: give a number of 1 or more")
        if self.kind != "linear" and self.original_length < 1:
            raise PoloptError(
                f"RopeScaling.original_length is {self.original_length}: {self.kind} needs the "
                "positions of pretraining"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts in place of the MLP (Qwen3-MoE).

    Args:
      count: experts of a layer.
      chosen: of those, how many a token goes through.
      size: hidden size of each.
      normalise: the weights of the chosen ones sum to one.
      dense_layers: layers that keep the plain MLP.

    Raises:
      PoloptError: more experts chosen than there are, or a size below 1.
    """

    count: int
    chosen: int
    size: int
    normalise: bool = True
    dense_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.chosen <= self.count or self.size < 1:
            raise PoloptError(
                f"Experts: {self.chosen} of {self.count} experts of size {self.size}: give sizes "
                "of 1 or more, and no more chosen than there are"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder: RMSNorm, rotary positions, grouped-query attention, gated MLP.

    The defaults are Llama's; every other field is what some family does differently. Hashable and
    equal by value, hence a static argument that never retraces.

    >>> config = DecoderConfig(vocab_size=64, hidden_size=16, num_layers=2, num_heads=2,
    ...                        num_kv_heads=1, head_dim=8, mlp_size=32, max_length=128)
    >>> DecoderConfig.from_dict(config.to_dict()) == config
    True

    Raises:
      PoloptError: a size below 1, an odd `head_dim`, `num_heads` not a multiple of
        `num_kv_heads`, a number that must be positive and is not, or an unknown activation.
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
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = True  # the output matrix is the embedding
    activation: str = "silu"  # of the MLP's gate: silu, or gelu (tanh)
    qkv_bias: bool = False  # Qwen2: biases on the three input projections
    out_bias: bool = False  # of attention's output projection
    mlp_bias: bool = False
    qk_norm: bool = False  # Qwen3, Gemma 3: RMSNorm of queries and keys, per head, before rotation
    norm_offset: float = 0.0  # Gemma: norms multiply by 1 + weight
    post_norms: bool = False  # Gemma 2: norms also after attention and MLP, before the sum
    embed_scale: float = 1.0  # Gemma: the square root of the hidden size
    attention_scale: float | None = None  # of scores; head_dim ** -0.5 if not given
    attention_softcap: float | None = None  # Gemma 2: cap * tanh(score / cap)
    logit_softcap: float | None = None  # Gemma 2
    window: int | None = None  # positions that a local layer sees, itself included
    local_layers: tuple[int, ...] = ()  # which layers are local
    local_rope_theta: float | None = None  # Gemma 3: local layers turn otherwise, unscaled
    experts: Experts | None = None

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
        for name in _POSITIVE:
            number = getattr(self, name)
            if number is not None and not number > 0:
                raise PoloptError(f"DecoderConfig.{name} is {number!r}: give a number above 0")
        if self.activation not in _ACTIVATIONS:
            raise PoloptError(
                f"DecoderConfig.activation is {self.activation!r}: accepted are "
                f"{', '.join(_ACTIVATIONS)}"
            )
        if self.local_layers and self.window is None:
            raise PoloptError("DecoderConfig.local_layers needs a window")

    def window_of(self, layer: int) -> int | None:
        """How many positions a layer sees, itself included; None for all before it."""
        return self.window if layer in self.local_layers else None

    def rotation_of(self, layer: int) -> tuple[float, RopeScaling | None]:
        """Base and scaling of a layer's rotary frequencies."""
        if self.local_rope_theta is not None and layer in self.local_layers:
            return self.local_rope_theta, None
        return self.rope_theta, self.rope_scaling

    def routed(self, layer: int) -> bool:
        """Whether a layer has experts in place of its MLP."""
        return self.experts is not None and layer not in self.experts.dense_layers

    @property
    def score_scale(self) -> float:
        """What attention scores are multiplied by."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
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
        parts = {"rope_scaling": RopeScaling, "experts": Experts}
        made = {
            key: parts[key](**_tuples(value)) if key in parts and value is not None else value
            for key, value in values.items()
        }
        return cls(**_tuples(made))


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows lists only."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
