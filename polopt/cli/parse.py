"""From arguments to a configuration: tyro's parser, with help that teaches and one-line errors."""

import argparse
import contextlib
import dataclasses
import io
import itertools
from collections.abc import Sequence
from typing import TypeVar

from polopt.errors import PoloptError, UsageError, did_you_mean, missing_extra

Config = TypeVar("Config")


def parse(
    kind: type[Config],
    argv: Sequence[str],
    *,
    command: str,
    examples: str,
    default: Config | None = None,
    positional: str | None = None,
) -> Config:
    """Read `argv` into the dataclass `kind`, whose fields' docstrings are the help.

    `default` gives other values to start from; the field `positional` may also stand first,
    without its flag. ``-h`` prints the help with `examples` below and
    exits with 0. Raises `UsageError` for what cannot be read.
    """
    try:
        import tyro
    except ModuleNotFoundError as error:
        raise missing_extra("tyro", f"polopt {command}") from error

    def read(args: Sequence[str]) -> tuple[Config, list[str]]:
        return tyro.cli(
            kind,
            prog=f"polopt {command}",
            description=(kind.__doc__ or "").partition("\n\n")[0],
            args=list(args),
            default=tyro.MISSING_NONPROP if default is None else default,
            return_unknown_args=True,
            config=(tyro.conf.FlagCreatePairsOff,),
        )

    if positional is not None and argv and not argv[0].startswith("-"):
        argv = [f"--{positional}", *argv]
    if any(word in ("-h", "--help") for word in argv):
        with contextlib.suppress(SystemExit):
            read(["--help"])
        print(f"\nexamples:\n{examples}")
        raise SystemExit(0)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            config, unknown = read(argv)
    except SystemExit as error:
        if isinstance(error.__context__, PoloptError):  # the configuration refused its values
            raise error.__context__ from None
        raise UsageError(_first_words(complaint.getvalue())) from error
    if unknown:
        raise UsageError(_unknown(unknown[0], kind, command))
    return config


def read_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Read the few flags of a command that has no configuration; all else is one line."""
    try:
        args, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(f"{error} ({parser.prog} --help)") from error
    if unknown:
        raise UsageError(f"unexpected argument {unknown[0]!r} ({parser.prog} --help)")
    return args


def take(argv: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """Take ``flag VALUE`` or ``flag=VALUE`` out of `argv`; return the value and the rest."""
    rest = list(argv)
    for index, word in enumerate(rest):
        if word.startswith(flag + "="):
            return word.partition("=")[2], rest[:index] + rest[index + 1 :]
        if word == flag:
            if index + 1 == len(rest):
                raise UsageError(f"{flag} takes a value")
            return rest[index + 1], rest[:index] + rest[index + 2 :]
    return None, rest


def _unknown(word: str, kind: type, command: str) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r} (polopt {command} --help)"
    flags = ["--" + field.name.replace("_", "-") for field in dataclasses.fields(kind)]
    name = word.partition("=")[0].replace("_", "-")
    hint = did_you_mean(name, flags) or f"; polopt {command} --help lists them"
    return f"no option {word.partition('=')[0]!r}{hint}"


def _first_words(box: str) -> str:
    """Take the first paragraph out of the box that tyro draws around a complaint."""
    lines = [line.strip("│| ") for line in box.splitlines()[1:]]  # the first is a title
    body = itertools.dropwhile(_is_rule, lines)
    return " ".join(itertools.takewhile(lambda line: not _is_rule(line), body))


def _is_rule(line: str) -> bool:
    return not any(character.isalnum() for character in line)
