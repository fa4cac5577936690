"""One line of the doctor's table."""

from dataclasses import dataclass
from typing import Literal

Mark = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What one check found: a run works (`ok`), works less well (`warn`), or does not (`fail`)."""

    name: str
    mark: Mark
    found: str
    advice: str = ""
    """What to do about it; empty where nothing needs to be done."""
