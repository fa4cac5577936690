"""Model families of Hugging Face: their configurations and tensor names, and ours.

A family is one entry of `FAMILIES`: how its `config.json` is read and written, and what it calls
our modules. `DecoderConfig` knows no families: it is written by the first family that reads back
from what it wrote the same decoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from polopt.errors import PoloptError, did_you_mean
from polopt.models.config import DecoderConfig, Experts, RopeScaling
from polopt.models.options import ABSENT, Options

_Fields = dict[str, Any]

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu"}
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What a `model_type` means.

    Args:
      read: from the options of config.json to the fields of a `DecoderConfig`.
      write: the inverse; what it cannot express it leaves out.
      names: our modules to theirs; those of layers stand without the layer, and `{expert}` is the
        number of an expert, of which ours has all in one array.
      architecture: the class that transformers makes of it.
      roots: what may stand before all names but the head's.
      others: what names of tensors begin with that the text model has no use for.
    """

    read: Callable[[Options], _Fields]
    write: Callable[[DecoderConfig], dict[str, Any]]
    names: Mapping[str, str]
    architecture: str
    roots: tuple[str, ...] = ("model.",)
    others: tuple[str, ...] = ()
