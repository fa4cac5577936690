"""A model from whatever names it: the one that ships, a known name, a file or a folder."""

from __future__ import annotations

import json
from pathlib import Path

from polopt.errors import PoloptError, did_you_mean
from polopt.models import base, gguf, huggingface
from polopt.models.language_model import LanguageModel, Params
from polopt.models.named import MODELS, load_named
from polopt.models.tokenizer import Tokenizer

BASE = "base"


def load_model(
    name: str, *, compute_dtype: str = "float32"
) -> tuple[LanguageModel, Params, Tokenizer]:
    """A model with its weights and its tokenizer.

    Args:
      name: "base", a key of `polopt.models.named.MODELS`, a GGUF file, or a folder as
        `polopt pretrain` or Hugging Face writes it.
      compute_dtype: in which it computes; weights are float32.

    Raises:
      PoloptError: none of these, or a file that is damaged.
    """
    path = Path(name)
    if name == BASE or (path / base.MANIFEST).is_file():
        model, params, tokenizer = base.load() if name == BASE else base.load(path)
        return LanguageModel(model.config, compute_dtype), params, tokenizer
    if name in MODELS:
        return load_named(name, compute_dtype=compute_dtype)
    if path.suffix == ".gguf":
        return gguf.load(path, compute_dtype=compute_dtype)
    if is_huggingface(path):
        model, params, found = huggingface.load(path, compute_dtype=compute_dtype)
        if found is None:
            raise PoloptError(f"{path}: no tokenizer.json beside the weights")
        return model, params, found
    known = (BASE, *MODELS)
    raise PoloptError(
        f"no model {name!r}: accepted are {', '.join(known)}, a .gguf file, and the folder of a "
        f"model or a run{did_you_mean(name, known)}"
    )


def is_huggingface(folder: Path) -> bool:
    """Whether a folder has the config.json of a model, and not that of a run."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "model_type" in values
