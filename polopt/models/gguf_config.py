"""A GGUF file's metadata as a `DecoderConfig`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from polopt.errors import PoloptError
from polopt.models.config import DecoderConfig, Experts, RopeScaling
from polopt.models.gguf_file import GgufFile
from polopt.models.rotary import frequencies

ARCHITECTURES = ("llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3")
_LLAMA3_LENGTH = 8192  # of pretraining: no key of a file tells it, its factors must agree with it
_LOCAL_THETA = 10_000.0  # Gemma 3's, where a file does not say
_PERIOD = {"gemma2": 2, "gemma3": 6}  # every so many layers one sees everything
_LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, which scale scores otherwise


@dataclasses.dataclass(frozen=True)
class _Values:
    """The values of one architecture, each checked when it is asked for."""

    file: GgufFile
    architecture: str

    def wrong(self, what: str) -> PoloptError:
        return PoloptError(f"{self.file.path}: {what}")

    def get(self, name: str) -> Any:
        return self.file.values.get(f"{self.architecture}.{name}")

    def size(self, name: str, default: int | None = None) -> int:
        value = self.get(name)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # one per layer
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(
                f"{self.architecture}.{name} is {_short(value)}: an integer of 1 or more is needed"
            )
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise self.wrong(
                f"{self.architecture}.{name} is {_short(value)}: a number above 0 is needed"
            )
        # Written in 32 bits: the shortest decimal is what was meant.
        return float(str(np.float32(value)))

    def option(self, name: str) -> float | None:
        return None if self.get(name) is None else self.number(name)


def decoder_config(file: GgufFile) -> DecoderConfig:
    """The decoder that a file holds.

    Raises:
      PoloptError: an architecture that is not read, a key that is missing or has no sense, or an
        option that `DecoderConfig` has no field for.
    """
    architecture = file.values.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise PoloptError(
            f"{file.path}: architecture {_short(architecture)}: read are {', '.join(ARCHITECTURES)}"
        )
    values = _Values(file, str(architecture))
    layers = values.size("block_count")
    if layers > len(file.tensors):
        raise values.wrong(f"{layers} layers in {len(file.tensors)} tensors")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise values.wrong("there is no tensor token_embd.weight of two dimensions")
    try:
        return DecoderConfig(**_fields(values, embedding.shape[0], layers))
    except PoloptError as error:
        told = str(error)
        raise error if told.startswith(str(file.path)) else values.wrong(told) from error


def _fields(values: _Values, vocab_size: int, layers: int) -> dict[str, Any]:
    name, tensors = values.architecture, values.file.tensors
    heads = values.size("attention.head_count")
    hidden = values.size("embedding_length")
    moe = name == "qwen3moe"
    fields = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": values.size("attention.head_count_kv", heads),
        "head_dim": _head_dim(values, hidden, heads),
        "mlp_size": values.size("feed_forward_length", 1 if moe else None),
        "max_length": values.size("context_length"),
        "rope_theta": values.number("rope.freq_base", 10_000.0),
        "norm_eps": values.number("attention.layer_norm_rms_epsilon"),
        "tie_embeddings": "output.weight" not in tensors,
        "qkv_bias": "blk.0.attn_q.bias" in tensors,
        "out_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        "qk_norm": name in ("qwen3", "qwen3moe", "gemma3"),
        "experts": _experts(values),
    }
    fields["rope_scaling"] = _scaling(values, fields["head_dim"], fields["rope_theta"])
    return fields | (_gemma(values, fields) if name in _PERIOD else {})


def _short(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]


def _head_dim(values: _Values, hidden: int, heads: int) -> int:
    head_dim = values.size("attention.key_length", max(hidden // heads, 1))
    for name in ("attention.value_length", "rope.dimension_count"):
        if values.size(name, head_dim) != head_dim:
            raise values.wrong(
                f"{values.architecture}.{name} is {values.get(name)}, not the head size {head_dim}"
            )
    return head_dim


def _experts(values: _Values) -> Experts | None:
    count = values.get("expert_count")
    if values.architecture != "qwen3moe":
        if count:
            raise values.wrong(f"{values.architecture} with {_short(count)} experts is not read")
        return None
    size = values.size("expert_feed_forward_length")
    return Experts(
        count=values.size("expert_count"), chosen=values.size("expert_used_count"), size=size
    )


def _gemma(values: _Values, shape: dict[str, Any]) -> dict[str, Any]:
    """What is common to Gemma 2 (2408.00118) and Gemma 3 (2503.19786)."""
    name, hidden, layers = values.architecture, shape["hidden_size"], shape["num_layers"]
    period = values.size("attention.sliding_window_pattern", _PERIOD[name])
    per_head = hidden / shape["num_heads"] if layers == _LARGEST[name] else shape["head_dim"]
    made = {
        "activation": "gelu",
        "norm_offset": 1.0,
        "post_norms": True,
        "embed_scale": hidden**0.5,
        "attention_scale": per_head**-0.5,
        "attention_softcap": values.option("attn_logit_softcapping"),
        "logit_softcap": values.option("final_logit_softcapping"),
        "window": values.size("attention.sliding_window"),
        "local_layers": tuple(i for i in range(layers) if (i + 1) % period),
    }
    if name == "gemma3":
        made["local_rope_theta"] = values.number("rope.freq_base_swa", _LOCAL_THETA)
    return made


def _scaling(values: _Values, head_dim: int, theta: float) -> RopeScaling | None:
    kind = values.get("rope.scaling.type")
    factors = values.file.tensors.get("rope_freqs.weight")
    if factors is not None:
        if kind not in (None, "none", "linear") or factors.shape != (head_dim // 2,):
            raise values.wrong("rope_freqs.weight does not fit the other values of rope")
        [(_, read)] = values.file.chunks(factors)
        return _llama3(values, read[0], head_dim, theta)
    if kind is None:
        older = values.option("rope.scale_linear")
        return None if older in (None, 1.0) else RopeScaling(kind="linear", factor=older)
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise values.wrong(f"rope.scaling.type is {_short(kind)}: read are none, linear and yarn")
    factor = values.number("rope.scaling.factor", 1.0)
    if kind == "linear":
        return None if factor == 1 else RopeScaling(kind="linear", factor=factor)
    stretched = values.number("rope.scaling.attn_factor", 1.0) * (0.1 * np.log(factor) + 1)
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_length=values.size("rope.scaling.original_context_length"),
        beta_fast=values.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=values.number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=float(stretched),
    )


def _llama3(
    values: _Values, factors: np.ndarray, head_dim: int, theta: float
) -> RopeScaling | None:
    """The rule that a tensor of divisors was computed by: a file has no other word of it."""
    if np.all(factors == 1):
        return None
    if np.all(np.isfinite(factors)) and factors.max() > 1:
        rule = RopeScaling(
            kind="llama3", factor=float(factors.max()), original_length=_LLAMA3_LENGTH
        )
        asked = frequencies(head_dim, theta)[0] / frequencies(head_dim, theta, rule)[0]
        if np.allclose(asked, factors, rtol=1e-4):
            return rule
    raise values.wrong("rope_freqs.weight is not of Llama 3.1's rule for 8192 positions")
