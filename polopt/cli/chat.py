"""``polopt chat``: a look at what a model says."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from polopt.cli.parse import parse
from polopt.errors import PoloptError
from polopt.train.fields import SAMPLE_RANGES, check

if TYPE_CHECKING:
    from polopt.train.talk import Said, Talk

EXAMPLES = """\
  polopt chat smollm2-135m                        line by line; Ctrl-D ends
  polopt chat smollm2-135m "What is a nut?"       one question, one answer
  echo "What is a nut?" | polopt chat smollm2-135m
  polopt chat runs/sft-chain_sum-0 --temperature 0
  polopt chat base "What is 12 + 30?"             no chat template: each line
                                                  is continued on its own"""

_FORGET = "/new"


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Talk to a model under its own chat template.

    Raises `polopt.errors.UsageError` for a value of the wrong type or out of range.
    """

    model: str = "base"
    """base (ships with polopt), smollm2-135m, a .gguf file, or the folder of a model or a run."""
    question: str | None = None
    """Ask this and end (None: read questions, one a line)."""
    system: str | None = None
    """System message, for models with a chat template (None: the run's own; "": no message)."""
    temperature: float = 0.7
    """Sampling temperature; 0 takes the likeliest token."""
    top_p: float | None = None
    """Sample within the smallest set of tokens that has this much probability."""
    max_new_tokens: int | None = None
    """Longest reply, in tokens; one that is cut ends with three dots (None: 256, or half of what
    the model holds)."""
    seed: int = 0
    """Seed of the samples."""

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, SAMPLE_RANGES)


def run(
    argv: Sequence[str],
    start: Callable[[ChatConfig], Talk] | None = None,
    source: TextIO | None = None,
) -> int:
    """Talk; `start` opens the conversation, `source` has the questions instead of stdin."""
    config = parse(ChatConfig, _named(argv), command="chat", examples=EXAMPLES)
    stdin = sys.stdin if source is None else source
    talk = (start or _start)(config)
    if config.question is not None:
        print(_shown(talk.reply(config.question)))
        return 0
    if not stdin.isatty():
        for line in filter(str.strip, stdin):
            print(_shown(talk.reply(line.rstrip("\n"))), flush=True)
        return 0
    return _read_eval_print(config, talk)


def _named(argv: Sequence[str]) -> list[str]:
    """The arguments with their flags: model and question may stand without, wherever they are."""
    free, made = ["--model", "--question"], []
    words = iter(argv)
    for word in words:
        if word.startswith("-"):
            has_value = "=" in word or word in ("-h", "--help")
            made += [word] if has_value else [word, *itertools.islice(words, 1)]
        else:
            made += [free.pop(0), word] if free else [word]
    return made


def _read_eval_print(config: ChatConfig, talk: Talk) -> int:
    said = f"{_FORGET} begins anew, " if talk.remembers else "each line is continued on its own, "
    print(f"{config.model}: {said}Ctrl-D ends", file=sys.stderr)
    while True:
        try:
            line = input("> ")
            if line.strip() == _FORGET:
                talk.forget()
            elif line.strip():
                print(_shown(talk.reply(line)))
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        except PoloptError as error:
            talk.forget()
            print(f"polopt: {error}; what was said is forgotten", file=sys.stderr)


def _shown(said: Said) -> str:
    """A reply as a terminal may print it: its lines, without control characters."""
    from polopt.train.view import clean

    lines = (clean(line) for line in said.text.split("\n"))
    return "\n".join(lines) + " ..." * said.cut


def _start(config: ChatConfig) -> Talk:
    from polopt.rollout.draw import Decoding
    from polopt.train.talk import open_talk

    decoding = Decoding(
        temperature=config.temperature or 1.0,
        greedy=config.temperature == 0,
        top_p=config.top_p or 1.0,
    )
    return open_talk(
        config.model,
        decoding,
        system=config.system,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
    )
