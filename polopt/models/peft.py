"""Adapters as PEFT keeps them: `adapter_config.json` and `adapter_model.safetensors`.

Theirs are the names of a Hugging Face model below `base_model.model.`, with `lora_A.weight`
[rank,in] and `lora_B.weight` [out,rank]: ours transposed.
"""

from __future__ import annotations

import functools
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polopt.errors import PoloptError
from polopt.models.families import FAMILIES, source_of, write_config
from polopt.models.huggingface import write_json
from polopt.models.intercept import linear_maps
from polopt.models.language_model import LanguageModel, Params
from polopt.models.lora import A, B, LoraModel, pairs
from polopt.models.safetensors_files import (
    SINGLE,
    Outgoing,
    Stored,
    read_header,
    read_into,
    read_json,
    write_tensors,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ROOT = "base_model.model."
_SIDES = {A: "lora_A", B: "lora_B"}
# What PEFT may add to plain adapters, and the values that add nothing.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_dora": (False, None),
    "use_rslora": (False, True, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
    "lora_bias": (False, None),
}


def save_peft(folder: str | Path, model: LoraModel, params: Params, base: str) -> None:
    """Write adapters as a folder that `peft.PeftModel.from_pretrained` loads.

    The base is not written (`polopt.models.huggingface.save` does that); quantised or not, PEFT
    puts the adapters over whatever is found under its name.

    Args:
      folder: a new one, or an empty one.
      model: the handle.
      params: its parameters, adapters and base.
      base: name or folder of the base, for those who load it.

    Raises:
      PoloptError: the folder holds something or cannot be written, no family has such a decoder, or
        PEFT has no such adapters.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PoloptError(f"{folder} is there already: name a new folder")
    names, tensors = _names(model), []
    for path in model.adapted():
        if path not in names:
            raise PoloptError(f"save_peft: PEFT has no adapters of {path}")
    for path, sides in pairs(params["adapters"]):
        for side, leaf in zip(_SIDES.values(), sides, strict=True):
            view = functools.partial(_transposed, leaf)
            name = f"{_ROOT}{names[path]}.{side}.weight"
            tensors.append(Outgoing(name, np.dtype(np.float32), leaf.shape[::-1], view))
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_tensors(partial, tensors, sum(tensor.size for tensor in tensors))
        os.replace(partial / SINGLE, partial / WEIGHTS)
        write_json(partial / CONFIG, _config(model, names, base))
        os.replace(partial, folder)
    except (OSError, PoloptError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, PoloptError):
            raise
        raise PoloptError(f"cannot write {folder}: {error.strerror or error}") from error


def load_peft(folder: str | Path, base: LanguageModel) -> tuple[LoraModel, Params]:
    """Read adapters that PEFT or `save_peft` wrote.

    Args:
      folder: with `adapter_config.json` and `adapter_model.safetensors`.
      base: the model that they were trained over.

    Returns:
      (handle, adapters): with the base's parameters, `join(adapters, base_params)` are the model's.

    Raises:
      PoloptError: files that are missing or damaged, adapters that are more than plain ones, or
        those of another model.
    """
    folder = Path(folder)
    rank, alpha = _read_config(folder / CONFIG)
    path_of = {f"{_ROOT}{name}": path for path, name in _names(base).items()}
    found: dict[str, dict[str, Stored]] = {}
    for name, tensor in read_header(folder / WEIGHTS).items():
        module, _, side = name.removesuffix(".weight").rpartition(".")
        if module not in path_of or side not in _SIDES.values():
            raise PoloptError(f"{folder / WEIGHTS}: {name} has no place in the model")
        found.setdefault(path_of[module], {})[side] = tensor
    model = LoraModel.over(base, rank=rank, alpha=alpha, targets=tuple(map(re.escape, found)))
    like = jax.eval_shape(model.init, jax.random.key(0))["adapters"]

    def read(path: tuple[Any, ...], leaf: Any) -> Array:
        *module, kind = (part.key for part in path)
        tensor = found["/".join(module)].get(_SIDES[kind])
        if tensor is None or tensor.shape != leaf.shape[::-1]:
            raise PoloptError(
                f"{folder / WEIGHTS}: {_SIDES[kind]} of {'/'.join(module)} is "
                f"{'missing' if tensor is None else list(tensor.shape)}: the model wants "
                f"{list(leaf.shape[::-1])}"
            )
        values = np.empty(tensor.shape, np.float32)
        read_into(tensor, values)
        return jnp.asarray(values.T)

    return model, jax.tree_util.tree_map_with_path(read, like)


def _names(model: LanguageModel) -> dict[str, str]:
    """Our paths of linear maps, and theirs; PEFT sees none in the router of experts."""
    family = FAMILIES[write_config(model.config)[0]]
    paths = [path for path in linear_maps(model.config) if not path.endswith("/router")]
    sources = {p: source_of(family, family.roots[0], (*p.split("/"), "kernel"), 0) for p in paths}
    return {path: source.names[0].removesuffix(".weight") for path, source in sources.items()}


def _config(model: LoraModel, names: Mapping[str, str], base: str) -> dict[str, Any]:
    """The adapter_config.json; modules are named by their last part where all layers have it."""
    adapted = {names[path] for path in model.adapted()}
    lasts = {name.rpartition(".")[2] for name in adapted}
    everywhere = {name for name in names.values() if name.rpartition(".")[2] in lasts}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": model.rank,
        "lora_alpha": model.alpha,
        "target_modules": sorted(lasts if everywhere == adapted else adapted),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _read_config(path: Path) -> tuple[int, float]:
    """(rank, alpha) of plain adapters."""
    values = read_json(path)
    for name, accepted in _PLAIN.items():
        if values.get(name, accepted[0]) not in accepted:
            raise PoloptError(f"{path}: {name} is {values[name]!r}, which is not supported here")
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or not alpha > 0:
        raise PoloptError(f"{path}: r is {rank!r}, lora_alpha {alpha!r}: give numbers above 0")
    rescaled = values.get("use_rslora")  # alpha over the root of the rank (2312.03732)
    return rank, alpha * math.sqrt(rank) if rescaled else float(alpha)


def _transposed(leaf: Array) -> np.ndarray:
    return np.asarray(leaf).T
