"""Text to token ids and back: a frozen wrapper of one `tokenizer.json`.

Text never turns into a control token by accident: a user's prompt that spells ``<eos>`` is encoded
as those five characters. Answer markers are ordinary vocabulary and are recognised everywhere.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polopt.errors import PoloptError, missing_extra
from polopt.models import chat

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
_MARKERS = (ANSWER_OPEN, ANSWER_CLOSE)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer, equal by value to any other with the same content.

    Args:
      source: the text of a Hugging Face `tokenizer.json`.
      eos: tokens that end a completion, at least one; all of them are honoured.
      bos: token that opens a prompt, or None.
      pad: token that fills rows; it is never read, so any id will do.
      prompt_end: what follows a question when `prompt` renders it without a chat template.
      chat_template: Jinja source by which conversations are rendered, in a sandbox.
      date: what a template's clock shows, as 2026-01-31; the present if not given, so that a
        template which tells the date gives other ids tomorrow.
      system: what a question is asked under, where there is a chat template; "" for nothing. Two
        tokenizers that differ in it alone are equal: their ids mean the same.

    Raises:
      PoloptError: `source` is no tokenizer, a named token is not in its vocabulary, `date` is
        not a date, or there is a system message and no chat template.
    """

    source: str = dataclasses.field(repr=False)
    eos: tuple[str, ...] = (EOS,)
    bos: str | None = BOS
    pad: str = PAD
    prompt_end: str = "\n"
    chat_template: str | None = dataclasses.field(default=None, repr=False)
    date: str | None = None
    system: str | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.eos:
            raise PoloptError("Tokenizer.eos is empty: name at least one token that ends a text")
        for token in (*self.eos, self.pad, *([self.bos] if self.bos else [])):
            self.token_id(token)
        if self.date is not None:
            _check_date(self.date)
        if self.system and self.chat_template is None:
            raise PoloptError("Tokenizer.system is given, but there is no chat template to put it")

    @classmethod
    def from_file(cls, path: str | Path, **tokens: Any) -> Tokenizer:
        """Read a `tokenizer.json`; `tokens` are the other arguments of `Tokenizer`."""
        return cls(read_source(path), **tokens)

    @property
    def vocab_size(self) -> int:
        """Number of ids: they are 0 to vocab_size - 1."""
        return _vocab_size(self.source)

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Tokens that plain text never becomes, as they are spelled."""
        return _control_tokens(self.source)

    @property
    def digest(self) -> str:
        """Sha256 of all that decides the ids: what a run records and compares on resume."""
        return hashlib.sha256(repr(dataclasses.astuple(self)).encode()).hexdigest()

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids of all tokens that end a completion."""
        return tuple(self.token_id(token) for token in self.eos)

    @property
    def pad_id(self) -> int:
        """Id of the filling."""
        return self.token_id(self.pad)

    def token_id(self, token: str) -> int:
        """Id of one token of the vocabulary, spelled as it is there."""
        found = _backend(self.source).token_to_id(token)
        if found is None:
            raise PoloptError(f"the tokenizer has no token {token!r}")
        return found

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Ids of `text`, from which `decode` gives back exactly `text`.

        Some tokenizers of other models put text into a normal form, or drop a leading space: of
        theirs it gives back what is left. With `control`, spelled control tokens become their ids:
        for rendered chat templates, never for what a user or a model wrote.
        """
        return self.encode_all([text], control=control)[0]

    def encode_all(self, texts: Sequence[str], *, control: bool = False) -> list[list[int]]:
        """Ids of many texts: `encode` of each, but faster."""
        for text in texts:
            _check_text(text)
        backend = _backend(self.source, control)
        encoded = backend.encode_batch(list(texts), add_special_tokens=False)
        return [item.ids for item in encoded]

    def decode(self, ids: Iterable[int], *, control: bool = False) -> str:
        """The text of `ids`; control tokens are left out, or spelled with `control`.

        Ids that are not whole UTF-8 characters give U+FFFD.

        Raises:
          PoloptError: an id is outside [0, vocab_size).
        """
        ids = [int(i) for i in ids]
        wrong = [i for i in ids if not 0 <= i < self.vocab_size]
        if wrong:
            raise PoloptError(f"token id {wrong[0]} is outside [0, {self.vocab_size})")
        return _backend(self.source).decode(ids, skip_special_tokens=not control)

    def prompt(self, question: str) -> list[int]:
        """Ids of a question as the model is asked it, up to where its answer begins.

        With a chat template they are those of `asked`; without, the ids are `bos`, the question
        and `prompt_end`.
        """
        if self.chat_template is not None:
            return self.chat(self.asked(question), reply=True)
        opening = [self.token_id(self.bos)] if self.bos else []
        return opening + self.encode(question + self.prompt_end)

    def asked(self, question: str) -> list[dict[str, str]]:
        """The conversation that asks a question, under the system message if there is one.

        Where the template knows no system messages, that of the user begins with it.
        """
        return chat.asked(self, question)

    def chat(self, messages: Sequence[Mapping[str, Any]], *, reply: bool = False) -> list[int]:
        """Ids of a conversation, rendered by the chat template.

        Control tokens are the template's: one that a message spells is encoded as its characters.

        Args:
          messages: each {"role": "system", "user", "assistant" or what else the template knows,
            "content": its text}, and other keys of JSON's types.
          reply: end where the assistant begins to answer.

        Raises:
          PoloptError: there is no template, it refuses the conversation, or it fails.
        """
        return chat.encode(self, messages, reply=reply)

    def chat_turns(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[bool]]:
        """Ids of a conversation, and which of them an assistant writes, its end token included.

        Raises:
          PoloptError: as `chat`; or the template rewrites earlier turns when more follow (as those
            do that drop past reasoning), so that no sampled row has these tokens.
        """
        return chat.encode_turns(self, messages)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE on `texts`: lossless, each digit a token of its own.

    Merges run across words, so that a sentence which opens every prompt becomes one token.
    Control tokens have ids 0, 1, 2 (pad, bos, eos), the answer markers 3 and 4. Deterministic.
    """
    lib = library()
    pre = lib.pre_tokenizers
    backend = lib.Tokenizer(lib.models.BPE())
    backend.pre_tokenizer = pre.Sequence(
        [
            pre.Digits(individual_digits=True),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = lib.decoders.ByteLevel()
    trainer = lib.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, *_MARKERS],
        initial_alphabet=sorted(pre.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:  # markers are text that rewards read, not control
        token["special"] = token["content"] not in _MARKERS
    return Tokenizer(json.dumps(content, ensure_ascii=False, indent=1))


def _check_date(date: str) -> None:
    try:
        datetime.date.fromisoformat(date)
    except ValueError as error:
        raise PoloptError(f"Tokenizer.date is {date!r}: give a day as 2026-01-31") from error


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise PoloptError(f"cannot encode a {type(text).__name__}: give a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PoloptError(
            f"cannot encode the lone surrogate {text[error.start]!r} at character {error.start}: "
            "it is half a character, which UTF-8 cannot carry"
        ) from error


def library() -> Any:
    """The `tokenizers` package."""
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise missing_extra("tokenizers", "encoding text") from error
    return tokenizers


def read_source(path: str | Path) -> str:
    """The text of a `tokenizer.json`."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PoloptError(f"{path}: cannot read the tokenizer: {error}") from error


def id_to_token(source: str, number: int, where: str) -> str:
    """The token of an id, in the `tokenizer.json` of text `source`."""
    token = _backend(source).id_to_token(number) if 0 <= number < 1 << 32 else None
    if token is None:
        raise PoloptError(f"{where}: the tokenizer has no id {number}")
    return token


def opens_with(source: str) -> str | None:
    """The token that a `tokenizer.json` of text `source` puts before a text; None for none."""
    tokens = _backend(source).encode("", add_special_tokens=True).tokens
    return tokens[0] if tokens else None


@functools.lru_cache(maxsize=8)
def _vocab_size(source: str) -> int:
    """One more than the highest id: some vocabularies leave ids out."""
    return max(_backend(source).get_vocab().values(), default=-1) + 1


@functools.lru_cache(maxsize=8)
def _control_tokens(source: str) -> tuple[str, ...]:
    added = _backend(source).get_added_tokens_decoder()
    return tuple(token.content for token in added.values() if token.special)


@functools.lru_cache(maxsize=8)
def _backend(source: str, control: bool = False) -> Any:
    """The Rust tokenizer of a source; one for each reading of control tokens."""
    try:
        backend = library().Tokenizer.from_str(source)
    except PoloptError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise PoloptError(f"not a tokenizer.json: {error}") from error
    backend.encode_special_tokens = not control
    backend.no_padding()
    backend.no_truncation()
    return backend
