"""Two decoders side by side that write one completion: a mixture of their distributions."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from polopt.errors import PoloptError
from polopt.models.config import DecoderConfig
from polopt.models.language_model import Integers, LanguageModel


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MixedModel:
    """What a sampler asks of a model, answered by two: `α p_other + (1 - α) p_policy`.

    Its `params`, prompts, caches and hidden states are pairs, the policy's first.

    Args:
      policy, other: decoders with one vocabulary.
      alpha: weight of `other`, in [0, 1].
      temperature: at which the two distributions are mixed: the one that is sampled at.

    Raises:
      PoloptError: vocabularies of different sizes.
    """

    policy: LanguageModel
    other: LanguageModel
    alpha: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        sizes = self.policy.config.vocab_size, self.other.config.vocab_size
        if sizes[0] != sizes[1]:
            raise PoloptError(f"models that are mixed must share a vocabulary; sizes are {sizes}")

    @property
    def config(self) -> DecoderConfig:
        """The policy's shape, with the room that both have."""
        room = min(self.policy.config.max_length, self.other.config.max_length)
        return dataclasses.replace(self.policy.config, max_length=room)

    def prefill(self, params: Any, tokens: Integers, lengths: Integers) -> tuple[Any, Any]:
        """As `LanguageModel.prefill`, of each."""
        made = [
            model.prefill(own, tokens, lengths)
            for model, own in zip(self._models, params, strict=True)
        ]
        return tuple(first for first, _ in made), tuple(second for _, second in made)

    def empty_cache(self, rows: int, length: int) -> Any:
        """As `LanguageModel.empty_cache`, of each."""
        return tuple(model.empty_cache(rows, length) for model in self._models)

    def decode(
        self,
        params: Any,
        prompt: Any,
        cache: Any,
        tokens: Integers,
        step: Integers | int,
        place: Integers | None = None,
    ) -> tuple[Any, Any]:
        """As `LanguageModel.decode`: both read the token that the mixture drew."""
        made = [
            model.decode(own, own_prompt, own_cache, tokens, step, place)
            for model, own, own_prompt, own_cache in zip(
                self._models, params, prompt, cache, strict=True
            )
        ]
        return tuple(first for first, _ in made), tuple(second for _, second in made)

    def logits(self, params: Any, hidden: Any) -> Array:
        """f32[...,V] whose softmax at `temperature` is the mixture."""
        policy, other = (
            jax.nn.log_softmax(model.logits(own, state) / self.temperature)
            for model, own, state in zip(self._models, params, hidden, strict=True)
        )
        share = jnp.float32(self.alpha)
        mixed = jnp.logaddexp(policy + jnp.log1p(-share), other + jnp.log(share))
        return mixed * self.temperature

    @property
    def _models(self) -> tuple[LanguageModel, LanguageModel]:
        return self.policy, self.other
