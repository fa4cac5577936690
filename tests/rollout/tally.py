"""A world of 32 characters with an environment that counts what the model wrote."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
from train import toy

from polopt.rollout.collect import Collector
from polopt.rollout.draw import Decoding
from polopt.rollout.lanes import Generated
from polopt.rollout.sampler import generate
from polopt.tasks import Example, Task
from polopt.tasks.environment import Environment, Reply
from polopt.trajectory import Sampling
from polopt.types import Stop

PARAMS = toy.params()
C = 12
STOPS = tuple("=abcjkl")  # many, so that turns are short


@dataclasses.dataclass(frozen=True)
class Spelling:
    """A tokenizer: id 0 is padding, 1 ends a text, 2 opens it, the others are characters."""

    letters: str = "_.^=0123456789abcdefghijklmnopqr"
    vocab_size: int = 32
    eos_ids: tuple[int, ...] = (1,)

    def encode(self, text):
        return [self.letters.index(c) for c in text]

    def prompt(self, question):
        return [2, *self.encode(question)]

    def decode(self, ids):
        return "".join(self.letters[i] for i in ids if i > 2)


def step(state, text):
    """Say how much was written, at times not at all; `q` breaks the tool, `r` ends the episode."""
    told = str(len(text)) * (len(text) % 3)
    reply = Reply(state=state + len(text), text=told, rewards={"tool": 0.5 * len(text)})
    done = "r" in text or not text.endswith(STOPS)
    return dataclasses.replace(reply, done=done, failed="q" in text)


ENVIRONMENT = Environment(
    start=lambda example: example.index,
    step=step,
    label=lambda state: f"{state % 3}",
    stop=STOPS,
    parts=("tool",),
    max_turns=3,
    turn_tokens=6,
    observation_tokens=2,
)
SILENT = dataclasses.replace(
    ENVIRONMENT,
    step=lambda state, text: Reply(state=state, done=not text.endswith(STOPS)),
    max_turns=C,
    turn_tokens=C,
    observation_tokens=0,
)


def task(environment=ENVIRONMENT, **changes):
    made = Task(
        name="tally",
        train=lambda i: Example(prompt="defgh"[: 1 + i % 4], answer="", index=i),
        held_out=tuple(Example(prompt="mno"[:i], answer="", index=i) for i in (1, 2, 3)),
        reward=lambda text, example: {"score": float("e" in text)},
        environment=environment,
    )
    return dataclasses.replace(made, **changes)


def collector(on=None, *, max_new_tokens=C, max_length=32, **sampling):
    return Collector(
        task=on or task(),
        tokenizer=Spelling(),
        sampling=Sampling(**{"group_size": 2, **sampling}),
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        temperature=0.9,
    )


def sampler(made, key=0, **decoding):
    """Real draws of the toy model, compiled once for equal shapes."""
    return functools.partial(_sample, made, jax.random.key(key), Decoding(**decoding))


def _sample(made, key, decoding, prompts, lengths, ids, offset=None):
    return generate(
        toy.MODEL,
        PARAMS,
        prompts,
        lengths,
        ids.reshape(-1),
        key=key,
        group_size=ids.shape[1],
        max_new_tokens=made.turn_tokens,
        decoding=dataclasses.replace(decoding, temperature=0.9),
        eos_ids=(1,),
        stop_ids=made.stop_ids,
        offset=(np.zeros_like(ids) if offset is None else offset).reshape(-1),
        entropy=made.entropy,
    )


class Script:
    """A sampler without a model: the next text of each row, by id; `.` is the end of sequence."""

    def __init__(self, made, turns, entropy=None):
        self.made, self.left = made, {i: list(texts) for i, texts in turns.items()}
        self.entropy, self.calls = entropy, []

    def __call__(self, prompts, lengths, ids, offset=None):
        flat = ids.reshape(-1)
        offset = np.zeros(len(flat), int) if offset is None else offset.reshape(-1)
        real = np.repeat(lengths, ids.shape[1]) > 0
        self.calls.append((prompts, lengths, ids, offset))
        texts = [self.left[int(i)].pop(0) if r else "" for i, r in zip(flat, real, strict=True)]
        shape = (len(flat), self.made.turn_tokens)
        tokens, logp = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        stop = np.zeros(len(flat), np.int32)
        for n, text in enumerate(texts):
            tokens[n, : len(text)] = Spelling().encode(text)
            logp[n, : len(text)] = -(offset[n] + 1 + np.arange(len(text))) / 8
            if real[n]:
                ends = {".": Stop.EOS, **dict.fromkeys(STOPS, Stop.STOP_TOKEN)}
                stop[n] = ends.get(text[-1:], Stop.LENGTH)
        return Generated(
            tokens=tokens,
            length=np.array([len(text) for text in texts], np.int32),
            logp_sampler=logp,
            log_keep=logp / 2,
            stop=stop,
            entropy=None if self.entropy is None else np.full(shape, self.entropy(flat, offset)),
        )


@jax.jit
def rescored(tokens, temperature):
    """f32[N,T]: the log-probability of every token in a plain forward pass."""
    hidden = toy.MODEL.hidden(PARAMS, tokens[:, :-1])
    logits = toy.MODEL.logits(PARAMS, hidden) / temperature[:, None, None]
    logp = jax.nn.log_softmax(logits)
    found = jax.numpy.take_along_axis(logp, tokens[:, 1:, None], 2)[:, :, 0]
    return jax.numpy.pad(found, ((0, 0), (1, 0)))
