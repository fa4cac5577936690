"""What polopt raises on purpose: the command line prints it as one line."""

import difflib
from collections.abc import Iterable


class PoloptError(ValueError):
    """Bad input: what was wrong, where, and what is accepted."""


class UsageError(PoloptError):
    """What was asked for cannot be read or is out of range; the command line exits with 2."""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the option nearest to `word`, or an empty string.

    >>> did_you_mean("grop", ["ppo", "grpo"])
    "; did you mean 'grpo'?"
    >>> did_you_mean("zzz", ["ppo", "grpo"])
    ''
    """
    near = difflib.get_close_matches(word, list(options), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def missing_extra(package: str, purpose: str) -> PoloptError:
    """Return the error for an optional package that is not installed."""
    return PoloptError(f'{purpose} needs the package {package!r}: pip install "polopt[run]"')
