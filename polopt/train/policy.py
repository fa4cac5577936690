"""The policy of a run: the model that it starts from, and the one that a run has come to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from polopt.errors import PoloptError
from polopt.models import LanguageModel, base
from polopt.models.load import is_huggingface, load_model
from polopt.models.lora import LoraModel, join
from polopt.models.quantise import quantise
from polopt.models.tokenizer import Tokenizer
from polopt.train import checkpoint
from polopt.train.config import TrainConfig, read_config
from polopt.train.models import parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """A model that can be sampled: handle, weights, and the tokenizer that belongs to them."""

    model: LanguageModel
    params: Any
    tokenizer: Tokenizer


def load_policy(name: str, compute_dtype: str = "float32") -> Policy:
    """The model to start from, without adapters: those of a run are merged into it.

    Args:
      name: as in `polopt.models.load.load_model`, or the folder of a run, whose newest whole
        checkpoint is taken.
      compute_dtype: in which it computes.

    Raises:
      PoloptError: nothing of that name, or a run without a checkpoint.
    """
    if is_run(name):
        found = load_trained(name, compute_dtype)
        if not isinstance(found.model, LoraModel):
            return found
        model, params = found.model.merge(found.params)
        return dataclasses.replace(found, model=model, params=params)
    model, params, tokenizer = load_model(name, compute_dtype=compute_dtype)
    return Policy(model=model, params=params, tokenizer=tokenizer)


def load_trained(run: str, compute_dtype: str = "float32") -> Policy:
    """The policy of a run's newest whole checkpoint as it is trained: adapters beside their base.

    Args:
      run: its folder.
      compute_dtype: in which the model computes.

    Raises:
      PoloptError: no configuration there, or no checkpoint yet.
    """
    config = read_config(run)
    start = adapted(load_policy(config.model, compute_dtype), config)
    moving, fixed = parts(start.model, start.params)
    found = checkpoint.restore(Path(run) / "checkpoints", moving, prefix="params.policy.")
    if found is None:
        raise PoloptError(f"{run} has no checkpoint yet")
    params = found[1] if fixed is None else join(found[1], fixed)
    return dataclasses.replace(start, params=params)


def is_run(name: str) -> bool:
    """Whether a folder holds a run, and not a model."""
    folder = Path(name)
    configured = (folder / "config.json").is_file()
    return configured and not is_huggingface(folder) and not (folder / base.MANIFEST).is_file()


def adapted(policy: Policy, config: TrainConfig) -> Policy:
    """The policy as a run trains it: with fresh adapters, where the configuration asks for them.

    Raises:
      PoloptError: as `LoraModel` and `quantise`.
    """
    if not config.lora_rank:
        return policy
    model, params = policy.model, policy.params
    if config.quantise:
        model, params = quantise(model, params, config.quantise)
    model = LoraModel.over(
        model, rank=config.lora_rank, alpha=config.lora_alpha, targets=config.lora_targets
    )
    params = model.init(jax.random.fold_in(jax.random.key(config.seed), 6), params)
    return dataclasses.replace(policy, model=model, params=params)
