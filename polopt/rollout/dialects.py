"""What vLLM and SGLang are asked for, and what their answers say: token ids in, token ids out.

Every decoding parameter is sent, as servers fill in what is missing from the model's own
generation_config.json. Nothing of an answer is believed that can be checked. Field names are those
of vLLM 0.10.2 and later (`/v1/completions`) and SGLang 0.5.3 and later (`/generate`).
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polopt.errors import PoloptError
from polopt.rollout.draw import Decoding

_NAME = re.compile(r"token_id:([0-9]{1,9})")


class Reported(enum.Enum):
    """Of which distribution a server's log-probabilities are."""

    RAW = "raw"  # the model's: before temperature and filters
    TEMPERED = "tempered"  # after temperature, before filters
    PROCESSED = "processed"  # after both: the one that was sampled


class Ask(NamedTuple):
    """One completion."""

    model: str
    prompt: list[int]
    seed: int  # in [0, 2**63)
    decoding: Decoding
    most: int  # tokens
    stop: tuple[int, ...]  # ids that end it


class Reply(NamedTuple):
    """What came of it, as the server tells it."""

    tokens: np.ndarray  # i64[k]
    logp: np.ndarray  # f64[k] under the distribution that the server reports
    filtered: np.ndarray | None  # f64[k] under the one that was sampled, where told apart
    stopped: bool  # by a token, not by the limit
    version: int | None  # of the weights, where told as a number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one kind of server is spoken to."""

    name: str
    owner: str  # how its /v1/models calls itself
    path: str
    reports: Reported  # unless it was started otherwise
    tells_filtered: bool  # log-probabilities before and after filters
    body: Callable[[Ask], dict[str, Any]]
    read: Callable[[Any, Ask], Reply]


def filters(decoding: Decoding) -> bool:
    """Whether some tokens may not be drawn."""
    return not decoding.greedy and (decoding.top_k > 0 or decoding.top_p < 1 or decoding.min_p > 0)


# ---------------------------------------------------------------- vLLM


def _vllm_body(ask: Ask) -> dict[str, Any]:
    return {
        "model": ask.model,
        "prompt": ask.prompt,
        "max_tokens": ask.most,
        **_decoding(ask.decoding, no_top_k=0),
        "seed": ask.seed,
        "n": 1,
        "stream": False,
        "logprobs": 0,  # the token that was drawn, and no others
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        # Only the ids that the caller named end a row.
        "ignore_eos": True,
        "stop_token_ids": list(ask.stop),
    }


def _vllm_read(answer: Any, ask: Ask) -> Reply:
    choices = _at(answer, "choices", kind=list)
    if len(choices) != 1:
        raise PoloptError(f"choices has {len(choices)} entries for 1 completion")
    choice = _at(answer, "choices", 0, kind=dict)
    reason = _at(choice, "finish_reason", kind=str)
    _same_prompt(choice.get("prompt_token_ids"), ask)
    logp = _vector(_at(choice, "logprobs", "token_logprobs", kind=list), "token_logprobs", "fi")
    return Reply(_vllm_tokens(choice), logp, None, _stopped(reason), None)


def _vllm_tokens(choice: dict[str, Any]) -> np.ndarray:
    """Ids from `token_ids`, or else from names such as "token_id:42"; the same where both are."""
    named, own = _named(_at(choice, "logprobs", kind=dict).get("tokens")), choice.get("token_ids")
    if own is None and named is None:
        raise PoloptError(
            "token_ids is missing: the server must honour return_token_ids (vLLM 0.10.2 or later), "
            "or be started with --return-tokens-as-token-ids"
        )
    tokens = np.array(named) if own is None else _vector(own, "token_ids", "i")
    if named is not None and named != tokens.tolist():
        raise PoloptError("token_ids and logprobs.tokens name different tokens")
    return tokens


def _named(names: Any) -> list[int] | None:
    """The ids in names of tokens; None where these are texts."""
    listed = names if isinstance(names, list) else []
    found = [_NAME.fullmatch(name) if isinstance(name, str) else None for name in listed]
    ids = [int(match[1]) for match in found if match]
    return ids if ids and len(ids) == len(listed) else None


# ---------------------------------------------------------------- SGLang


def _sglang_body(ask: Ask) -> dict[str, Any]:
    return {
        "input_ids": ask.prompt,
        "sampling_params": {
            "max_new_tokens": ask.most,
            **_decoding(ask.decoding, no_top_k=-1),
            "sampling_seed": ask.seed,
            "n": 1,
            "min_new_tokens": 0,
            # Its ignore_eos would switch stop_token_ids off as well.
            "ignore_eos": False,
            "stop_token_ids": list(ask.stop),
        },
        "stream": False,
        "return_logprob": True,
        **({"return_sampling_mask": True} if filters(ask.decoding) else {}),
    }


