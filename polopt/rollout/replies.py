"""What a server's reply must be, and which log-probabilities can be told from it."""

from __future__ import annotations

import numpy as np

from polopt.errors import PoloptError
from polopt.rollout.dialects import Ask, Dialect, Reply, Reported, filters
from polopt.rollout.draw import Decoding

COLDEST = 0.01  # vLLM samples at this temperature whenever less is asked for, and does not say so
LEAST = -1000.0  # nothing so unlikely is ever drawn: vLLM's -9999 stands for minus infinity
ROUNDING = 1e-3  # by which a log-probability may be above 0


def check_decoding(decoding: Decoding, dialect: Dialect, reports: Reported) -> None:
    """See that both log-probabilities can be told from what a server reports.

    Raises:
      PoloptError: they cannot, or the server would sample otherwise than asked.
    """
    temperature = decoding.temperature
    if not isinstance(temperature, int | float) or not temperature >= COLDEST:
        raise PoloptError(
            f"Decoding.temperature is {temperature!r}: a server takes one number of at least "
            f"{COLDEST}, or greedy=True"
        )
    if decoding.greedy and temperature != 1:
        raise PoloptError(
            f"Decoding.temperature is {temperature}, and what a server says of greedy decoding is "
            "at temperature 1: give Decoding(greedy=True)"
        )
    if reports is Reported.RAW and temperature != 1:
        raise PoloptError(
            f"{dialect.name} is said to report log-probabilities before temperature; at "
            f"temperature {temperature:g} they are not those of what it samples: sample at "
            "temperature 1, or start vLLM with --logprobs-mode processed_logprobs and say so "
            "(reports=Reported.PROCESSED)"
        )
    if filters(decoding) and (not dialect.tells_filtered or reports is Reported.PROCESSED):
        raise PoloptError(
            f"{dialect.name} reports log-probabilities before or after top_p, top_k and min_p, and "
            "not both, so the mass that they keep stays unknown: sample without them, or from an "
            "SGLang server that reports before filters"
        )


def check_reply(reply: Reply, ask: Ask, vocab_size: int, version: int) -> None:
    """Refuse what cannot have been drawn as asked.

    Raises:
      PoloptError: which field, and what is wrong with it.
    """
    tokens, size = reply.tokens, len(reply.tokens)
    if not 1 <= size <= ask.most:
        raise PoloptError(f"the completion has {size} tokens, where 1 to {ask.most} were asked for")
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if outside.size:
        raise PoloptError(f"the token id {outside[0]} is outside the vocabulary of {vocab_size}")
    for logp in (reply.logp, *([] if reply.filtered is None else [reply.filtered])):
        if len(logp) != size:
            raise PoloptError(f"there are {len(logp)} log-probabilities for {size} tokens")
        wrong = ~((logp >= LEAST) & (logp <= ROUNDING))  # NaN is wrong as well
        if wrong.any():
            at = int(np.argmax(wrong))
            raise PoloptError(f"the log-probability of token {at} is {logp[at]:g}")
    _check_end(reply, ask)
    if reply.version not in (None, version):
        raise PoloptError(
            f"weight_version is {reply.version}, and the weights pushed last are {version}"
        )


def _check_end(reply: Reply, ask: Ask) -> None:
    tokens, size = reply.tokens, len(reply.tokens)
    ends = np.isin(tokens, ask.stop)
    if ends[:-1].any():
        at = int(np.argmax(ends))
        raise PoloptError(f"the completion goes on after token {at}, the stop id {tokens[at]}")
    if ends[-1]:
        return
    if reply.stopped:
        raise PoloptError(
            f"the completion was stopped at token id {tokens[-1]}, which is none of eos_ids and "
            "stop_ids: the server has more of them than the policy's tokenizer"
        )
    if size < ask.most:
        raise PoloptError(
            f"the completion was cut at {size} tokens of {ask.most}: the server's context is too "
            "short (--max-model-len of vLLM, --context-length of SGLang)"
        )


def split(reply: Reply, decoding: Decoding) -> tuple[np.ndarray, np.ndarray]:
    """`(logp_sampler, log_keep)`, each f64[k]; their sum is tempered and unfiltered.

    Greedy decoding takes its token for certain, so all of what a server reports is `log_keep`.
    """
    logp = np.minimum(reply.logp, 0)
    if decoding.greedy:
        return np.zeros_like(logp), logp
    if not filters(decoding):
        return logp, np.zeros_like(logp)
    assert reply.filtered is not None
    filtered = np.minimum(reply.filtered, 0)
    return filtered, np.minimum(logp - filtered, 0)
