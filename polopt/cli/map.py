"""``polopt map``: every method by what it changes of REINFORCE, as a table or a picture."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from polopt.cli.parse import read_arguments
from polopt.cli.show import show

_EPILOG = """\
examples:
  polopt map                          a table for the terminal
  polopt map --out map.png            a picture for a slide; also .svg, .pdf
  polopt map --format markdown        tables with links"""

_STYLES = (
    ("bold", r"^[A-Z].*\n─+$|^method .*"),
    ("cyan", r"^[a-z]\w+"),
    ("dim", r"^\d{4}"),
)


def run(argv: Sequence[str]) -> int:
    """Print the map in a format, or draw it into a file."""
    parser = argparse.ArgumentParser(
        prog="polopt map",
        description="Show every method by what it changes of REINFORCE.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--format", default="terminal", choices=["terminal", "markdown", "json"])
    parser.add_argument("--out", metavar="FILE", help="draw into this .png, .svg or .pdf instead")
    args = read_arguments(parser, argv)
    if args.out is not None:
        from polopt.describe.picture import draw_map

        print(f"drawn into {draw_map(Path(args.out))}")
    elif args.format == "json":
        from polopt.describe.facts import as_json, method_map

        print(json.dumps([as_json(entry) for entry in method_map().values()], indent=2))
    else:
        from polopt.describe import table

        text = table.markdown() if args.format == "markdown" else table.terminal()
        show(text, _STYLES if args.format == "terminal" else ())
    return 0
