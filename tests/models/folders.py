"""Hugging Face folders for tests, written by the safetensors library, not by polopt."""

import json

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from public import checkpoints

CASES = sorted(path.stem for path in checkpoints.FOLDER.glob("*.npz"))


def write(folder, case="llama_biases", *, config=None, tensors=None):
    """A frozen case as a folder: its configuration and weights, or others."""
    meta, _ = checkpoints.frozen(case)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(meta["config"] if config is None else config))
    made = stored(case) if tensors is None else tensors
    safetensors.numpy.save_file(made, folder / "model.safetensors", {"format": "pt"})
    return folder


def stored(case):
    """{name: array in the type of the file}."""
    meta, _ = checkpoints.frozen(case)
    tensors = checkpoints.tensors(meta)
    return {name: x.astype(jnp.dtype(meta["dtype"])) for name, x in tensors.items()}


def config_of(case):
    return checkpoints.frozen(case)[0]["config"]


def flat(params, path=()):
    """{"layers/0/...": array}."""
    if not isinstance(params, dict):
        return {"/".join(path): np.asarray(params)}
    return {k: v for key, sub in params.items() for k, v in flat(sub, (*path, key)).items()}
