"""Shapes of models by name: what their authors' config.json says, and no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polopt.errors import PoloptError, did_you_mean
from polopt.models import DecoderConfig, base
from polopt.models.families import read_config
from polopt.models.load import BASE
from polopt.train.config import read_object, read_text

_LLAMA3 = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
}

SHAPES: Mapping[str, Mapping[str, Any]] = {
    # huggingface.co/meta-llama/Meta-Llama-3-8B and -70B
    "llama3-8b": _LLAMA3
    | {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "llama3-70b": _LLAMA3
    | {
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    # huggingface.co/Qwen/Qwen2.5-0.5B
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
    },
    # huggingface.co/HuggingFaceTB/SmolLM2-135M
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000,
        "tie_word_embeddings": True,
    },
}


def read_shape(name: str) -> DecoderConfig:
    """The decoder that a name, or the config.json of a folder, describes.

    Args:
      name: a key of `SHAPES`, "base", or a folder as Hugging Face or polopt writes it.

    Raises:
      PoloptError: none of these, or a config.json that describes no decoder of ours.
    """
    if name in SHAPES:
        return read_config(SHAPES[name], name)[1]
    if name == BASE:
        text = (Path(base.EMBEDDED) / "config.json").read_text(encoding="utf-8")
        return DecoderConfig.from_dict(json.loads(text))
    if not (Path(name) / "config.json").is_file():
        known = (*SHAPES, BASE)
        raise PoloptError(
            f"no model shape {name!r}: accepted are {', '.join(known)}, and a folder with a "
            f"config.json{did_you_mean(name, known)}"
        )
    text, where = read_text(name)
    values = read_object(text, where)
    return read_config(values, where)[1] if "model_type" in values else _own(values, where)


def _own(values: Mapping[str, Any], where: str) -> DecoderConfig:
    try:
        return DecoderConfig.from_dict(values)
    except PoloptError as error:
        raise PoloptError(f"{where} describes no model: {error}") from error
