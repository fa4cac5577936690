"""Checks of flat configurations: types by their annotations, ranges by their fields' names."""

import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from polopt.errors import UsageError

RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **{
        name: ("text that is not empty", lambda v: v.strip() != "")
        for name in (
            "algorithm",
            "task",
            "model",
            "teacher",
            "data",
            "reward",
            "run",
            "out",
            "server",
            "server_model",
            "server_push",
        )
    },
    **{
        name: ("at least 1", lambda v: v >= 1)
        for name in (
            "steps",
            "prompts",
            "group_size",
            "epochs",
            "minibatches",
            "micro_batch",
            "micro_tokens",
            "max_new_tokens",
            "top_k",
            "lanes",
            "server_concurrency",
            "devices",
            "sample_devices",
            "problems",
            "samples",
            "batch",
            "layers",
        )
    },
    **{
        name: ("at least 0", lambda v: v >= 0)
        for name in (
            "warmup",
            "lora_rank",
            "eval_every",
            "eval_problems",
            "held_out",
            "checkpoint_every",
        )
    },
    "width": ("a multiple of 32, at least 32", lambda v: v >= 32 and v % 32 == 0),
    "learning_rate": ("at least 0 and finite", lambda v: 0 <= v < math.inf),
    "weight_decay": ("at least 0 and finite", lambda v: 0 <= v < math.inf),
    "lora_alpha": ("above 0 and finite", lambda v: 0 < v < math.inf),
    "max_grad_norm": ("above 0 and finite", lambda v: 0 < v < math.inf),
    "temperature": ("above 0 and finite", lambda v: 0 < v < math.inf),
    "top_p": ("above 0 and at most 1", lambda v: 0 < v <= 1),
    "min_p": ("at least 0 and below 1", lambda v: 0 <= v < 1),
    "seed": ("between 0 and 2**32 - 1", lambda v: 0 <= v < 2**32),
}

SAMPLE_RANGES = RANGES | {"temperature": ("at least 0 and finite", lambda v: 0 <= v < math.inf)}


def assignments(items: Sequence[str], flag: str) -> dict[str, Any]:
    """Read ``name=value`` pairs; values are JSON, and text where they are not.

    >>> assignments(["max_terms=4", "operators=[\\"+\\"]", "style=plain"], "task_args")
    {'max_terms': 4, 'operators': ['+'], 'style': 'plain'}
    """
    result: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not (name.strip() and equals and text.strip()):
            raise UsageError(f"{flag}: {item!r} is not of the form name=value")
        if name in result:
            raise UsageError(f"{flag}: {name!r} is given twice")
        try:
            result[name] = json.loads(text)
        except json.JSONDecodeError:
            result[name] = text
    return result


def hints(kind: Any) -> dict[str, Any]:
    """{name: type} of a configuration's fields."""
    return get_type_hints(kind)


def check(
    config: Any, ranges: Mapping[str, tuple[str, Callable[[Any], bool]]] | None = None
) -> None:
    """Check types and ranges of a configuration's fields.

    Raises:
      UsageError: the first that does not hold.
    """
    fields = hints(type(config))
    for name, hint in fields.items():
        value = getattr(config, name)
        _check_type(name, value, hint)
        wanted, accepts = (RANGES if ranges is None else ranges).get(name, ("", lambda v: True))
        if value is not None and not accepts(value):
            raise UsageError(f"{name} must be {wanted}, not {value!r}")
    if "lora_rank" in fields and config.quantise and not config.lora_rank:
        raise UsageError("quantise: quantised weights stay as they are: give --lora-rank too")
    if "lora_rank" in fields and config.lora_rank and not config.lora_targets:
        raise UsageError("lora_targets must name at least one linear map")
    if "sample_devices" in fields and config.server and config.sample_devices:
        raise UsageError("sample_devices: the server has its own: give one of them")
    if "task_args" in fields:
        assignments(config.task_args, "task_args")
    if "data" in fields and config.data is not None and config.task_args:
        raise UsageError("task_args describe a task, and data replaces it: give one of them")


def _check_type(name: str, value: Any, hint: Any) -> None:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if not any(_is_a(value, option) for option in options):
        wanted = " or ".join(_describe(option) for option in options)
        raise UsageError(f"{name} must be {wanted}, not {value!r}")


def _is_a(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    if get_origin(hint) is tuple:
        return "a tuple of strings"
    if hint is types.NoneType:
        return "None"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[hint]
