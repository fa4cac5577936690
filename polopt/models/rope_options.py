"""Rotary positions as a `config.json` spells them, in transformers 4 or 5."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from polopt.models.config import RopeScaling
from polopt.models.options import Options

Scaling = dict[str, Any] | None  # the fields of a RopeScaling
THETA, LOCAL, GLOBAL = 10_000.0, "sliding_attention", "full_attention"


def read_rope(options: Options, length: int) -> tuple[float, Scaling]:
    """Base and scaling of rotary frequencies.

    Read are `rope_theta` beside `rope_scaling` (transformers 4) and `rope_parameters` (5).

    Args:
      options: config.json.
      length: its `max_position_embeddings`, which stands for positions of pretraining that it does
        not tell.
    """
    theta = options.number("rope_theta", THETA)
    return _rotation(_given(options), theta, length, options)


def read_rope_per_kind(options: Options, length: int) -> tuple[float, Scaling, float]:
    """Base and scaling of Gemma 3's global layers, and the base of its local ones."""
    theta = options.number("rope_theta", 1_000_000.0)
    local_theta = options.number("rope_local_base_freq", THETA)
    given, local = _given(options), None
    if given is not None and options.has("rope_parameters"):
        given, local, both = given.inner(GLOBAL), given.inner(LOCAL), given
        both.check_all_read()
    theta, scaling = _rotation(given, theta, length, options)
    local_theta, stretched = _rotation(local, local_theta, length, options)
    if local is not None and stretched is not None:
        raise local.error(f"rope_type is {stretched['kind']}: local layers accept default only")
    return theta, scaling, local_theta


def write_rope(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """`rope_scaling` as transformers 4 spells it, which 5 reads too."""
    if scaling is None:
        return None
    values: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        values["original_max_position_embeddings"] = scaling.original_length
    if scaling.kind == "llama3":
        values |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    if scaling.kind == "yarn":
        values |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        if scaling.attention_factor is not None:
            values["attention_factor"] = scaling.attention_factor
        if not scaling.truncate:
            values["truncate"] = False
    return values


def _given(options: Options) -> Options | None:
    older, newer = options.inner("rope_scaling"), options.inner("rope_parameters")
    if older is not None and newer is not None:
        raise options.error("both rope_scaling and rope_parameters: accepted is one of them")
    return newer if older is None else older


def _rotation(
    part: Options | None, theta: float, length: int, options: Options
) -> tuple[float, Scaling]:
    if part is None:
        return theta, None
    theta = part.number("rope_theta", theta)
    older = part.get("type", "default")
    kind = part.choice("rope_type", {"default": None} | _KINDS, older)
    if part.number("partial_rotary_factor", 1.0) != 1:
        raise part.wrong("partial_rotary_factor", part.get("partial_rotary_factor"), "1")
    scaling = None
    if kind is not None:
        # Some configurations have it outside, and then it counts.
        inside = part.size("original_max_position_embeddings", length)
        scaling = kind(part, options.size("original_max_position_embeddings", inside))
    part.check_all_read()
    return theta, scaling


def _linear(part: Options, length: int) -> Scaling:
    return {"kind": "linear", "factor": part.number("factor")}


def _llama3(part: Options, length: int) -> Scaling:
    return {
        "kind": "llama3",
        "factor": part.number("factor"),
        "original_length": length,
        "low": part.number("low_freq_factor"),
        "high": part.number("high_freq_factor"),
    }


def _yarn(part: Options, length: int) -> Scaling:
    factor = part.number("factor")
    scale, scale_all = part.number("mscale", None), part.number("mscale_all_dim", None)
    attention = part.number("attention_factor", None)
    if attention is None and scale is not None and scale_all is not None:
        # DeepSeek's spelling of the attention temperature.
        attention = (0.1 * scale * math.log(factor) + 1) / (0.1 * scale_all * math.log(factor) + 1)
    return {
        "kind": "yarn",
        "factor": factor,
        "original_length": length,
        "beta_fast": part.number("beta_fast", 32.0),
        "beta_slow": part.number("beta_slow", 1.0),
        "attention_factor": attention,
        "truncate": part.flag("truncate", True),
    }


_KINDS: dict[str, Callable[[Options, int], Scaling]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
