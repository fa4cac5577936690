"""Sampling from a server that holds the model: vLLM or SGLang, one request per completion.

Ids go in and ids come out; nothing is tokenised here. What a server says is checked against what
was asked and recorded under its right name: `logp_sampler` is the log-probability under the
distribution that was sampled, and where a server's numbers cannot be read so, it is refused before
anything is sampled. `docs/external_sampler.md` says how to start servers.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from polopt.algorithm import Algorithm, pieces, terms
from polopt.errors import PoloptError, did_you_mean
from polopt.modifiers import with_truncated_is
from polopt.rollout.dialects import DIALECTS, Ask, Dialect, Reply, Reported
from polopt.rollout.draw import Decoding
from polopt.rollout.lanes import Generated
from polopt.rollout.replies import COLDEST, check_decoding, check_reply, split
from polopt.rollout.wire import Line, Server, ServerError, all_at_once
from polopt.trajectory import (
    flow_balance,
    masked_is,
    pairwise_logistic,
    pairwise_regression,
    pairwise_square,
    squared_regression,
    truncated_is,
    value_regression,
)
from polopt.transform import Transform
from polopt.types import Stop


class Found(NamedTuple):
    """What a server says of itself."""

    server: Server
    dialect: Dialect
    model: str
    max_length: int | None  # tokens of prompt and completion, where told

    def __str__(self) -> str:
        room = f", at most {self.max_length} tokens" if self.max_length else ""
        return f"{self.dialect.name} at {self.server.url} serves {self.model}{room}"


def probe(server: Server, model: str | None = None, dialect: Dialect | None = None) -> Found:
    """Ask a server what it is.

    Args:
      server: where it listens.
      model: the name under which it serves the policy; not needed where there is only one.
      dialect: how it is spoken to; read off its list of models unless given.

    Raises:
      ServerError: no server there, one of another kind, or no such model.
    """
    where = f"{server.url}/v1/models"
    answer = server.get("/v1/models")
    listed = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(listed, list) or not all(isinstance(x, dict) for x in listed):
        raise ServerError(f"{where}: the reply has no list of models in data")
    cards = {str(card.get("id")): card for card in listed}
    if model is None and len(cards) != 1:
        raise ServerError(f"{where}: name the model, one of {', '.join(cards) or '(none)'}")
    name = next(iter(cards)) if model is None else model
    if name not in cards:
        raise ServerError(
            f"{where}: no model {name!r}{did_you_mean(name, cards)} (there is {', '.join(cards)})"
        )
    owner, room = cards[name].get("owned_by"), cards[name].get("max_model_len")
    known = {kind.owner: kind for kind in DIALECTS}
    found = dialect or known.get(str(owner))
    if found is None:
        raise ServerError(
            f"{where}: the models are owned by {owner!r}, which is neither of {', '.join(known)}: "
            "say which dialect the server speaks"
        )
    return Found(server, found, name, room if type(room) is int else None)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ServerSampler:
    """A `Sampler` whose draws are made by a server.

    Every completion is a request of its own with a seed of its own, derived from `seed`, the row's
    id and its offset: so far as the server honours seeds, draws belong to rows and not to batches.

    Args:
      found: the server, from `probe`.
      decoding: how tokens are drawn; temperature is one number, at least 0.01.
      max_new_tokens: most tokens of a completion.
      vocab_size: ids at or above it are refused.
      eos_ids: tokens that end a row with Stop.EOS.
      stop_ids: further tokens that end a row, with Stop.STOP_TOKEN.
      seed: of the run; see `seed_of` for that of a key.
      reports: what the server's log-probabilities are of; the dialect's default unless the server
        was started otherwise.
      concurrency: requests under way at once.
      version: of the weights that the server has.
      push: `(params, version) -> None`, gives the server new weights and returns when it samples
        from them; without it the server keeps those that it has.

    Raises:
      PoloptError: with this decoding the server's log-probabilities are not those of what was
        sampled, or a number is out of range.
    """

    found: Found
    decoding: Decoding
    max_new_tokens: int
    vocab_size: int
    eos_ids: tuple[int, ...]
    stop_ids: tuple[int, ...] = ()
    seed: int = 0
    reports: Reported | None = None
    concurrency: int = 64
    version: int = 0
    push: Callable[[Any, int], None] | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "vocab_size", "concurrency"):
            if getattr(self, name) < 1:
                raise PoloptError(f"ServerSampler.{name} is {getattr(self, name)}: give at least 1")
        check_decoding(self.decoding, self.found.dialect, self._reports)

    def __call__(
        self,
        prompts: np.ndarray,
        lengths: np.ndarray,
        ids: np.ndarray,
        offset: np.ndarray | None = None,
        /,
    ) -> Generated:
        """The next tokens of every row: see `polopt.rollout.rows.Sampler`.

        Raises:
          ServerError: a request that got no good answer. The others are abandoned: a batch is
            whole or it is not there.
        """
        prompts, lengths, ids = (np.asarray(x) for x in (prompts, lengths, ids))
        P, G = ids.shape
        offset = np.zeros_like(ids) if offset is None else np.asarray(offset)
        places = [(p, g) for p in range(P) if lengths[p] > 0 for g in range(G)]
        asks = []
        for at in places:
            row, prompt = int(ids[at]), prompts[at[0], : lengths[at[0]]].tolist()
            asks.append(
                (f"row {row}", self._ask(prompt, seed_for(self.seed, row, int(offset[at]))))
            )
        replies = self._answers(asks)
        rows = [p * G + g for p, g in places]
        return self._generated(P * G, dict(zip(rows, replies, strict=True)))

    def pushed(self, params: Any, version: int) -> ServerSampler:
        """The sampler once the server has these weights; itself if nothing can give it any."""
        if self.push is None:
            return self
        self.push(params, version)
        return dataclasses.replace(self, version=version)

    def verify(self) -> None:
        """Ask for two tokens, and see whether log-probabilities are what `reports` says.

        At a temperature near 0 the likeliest token is all but certain. A server that reports after
        temperature says so; one that reports the model's own distribution never gives a token
        more than the greedy one has. A model that is all but certain itself shows nothing, and
        then nothing is refused.

        Raises:
          ServerError: the log-probabilities are of another distribution.
        """
        prompt = [(*self.eos_ids, 0)[0]]
        asks = [
            (what, self._ask(prompt, 0)._replace(decoding=how, most=1))
            for what, how in (
                ("greedy check of log-probabilities", Decoding(greedy=True)),
                ("cold check of log-probabilities", Decoding(temperature=COLDEST)),
            )
        ]
        own, sharp = (float(reply.logp[0]) for reply in self._answers(asks))
        raw = self._reports is Reported.RAW
        if own < -0.1 and (sharp > own + 0.1 if raw else sharp < own + 0.01):
            raise ServerError(
                f"{self.found.server.url}: log-probabilities are those "
                f"{'after' if raw else 'before'} temperature (greedy {own:.3f}, at {COLDEST} "
                f"{sharp:.3f}), and reports is {self._reports.value!r}"
            )

    @property
    def _reports(self) -> Reported:
        return self.reports or self.found.dialect.reports

    def _ask(self, prompt: list[int], seed: int) -> Ask:
        stop = (*self.eos_ids, *self.stop_ids)
        return Ask(self.found.model, prompt, seed, self.decoding, self.max_new_tokens, stop)

    def _answers(self, asks: list[tuple[str, Ask]]) -> list[Reply]:
        server, dialect = self.found.server, self.found.dialect

        def answer(line: Line, who: str, ask: Ask) -> Reply:
            told = line.exchange("POST", dialect.path, dialect.body(ask), who)
            try:
                reply = dialect.read(told, ask)
                check_reply(reply, ask, self.vocab_size, self.version)
            except PoloptError as error:
                raise ServerError(
                    f"{server.url}{dialect.path}, {who}: in the reply {error}"
                ) from error
            return reply

        return all_at_once(server, asks, answer, self.concurrency)

    def _generated(self, rows: int, replies: dict[int, Reply]) -> Generated:
        shape = rows, self.max_new_tokens
        tokens, length, stop = np.zeros(shape, np.int32), *np.zeros((2, rows), np.int32)
        logp, keep = np.zeros((2, *shape), np.float32)
        for n, reply in replies.items():
            k = length[n] = len(reply.tokens)
            tokens[n, :k] = reply.tokens
            logp[n, :k], keep[n, :k] = split(reply, self.decoding)
            stop[n] = self._reason(int(reply.tokens[-1]))
        return Generated(tokens=tokens, length=length, logp_sampler=logp, log_keep=keep, stop=stop)

    def _reason(self, last: int) -> Stop:
        if last in self.eos_ids:
            return Stop.EOS
        return Stop.STOP_TOKEN if last in self.stop_ids else Stop.LENGTH


def seed_for(seed: int, row: int, offset: int) -> int:
    """The seed of one request, in [0, 2**63): of nothing but the run, the row and its offset."""
    named = f"{seed}/{row}/{offset}".encode()
    return int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "big") >> 1


def seed_of(key: Any) -> int:
    """A number that stands for a jax random key."""
    return int.from_bytes(np.asarray(jax.random.key_data(key)).astype(">u4").tobytes(), "big")


def corrected(alg: Algorithm) -> Algorithm:
    """The method with `truncated_is` where a sampler that is not the trainer calls for it.

    A method is left as it is where it weighs by π_old/μ already, where its ratio is taken to the
    sampler itself, and where it has no policy term or one that is a regression or a preference:
    those take rows from anywhere.

    >>> from polopt.algorithms import grpo, tis
    >>> corrected(grpo()).trajectory.names
    ('token_ratio', 'clip', 'kl_penalty', 'truncated_is')
    >>> corrected(tis()) == tis()
    True
    """
    side = [piece for _, piece in pieces(alg) if piece.card.side == "trajectory"]
    settled = "policy" not in terms(alg) or any(_answers_for_sampler(piece) for piece in side)
    return alg if settled else with_truncated_is(alg)


_SETTLED = tuple(
    made.__name__
    for made in (
        truncated_is,
        masked_is,
        squared_regression,
        value_regression,
        pairwise_regression,
        pairwise_logistic,
        pairwise_square,
        flow_balance,
    )
)


def _answers_for_sampler(piece: Transform) -> bool:
    ratio = piece.card.writes == "ratio" and "logp_behaviour" in piece.needs
    return ratio or piece.name in _SETTLED
