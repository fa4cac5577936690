"""Reading a `config.json`: every option has its type and range, and none that matters is missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from polopt.errors import PoloptError

ABSENT: Any = object()  # the default of an option that must be there
MOST = 2**24  # sizes of any model; products of them stay within 64 bits
_T = TypeVar("_T")

# Options that change what some model computes, and their values that change nothing. A family that
# does not read one of them accepts these values only.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "partial_rotary_factor": (None, 1, 1.0),
    "rope_interleaved": (None, False),
    "rope_local_base_freq": (None,),
    "no_rope_layers": (None, []),
    "quantization_config": (None,),
    "sliding_window": (None,),
    "layer_types": (None,),
    "use_sliding_window": (None, False),
    "use_bidirectional_attention": (None, False),
    "is_causal": (None, True),
    "use_qk_norm": (None, False),
    "qk_layernorm": (None, False),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "moe_intermediate_size": (None,),
    "shared_expert_intermediate_size": (None, 0),
    "add_cross_attention": (None, False),
    "per_layer_config": (None, {}),
}


class Options:
    """An object of JSON, and which of its keys were read.

    Args:
      values: the object.
      where: its name in errors.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values, self._where, self._seen = values, where, set[str]()

    def get(self, key: str, default: Any = ABSENT) -> Any:
        """The value as it stands there; null counts as absent if there is a default."""
        self._seen.add(key)
        found = self._values.get(key)
        if found is None and default is ABSENT:
            raise PoloptError(f"{self._where} has no {key!r}")
        return default if found is None else found

    def has(self, key: str) -> bool:
        """Whether the key stands there, be it with null."""
        return key in self._values

    def size(self, key: str, default: Any = ABSENT, most: int = MOST, least: int = 1) -> Any:
        """An integer from `least` to `most`, or the default."""
        value = self.get(key, default)
        if value is default or (type(value) is int and least <= value <= most):
            return value
        raise self.wrong(key, value, f"integers from {least} to {most}")

    def number(self, key: str, default: Any = ABSENT) -> Any:
        """A finite number above 0 as a float, or the default."""
        value = self.get(key, default)
        if value is default:
            return value
        if type(value) in (int, float) and 0 < value < 1e38:
            return float(value)
        raise self.wrong(key, value, "numbers above 0")

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        if type(value) is not bool:
            raise self.wrong(key, value, "true and false")
        return value

    def choice(self, key: str, accepted: Mapping[str, _T], default: Any = ABSENT) -> _T:
        """What a word means."""
        word = self.get(key, default)
        if not isinstance(word, str) or word not in accepted:
            raise self.wrong(key, word, ", ".join(accepted))
        return accepted[word]

    def list_of(self, key: str, accepted: Sequence[Any] | range) -> list[Any] | None:
        """A list of accepted values, or None."""
        values = self.get(key, None)
        if values is None:
            return None
        if not isinstance(values, list) or any(
            isinstance(v, (list, dict, bool, float)) or v not in accepted for v in values
        ):
            named = f"0 to {len(accepted) - 1}" if isinstance(accepted, range) else accepted
            raise self.wrong(key, values, f"lists of {named}")
        return values

    def inner(self, key: str, default: Any = None) -> Any:
        """The Options of an object within this one, or the default."""
        value = self.get(key, default)
        if value is default:
            return value
        if not isinstance(value, dict):
            raise self.wrong(key, value, "objects")
        return Options(value, f"{self._where}: {key}")

    def check_unread(self) -> None:
        """Refuse what was not read and would change what the model computes.

        Raises:
          PoloptError: naming the first such option and its accepted values.
        """
        for key, accepted in _WITHOUT_EFFECT.items():
            value = self._values.get(key)
            if key not in self._seen and value not in accepted:
                raise self.wrong(key, value, "here " + " and ".join(map(repr, accepted)))

    def check_all_read(self) -> None:
        """Refuse every key that was not read."""
        unread = sorted(set(self._values) - self._seen)
        if unread:
            known = ", ".join(sorted(self._seen))
            raise PoloptError(
                f"{self._where}: {unread[0]!r} is not supported: accepted are {known}"
            )

    def wrong(self, key: str, value: Any, accepted: str) -> PoloptError:
        """The error for a value that is not accepted."""
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return self.error(f"{key} is {shown}: accepted are {accepted}")

    def error(self, message: str) -> PoloptError:
        """The error of some message, with the place in front."""
        return PoloptError(f"{self._where}: {message}")
