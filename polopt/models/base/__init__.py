"""The embedded base model, and the form in which a small model is kept in a folder.

A folder holds `weights.safetensors` (bfloat16), `tokenizer.json`, `config.json` (the decoder's
shape) and `manifest.json` (sha256 of the other three). Nothing is read before its digest agrees.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from polopt.errors import PoloptError, missing_extra
from polopt.models.config import DecoderConfig
from polopt.models.language_model import LanguageModel, Params
from polopt.models.tokenizer import Tokenizer

EMBEDDED = Path(__file__).parent
_FILES = ("weights.safetensors", "tokenizer.json", "config.json")
MANIFEST = "manifest.json"


def load(folder: str | Path = EMBEDDED) -> tuple[LanguageModel, Params, Tokenizer]:
    """Read a model folder; by default the model that ships with polopt.

    Returns:
      (model, params in float32, tokenizer).

    Raises:
      PoloptError: a file is missing or is not the one that was saved, or the weights do not have
        the shapes that the configuration asks for.
    """
    content = _verified(Path(folder))
    model = LanguageModel(DecoderConfig.from_dict(json.loads(content["config.json"])))
    tokenizer = Tokenizer(content["tokenizer.json"].decode())
    arrays = _arrays(content["weights.safetensors"], str(folder))
    return model, _unflatten(arrays, _expected(model), str(folder)), tokenizer


def save(folder: str | Path, model: LanguageModel, params: Params, tokenizer: Tokenizer) -> None:
    """Write a model folder, which is made if it is not there; weights are rounded to bfloat16."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        name: np.asarray(leaf).astype(ml_dtypes.bfloat16) for name, leaf in _flatten(params).items()
    }
    config = json.dumps(model.config.to_dict(), indent=2) + "\n"
    parts = (_safetensors().numpy.save(arrays), tokenizer.source.encode(), config.encode())
    content = dict(zip(_FILES, parts, strict=True))
    for name, part in content.items():
        (folder / name).write_bytes(part)
    digests = {name: hashlib.sha256(part).hexdigest() for name, part in content.items()}
    (folder / MANIFEST).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")


def _verified(folder: Path) -> dict[str, bytes]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        content = {name: (folder / name).read_bytes() for name in _FILES}
    except OSError as error:
        raise PoloptError(f"no model in {folder}: cannot read {error.filename}") from error
    except ValueError as error:
        raise PoloptError(f"{folder / MANIFEST}: not JSON: {error}") from error
    for name, part in content.items():
        known = manifest.get(name) if isinstance(manifest, dict) else None
        if hashlib.sha256(part).hexdigest() != known:
            raise PoloptError(
                f"{folder / name}: damaged or replaced: its sha256 is not the one in {MANIFEST}"
            )
    return content


def _arrays(content: bytes, folder: str) -> dict[str, np.ndarray]:
    """The library's own NumPy reader does not know bfloat16, the one type of these files."""
    arrays = {}
    for name, view in _safetensors().deserialize(content):
        if view["dtype"] != "BF16":
            raise PoloptError(f"{folder}: weight {name} is {view['dtype']}, not BF16")
        arrays[name] = np.frombuffer(view["data"], ml_dtypes.bfloat16).reshape(view["shape"])
    return arrays


def _expected(model: LanguageModel) -> dict[str, tuple[int, ...]]:
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return {name: leaf.shape for name, leaf in _flatten(shapes).items()}


def _flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """{"layers.0.mlp.up.kernel": leaf}."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _unflatten(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], folder: str
) -> Params:
    found = {name: array.shape for name, array in arrays.items()}
    wrong = sorted(name for name in expected if found.get(name) != expected[name])
    wrong += sorted(set(found) - set(expected))
    if wrong:
        name = wrong[0]
        raise PoloptError(
            f"{folder}: weight {name} has shape {found.get(name, 'none')}, "
            f"the configuration asks for {expected.get(name, 'none')}"
        )
    params: Params = {}
    for name, array in arrays.items():
        *path, last = name.split(".")
        node = params
        for part in path:
            node = node.setdefault(part, {})
        node[last] = jax.numpy.asarray(array.astype(np.float32))
    return params


def _read(content: bytes, folder: str) -> dict[str, np.ndarray]:
    """Arrays by name; by hand, as the library's NumPy reader knows no bfloat16."""
    arrays = {}
    for name, info in _safetensors().deserialize(content):
        if info["dtype"] != "BF16":
            raise PoloptError(f"{folder}: weight {name} is {info['dtype']}, not BF16")
        arrays[name] = np.frombuffer(info["data"], ml_dtypes.bfloat16).reshape(info["shape"])
    return arrays


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise missing_extra("safetensors", "reading model weights") from error
    return safetensors
