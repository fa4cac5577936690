"""A conversation with a model, turn by turn."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from polopt.errors import PoloptError, UsageError
from polopt.models.kernels import AUTO
from polopt.rollout.draw import Decoding
from polopt.rollout.sampler import generate
from polopt.train.policy import Policy, attending, instructed, load_policy
from polopt.types import Stop

REPLY = 256  # tokens
NARROWEST = 64  # tokens; widths double from here, so that few turns compile anything


@dataclasses.dataclass(frozen=True, kw_only=True)
class Said:
    """What a model replied, and whether the limit of tokens cut it."""

    text: str
    cut: bool


class Talk:
    """What was said so far, and the model that replies.

    With a chat template the whole conversation is put to the model at every turn. Without one
    there is no conversation: each text is continued on its own.
    """

    def __init__(
        self, policy: Policy, decoding: Decoding, *, max_new_tokens: int, seed: int = 0
    ) -> None:
        """Begin with nothing said; a system message is the tokenizer's."""
        self._policy, self._decoding = policy, decoding
        self._room, self._key = max_new_tokens, jax.random.key(seed)
        self._history: list[dict[str, Any]] = []
        self._turn = 0

    @property
    def remembers(self) -> bool:
        """Whether a turn is told of those before it."""
        return self._policy.tokenizer.chat_template is not None

    def forget(self) -> None:
        """Begin anew."""
        self._history = []

    def reply(self, text: str) -> Said:
        """What the model says to a text.

        Raises:
          PoloptError: the conversation leaves no room for a reply; it stays as it was before.
        """
        tokenizer = self._policy.tokenizer
        if self.remembers:
            new = [{"role": "user", "content": text}]
            history = self._history + new if self._history else tokenizer.asked(text)
            prompt = tokenizer.chat(history, reply=True)
        else:
            history, prompt = [], tokenizer.prompt(text)
        tokens, stop = self._draw(prompt)
        said = tokenizer.decode(tokens)
        self._turn += 1
        if self.remembers:
            self._history = [*history, {"role": "assistant", "content": said}]
        return Said(text=said.strip(), cut=stop == Stop.LENGTH)

    def _draw(self, prompt: list[int]) -> tuple[list[int], Stop]:
        policy, longest = self._policy, self._policy.model.config.max_length
        widest = longest - self._room
        if len(prompt) > widest:
            raise PoloptError(
                f"the context is full: {len(prompt)} tokens and {self._room} for a reply, and the "
                f"model holds {longest}"
            )
        width = min(max(NARROWEST, 1 << (len(prompt) - 1).bit_length()), widest)
        padded = np.zeros((1, width), np.int32)
        padded[0, : len(prompt)] = prompt
        made = generate(
            policy.model,
            policy.params,
            padded,
            np.array([len(prompt)], np.int32),
            np.array([self._turn], np.int32),
            key=self._key,
            group_size=1,
            max_new_tokens=self._room,
            decoding=self._decoding,
            eos_ids=policy.tokenizer.eos_ids,
            allowed_vocab=policy.tokenizer.vocab_size,
        )
        tokens = np.asarray(made.tokens[0, : int(made.length[0])])
        return tokens.tolist(), Stop(int(made.stop[0]))


def open_talk(
    model: str, decoding: Decoding, *, system: str | None, max_new_tokens: int | None, seed: int
) -> Talk:
    """A conversation with the model of that name (`polopt.train.policy.load_policy`).

    Args:
      decoding: how its tokens are drawn.
      system: message under which it is asked; None for what it was trained under, "" for none.
      max_new_tokens: longest reply; 256, or half of the context if that is less, if not given.
      seed: of the draws.

    Raises:
      UsageError: a system message for a model without a chat template.
      PoloptError: no such model, or no room for a reply of `max_new_tokens` in its context.
    """
    policy = attending(load_policy(model), AUTO, jax.default_backend())
    policy = instructed(policy, system, form="")
    longest = policy.model.config.max_length
    most = max_new_tokens or min(REPLY, longest // 2)
    if most >= longest:
        raise UsageError(f"max_new_tokens={most}, but the model holds {longest} in all")
    return Talk(policy, decoding, max_new_tokens=most, seed=seed)
