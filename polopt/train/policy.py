"""The policy of a run: the model that it starts from, and the one that a run has come to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from polopt.errors import PoloptError, UsageError
from polopt.models import LanguageModel, base
from polopt.models.kernels import choose
from polopt.models.load import is_huggingface, load_model
from polopt.models.lora import LoraModel, join
from polopt.models.quantise import quantise
from polopt.models.tokenizer import Tokenizer
from polopt.train import checkpoint
from polopt.train.config import TrainConfig
from polopt.train.models import parts
from polopt.train.sft_config import SftConfig, read_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """A model that can be sampled: handle, weights, and the tokenizer that belongs to them."""

    model: LanguageModel
    params: Any
    tokenizer: Tokenizer


def instructed(policy: Policy, system: str | None, form: str) -> Policy:
    """The policy with the message under which problems are put to it.

    Args:
      system: the message; "" for none. If it is None, a policy that was trained under a message
        keeps it, and another one with a chat template is told the form of an answer.
      form: of an answer, as `Task.instruction` has it.

    Raises:
      UsageError: a message, and no chat template to put it into.
    """
    if system is None:
        if not form or not policy.tokenizer.chat_template or policy.tokenizer.system is not None:
            return policy
        system = form
    elif system and not policy.tokenizer.chat_template:
        raise UsageError("system: the model has no chat template to put a message into: leave out")
    tokenizer = dataclasses.replace(policy.tokenizer, system=system)
    return dataclasses.replace(policy, tokenizer=tokenizer)


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
    config = read_run(run)
    start = adapted(load_policy(config.model, compute_dtype), config)
    moving, fixed = parts(start.model, start.params)
    found = checkpoint.restore(Path(run) / "checkpoints", moving, prefix="params.policy.")
    if found is None:
        raise PoloptError(f"{run} has no checkpoint yet")
    params = found[1] if fixed is None else join(found[1], fixed)
    tokenizer = start.tokenizer
    if config.system is not None:
        tokenizer = dataclasses.replace(tokenizer, system=config.system)
    return dataclasses.replace(start, params=params, tokenizer=tokenizer)


def attending(policy: Policy, asked: str, platform: str) -> Policy:
    """The policy on devices of a platform, with the attention that is asked for.

    Raises:
      UsageError: as `polopt.models.kernels.choose`.
    """
    kind = choose(asked, platform)
    return dataclasses.replace(policy, model=dataclasses.replace(policy.model, attention=kind))


def is_run(name: str) -> bool:
    """Whether a folder holds a run, and not a model."""
    folder = Path(name)
    configured = (folder / "config.json").is_file()
    return configured and not is_huggingface(folder) and not (folder / base.MANIFEST).is_file()


def adapted(policy: Policy, config: TrainConfig | SftConfig) -> Policy:
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