def _sglang_read(answer: Any, ask: Ask) -> Reply:
    meta = _at(answer, "meta_info", kind=dict)
    reason = _at(meta, "finish_reason", "type", kind=str)
    if meta.get("prompt_tokens") not in (None, len(ask.prompt)):
        raise PoloptError(
            f"meta_info.prompt_tokens is {_shown(meta['prompt_tokens'])} and the prompt has "
            f"{len(ask.prompt)}"
        )
    if meta.get("output_token_logprobs") is None:
        raise PoloptError(
            "meta_info.output_token_logprobs is missing: the server must honour return_logprob"
        )
    pairs = _at(meta, "output_token_logprobs", kind=list)
    if not all(isinstance(pair, list) and len(pair) >= 2 for pair in pairs):
        raise PoloptError("meta_info.output_token_logprobs has an entry that is no [logp, id]")
    tokens = _vector([pair[1] for pair in pairs], "output_token_logprobs", "i")
    own = answer.get("output_ids")
    if own is not None and own != tokens.tolist():
        raise PoloptError("output_ids and meta_info.output_token_logprobs name different tokens")
    told, filtered = meta.get("output_token_sampling_logprobs"), None
    if told is not None:
        filtered = _vector(told, "output_token_sampling_logprobs", "fi")
    elif filters(ask.decoding):
        raise PoloptError(
            "meta_info.output_token_sampling_logprobs is missing: with top_p, top_k or min_p the "
            "server must honour return_sampling_mask (SGLang 0.5.23 does)"
        )
    logp = _vector([pair[0] for pair in pairs], "output_token_logprobs", "fi")
    return Reply(tokens, logp, filtered, _stopped(reason), _version(meta.get("weight_version")))


def _version(told: Any) -> int | None:
    """A label such as "default" says nothing."""
    return int(told) if isinstance(told, str) and told.isdecimal() and len(told) < 10 else None


# ---------------------------------------------------------------- both


def _decoding(decoding: Decoding, *, no_top_k: int) -> dict[str, Any]:
    """All that shapes the distribution, none left to the server."""
    chosen = Decoding() if decoding.greedy else decoding
    return {
        "temperature": 0.0 if decoding.greedy else float(decoding.temperature),
        "top_p": chosen.top_p,
        "top_k": chosen.top_k or no_top_k,
        "min_p": chosen.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def _stopped(reason: str) -> bool:
    if reason not in ("stop", "length"):
        raise PoloptError(f"finish_reason is {_shown(reason)}: the completion was not finished")
    return reason == "stop"


def _same_prompt(told: Any, ask: Ask) -> None:
    if told is not None and told != ask.prompt:
        raise PoloptError("prompt_token_ids is not the prompt that was sent")


def _at(data: Any, *path: str | int, kind: type) -> Any:
    """The entry of an answer at a path, of one kind."""
    for i, key in enumerate(path):
        where = ".".join(map(str, path[: i + 1]))
        found = isinstance(data, list if isinstance(key, int) else dict)
        try:
            data = data[key] if found else None
        except (KeyError, IndexError):
            found = False
        if not found or data is None:
            raise PoloptError(f"{where} is missing")
    if not isinstance(data, kind):
        raise PoloptError(f"{'.'.join(map(str, path))} is {_shown(data)}, no {kind.__name__}")
    return data


def _vector(values: Any, field: str, kinds: str) -> np.ndarray:
    """A flat array of JSON numbers: `kinds` are those of NumPy that are accepted."""
    good = isinstance(values, list) and all(type(x) in (int, float) for x in values)
    array = np.array(values if good else [None])
    if not good or (array.size and array.dtype.kind not in kinds):
        wanted = "whole numbers" if kinds == "i" else "numbers"
        raise PoloptError(f"{field} is not a list of {wanted}: {_shown(values)}")
    return array.astype(np.int64 if kinds == "i" else np.float64)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


VLLM = Dialect(
    name="vLLM",
    owner="vllm",
    path="/v1/completions",
    reports=Reported.RAW,
    tells_filtered=False,
    body=_vllm_body,
    read=_vllm_read,
)
SGLANG = Dialect(
    name="SGLang",
    owner="sglang",
    path="/generate",
    reports=Reported.TEMPERED,
    tells_filtered=True,
    body=_sglang_body,
    read=_sglang_read,
)
DIALECTS = (VLLM, SGLANG)
