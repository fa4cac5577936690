"""Conversations as token ids, by a model's own chat template.

What somebody wrote never becomes a control token: a question that spells ``<|im_end|>`` is encoded
as those characters. Where no message spells one, the ids are those of the rendered text as a whole.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polopt.errors import PoloptError, missing_extra

if TYPE_CHECKING:
    from polopt.models.tokenizer import Tokenizer

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}
_MAX_DEPTH = 32
_PRIVATE = range(0xF0000, 0xFFFFD)  # characters that no text is written with


def encode(tokenizer: Tokenizer, messages: Sequence[Message], *, reply: bool) -> list[int]:
    """Ids of a conversation; with `reply`, up to where the assistant begins to answer."""
    if tokenizer.chat_template is None:
        raise PoloptError("the tokenizer has no chat template: give Tokenizer.chat_template")
    plain = _checked(messages)
    written = list(_texts(plain))
    spelled = _spelled(tokenizer.control_tokens, written)
    if not spelled:
        return tokenizer.encode(_render(tokenizer, plain, written, reply), control=True)
    opening, closing = _unused([*written, tokenizer.chat_template])
    marked = _map(plain, lambda text: spelled.sub(f"{opening}\\g<0>{closing}", text))
    pieces = re.split(f"([{opening}{closing}])", _render(tokenizer, marked, written, reply))
    ids: list[int] = []
    inside = False
    for number, piece in enumerate(pieces):
        if number % 2:
            inside = piece == opening
        elif piece:
            ids += (
                _continued(tokenizer, piece, not inside)
                if ids
                else tokenizer.encode(piece, control=not inside)
            )
    return ids


def asked(tokenizer: Tokenizer, question: str) -> list[dict[str, str]]:
    """A user's question, under the tokenizer's system message if it has one."""
    if not tokenizer.system:
        return [{"role": "user", "content": question}]
    if not _takes_system(tokenizer):
        return [{"role": "user", "content": f"{tokenizer.system}\n\n{question}"}]
    return [
        {"role": "system", "content": tokenizer.system},
        {"role": "user", "content": question},
    ]


@functools.lru_cache(maxsize=8)
def _takes_system(tokenizer: Tokenizer) -> bool:
    """Whether the template shows a system message: some refuse it, or leave it out."""
    shown = "Shown?"
    messages = [{"role": "system", "content": shown}, {"role": "user", "content": ""}]
    try:
        return shown in tokenizer.decode(encode(tokenizer, messages, reply=True))
    except PoloptError:
        return False


def encode_turns(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """Ids of a conversation, and which of them an assistant writes.

    An assistant's turn is what its message adds to the text that ends where an answer begins, up to
    and with the last token that ends a completion: what follows is the template's.
    """
    ids = encode(tokenizer, messages, reply=False)
    mask = [False] * len(ids)
    ends = set(tokenizer.eos_ids)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = encode(tokenizer, messages[:number], reply=True)
        after = encode(tokenizer, messages[: number + 1], reply=False)
        if not (_begins(after, before) and _begins(ids, after)):
            raise PoloptError(
                f"message {number} of the conversation: the chat template writes it, or what came "
                "before it, in another way once more follows; its tokens cannot be told apart"
            )
        last = max((i for i in range(len(before), len(after)) if ids[i] in ends), default=None)
        stop = len(after) if last is None else last + 1
        mask[len(before) : stop] = [True] * (stop - len(before))
    return ids, mask


def _begins(whole: list[int], part: list[int]) -> bool:
    return whole[: len(part)] == part


def _render(tokenizer: Tokenizer, messages: Any, written: list[str], reply: bool) -> str:
    try:
        from polopt.models.sandbox import render
    except ModuleNotFoundError as error:
        raise missing_extra("jinja2", "a chat template") from error
    assert tokenizer.chat_template is not None
    tokens = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos[0], "pad_token": tokenizer.pad}
    values = {
        "messages": messages,
        "add_generation_prompt": reply,
        "tools": None,
        "documents": None,
        **{name: token for name, token in tokens.items() if token is not None},
    }
    date = None if tokenizer.date is None else datetime.datetime.fromisoformat(tokenizer.date)
    size = sum(map(len, written)) + 50 * len(messages)
    return render(tokenizer.chat_template, values, size=size, date=date)


def _continued(tokenizer: Tokenizer, piece: str, control: bool) -> list[int]:
    """Ids of a text that follows another.

    Some tokenizers put a space before a text; behind a line's end they do not, so that a line's end
    is encoded with it and taken off.
    """
    line = tokenizer.encode("\n")
    ids = tokenizer.encode("\n" + piece, control=control)
    if _begins(ids, line):
        return ids[len(line) :]
    return tokenizer.encode(piece, control=control)


def _spelled(control: Iterable[str], texts: list[str]) -> re.Pattern[str] | None:
    """What finds control tokens in texts, the longest first; None if no text spells one."""
    found = {token for token in control for text in texts if token in text}
    longest_first = sorted(found, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if found else None


def _unused(texts: list[str]) -> tuple[str, str]:
    """Two characters that stand in no text."""
    used = set().union(*texts)
    free = (chr(code) for code in _PRIVATE if chr(code) not in used)
    return next(free), next(free)


def _checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A copy of the messages in plain types; what is None counts as not given."""
    if isinstance(messages, Mapping | str) or not messages:
        raise PoloptError('a conversation is a list of messages {"role": ..., "content": ...}')
    plain = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise PoloptError(
                f'message {number} of the conversation: give {{"role": "user", "content": "..."}}'
            )
        given = {key: value for key, value in message.items() if value is not None}
        plain.append(_plain(given, f"message {number} of the conversation"))
    return plain


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        raise PoloptError(f"{where} is nested deeper than {_MAX_DEPTH}")
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str(key): _plain(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where, depth + 1) for item in value]
    raise PoloptError(f"{where} holds a {type(value).__name__}: give what JSON knows")


def _map(value: Any, change: Any) -> Any:
    """The same with its texts changed; keys stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map(item, change) for item in value]
    return value


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
