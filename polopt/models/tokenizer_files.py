"""The tokenizer of a Hugging Face folder: its vocabulary, special tokens and chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polopt.errors import PoloptError
from polopt.models.safetensors_files import read_json
from polopt.models.tokenizer import Tokenizer, id_to_token, opens_with, read_source

_CONFIG, _SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
_TEMPLATE = "chat_template.jinja"
_MOST_TEMPLATE = 1 << 20  # bytes


def tokenizer_of_folder(folder: str | Path) -> Tokenizer:
    """Read `tokenizer.json` and what lies beside it.

    Read where they are there: `tokenizer_config.json`, `special_tokens_map.json`,
    `chat_template.jinja` (before the template of the configuration; of several the one named
    "default") and `generation_config.json`, or else `config.json`, whose ends of a text all count
    beside the tokenizer's own, which comes first. `bos` is the folder's; without a chat template
    only if the tokenizer opens a text with it. The filling, which nobody reads, is an end if the
    folder names none.

    Raises:
      PoloptError: no `tokenizer.json`, a file that is damaged, a token that the vocabulary does not
        have, or no token that ends a text.
    """
    folder = Path(folder)
    source = read_source(folder / "tokenizer.json")
    config, special = _read(folder / _CONFIG), _read(folder / _SPECIAL)
    template = _template(folder, config)
    named = {
        name: _token(special.get(name), folder / _SPECIAL)
        or _token(config.get(name), folder / _CONFIG)
        for name in ("bos_token", "eos_token", "pad_token")
    }
    eos = _ends(folder, source, named["eos_token"])
    bos = named["bos_token"]
    if bos is not None and template is None:
        opens = config.get("add_bos_token")
        bos = bos if (opens_with(source) == bos if opens is None else opens) else None
    return Tokenizer(
        source, eos=eos, bos=bos, pad=named["pad_token"] or eos[0], chat_template=template
    )


def _read(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.exists() else {}


def _token(spelled: Any, path: Path) -> str | None:
    """A token as the files spell it: itself, an object of its content and options, or null."""
    content = spelled.get("content") if isinstance(spelled, dict) else spelled
    if content is not None and not isinstance(content, str):
        raise PoloptError(f"{path}: {content!r} is no token")
    return content


def _ends(folder: Path, source: str, own: str | None) -> tuple[str, ...]:
    path = folder / "generation_config.json"
    if "eos_token_id" not in _read(path):
        path = folder / "config.json"
    ids = _read(path).get("eos_token_id")
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    tokens = [] if own is None else [own]
    for number in ids:
        if isinstance(number, bool) or not isinstance(number, int):
            raise PoloptError(f"{path}: eos_token_id holds {number!r}: give ids")
        tokens.append(id_to_token(source, number, str(path)))
    if not tokens:
        raise PoloptError(
            f"{folder}: no token ends a text: give eos_token in {_CONFIG} or eos_token_id in "
            "generation_config.json"
        )
    return tuple(dict.fromkeys(tokens))


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / _TEMPLATE
    if path.exists():
        try:
            if path.stat().st_size > _MOST_TEMPLATE:
                raise PoloptError(f"{path}: more than {_MOST_TEMPLATE} bytes")
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PoloptError(f"{path}: cannot read the chat template: {error}") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if _is_named(item)}
        if "default" not in named:
            raise PoloptError(
                f"{folder / _CONFIG}: chat_template has no entry named 'default', but "
                f"{', '.join(map(repr, named)) or 'none'}"
            )
        template = named["default"]
    if template is not None and not isinstance(template, str):
        raise PoloptError(f"{folder / _CONFIG}: chat_template is neither a text nor a list of them")
    return template


def _is_named(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("name"), str)
