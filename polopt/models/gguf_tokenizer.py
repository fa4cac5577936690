"""The tokenizer in a GGUF file's metadata, built anew with the `tokenizers` library.

A file has vocabulary, merges and the kinds of tokens; how text is cut before merging it only names.
The cuts are those that llama.cpp (llama-vocab.cpp) has under these names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polopt.errors import PoloptError
from polopt.models.gguf_file import GgufFile
from polopt.models.tokenizer import Tokenizer, library

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_SPACE = "\u2581"  # sentencepiece's

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*"
    r"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{0}"
    r"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+"
    r"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{0}"
)
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    "llama3": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}",
    "qwen2": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}",
    "tekken": rf"{_CASED.format('')}|\p{{N}}|{_CASED_TAIL}",
    "gpt-4o": rf"{_CASED.format(_CONTRACTIONS + '?')}|\p{{N}}{{1,3}}|{_CASED_TAIL}",
}
_SPLIT_OF = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1"), "llama3"),
    **dict.fromkeys(("pixtral", "smaug-bpe", "dbrx"), "llama3"),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), "qwen2"),
    "tekken": "tekken",
    "gpt-4o": "gpt-4o",
}
_PLAIN = ("default", "gpt-2")  # cut as GPT-2 does
_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")  # each digit alone
# Whose text opens with bos unless told, and whose tokens are taken whole before they are merged.
_WHOLE = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "tekken")
_LONGEST = 512  # characters of a token of sentencepiece's
_COMPOSED = ("qwen2", "deepseek-r1-qwen")  # read text in Unicode's form NFC


def tokenizer_of(file: GgufFile) -> Tokenizer:
    """The tokenizer of a file, with its chat template.

    All ends of a turn that the file names end a completion. `bos` is what the file names: without
    a chat template, only if the file says that it opens a text.

    Raises:
      PoloptError: there is none, it is of a kind that is not read, or it contradicts itself.
    """
    reader = _Reader(file)
    kind = reader.get("model", str)
    makers = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in makers:
        raise reader.wrong(f"tokenizer.ggml.model is {kind!r}: read are {' and '.join(makers)}")
    template = file.values.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise reader.wrong("tokenizer.chat_template is not a text")
    backend = makers[kind](reader)
    reader.add_special(backend)
    ends = [reader.token(key) for key in _END_KEYS]
    eos = tuple(dict.fromkeys(token for token in ends if token is not None))
    if not eos:
        raise reader.wrong("tokenizer.ggml.eos_token_id is missing: nothing ends a text")
    opened = kind == "llama" or file.values.get("tokenizer.ggml.pre") in _WHOLE
    opens = reader.get("add_bos_token", bool, opened)
    return Tokenizer(
        backend.to_str(),
        eos=eos,
        bos=reader.token("bos_token_id") if opens or template else None,
        pad=reader.token("padding_token_id") or eos[0],
        chat_template=template,
    )


class _Reader:
    """The vocabulary of a file, and its values with their types checked."""

    def __init__(self, file: GgufFile):
        self.file = file
        self.tokens = self.get("tokens", list)
        kinds = self.get("token_type", list, [_NORMAL] * len(self.tokens))
        if not all(isinstance(token, str) for token in self.tokens) or len(kinds) != len(
            self.tokens
        ):
            raise self.wrong("tokenizer.ggml.tokens and token_type do not belong together")
        # Files pad the vocabulary to the rows of the embedding with tokens that nothing uses.
        while kinds and kinds[-1] == _UNUSED:
            kinds = kinds[:-1]
        self.tokens, self.kinds = self.tokens[: len(kinds)], kinds
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self.ids) < len(self.tokens) or not self.tokens:
            raise self.wrong("tokenizer.ggml.tokens is empty or names a token twice")

    def wrong(self, what: str) -> PoloptError:
        return PoloptError(f"{self.file.path}: {what}")

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        value = self.file.values.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, kind):
            found = "missing" if value is None else repr(value)[:60]
            raise self.wrong(f"tokenizer.ggml.{name} is {found}: a {kind.__name__} is needed")
        return value

    def token(self, key: str) -> str | None:
        """The token whose id a key names."""
        number = self.get(key, int, -1)
        if number >= len(self.tokens):
            raise self.wrong(f"tokenizer.ggml.{key} is {number}: ids end at {len(self.tokens) - 1}")
        return self.tokens[number] if number >= 0 else None

    def merges(self) -> list[tuple[str, str]]:
        """The merges as the file lists them."""
        pairs = [tuple(merge.split(" ")) for merge in self.get("merges", list)]
        for pair in pairs:
            if len(pair) != 2 or not {*pair, "".join(pair)} <= self.ids.keys():
                raise self.wrong(f"the merge {' '.join(pair)[:60]!r} is not of two known tokens")
        return pairs  # type: ignore[return-value]

    def add_special(self, backend: Any) -> None:
        """Tokens that are found whole in a text, control tokens where they are asked for."""
        added = library().AddedToken
        marked = [
            (token, kind == _CONTROL)
            for token, kind in zip(self.tokens, self.kinds, strict=True)
            if kind in (_CONTROL, _USER) and backend.token_to_id(token) is not None
        ]
        backend.add_tokens(
            [added(token, normalized=False, special=control) for token, control in marked]
        )


def _byte_level(reader: _Reader) -> Any:
    """Byte-level BPE, as in GPT-2."""
    lib = library()
    pre = lib.pre_tokenizers
    name = reader.get("pre", str)
    if name in _PLAIN:
        cut = pre.ByteLevel(add_prefix_space=False)
    elif name in _DIGITS:
        digits = pre.Digits(individual_digits=True)
        cut = pre.Sequence([digits, pre.ByteLevel(add_prefix_space=False)])
    elif name in _SPLIT_OF:
        split = pre.Split(lib.Regex(_SPLITS[_SPLIT_OF[name]]), behavior="isolated")
        cut = pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        accepted = ", ".join(sorted((*_PLAIN, *_DIGITS, *_SPLIT_OF)))
        raise reader.wrong(f"tokenizer.ggml.pre is {name!r}: read are {accepted}")
    model = lib.models.BPE(reader.ids, reader.merges(), ignore_merges=name in _WHOLE)
    backend = lib.Tokenizer(model)
    backend.pre_tokenizer = cut
    backend.decoder = lib.decoders.ByteLevel()
    if name in _COMPOSED:
        backend.normalizer = lib.normalizers.NFC()
    return backend


def _sentencepiece(reader: _Reader) -> Any:
    """Sentencepiece's BPE with bytes for what it does not know, as Hugging Face writes it.

    Its merges are all pairs of tokens that make a token, the best token first: Gemma's file numbers
    tokens in that order, others give scores.
    """
    lib = library()
    gemma = reader.file.values.get("general.architecture") in ("gemma2", "gemma3")
    if gemma:  # runs of spaces stand there as spaces
        spaces = [t if t.strip(" ") else _SPACE * len(t) for t in reader.tokens]
        rank: Sequence[float] = [-i for i in range(len(spaces))]
    else:
        spaces, rank = reader.tokens, reader.get("scores", list)
    if len(rank) < len(spaces):
        raise reader.wrong("tokenizer.ggml.scores has fewer entries than there are tokens")
    if max(map(len, spaces)) > _LONGEST:
        raise reader.wrong(f"tokenizer.ggml.tokens has a token of more than {_LONGEST} characters")
    ids = {token: i for i, token in enumerate(spaces)}
    unknown = reader.token("unknown_token_id")
    model = lib.models.BPE(
        ids, _pairs(ids, rank), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    backend = lib.Tokenizer(model)
    decoders = [lib.decoders.Replace(_SPACE, " "), lib.decoders.ByteFallback(), lib.decoders.Fuse()]
    if gemma:
        backend.normalizer = lib.normalizers.Replace(" ", _SPACE)
        backend.pre_tokenizer = lib.pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        first = "first" if reader.get("add_space_prefix", bool, True) else "never"
        metaspace = lib.pre_tokenizers.Metaspace
        backend.pre_tokenizer = metaspace(_SPACE, prepend_scheme=first, split=False)
        decoders += [lib.decoders.Strip(" ", 1, 0)] if first == "first" else []
    backend.decoder = lib.decoders.Sequence(decoders)
    return backend


def _pairs(ids: dict[str, int], rank: Sequence[float]) -> list[tuple[str, str]]:
    """Every two tokens that make a third, by the rank of that one."""
    found = [
        (-rank[i], -cut, -(len(token) - cut), token[:cut], token[cut:])
        for token, i in ids.items()
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    found.sort(key=lambda pair: pair[:3])
    return [pair[3:] for pair in found]
