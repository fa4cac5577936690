"""Plain text on a terminal, with colour where it is one and rich is installed."""

import re
import sys
from collections.abc import Sequence

# (style, pattern): headings, keys, marks of a difference. The layout is the plain text's.
Styles = Sequence[tuple[str, str]]


def show(text: str, styles: Styles = ()) -> None:
    """Print `text`; on a terminal `styles` colour what their patterns match, line by line."""
    if not sys.stdout.isatty():
        print(text)
        return
    try:
        from rich.console import Console
        from rich.text import Text
    except ModuleNotFoundError:
        print(text)
        return
    rich = Text(text)
    for style, pattern in styles:
        rich.highlight_regex(re.compile(pattern, re.MULTILINE), style)
    Console(highlight=False, soft_wrap=True).print(rich)
