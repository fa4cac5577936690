"""``polopt explain``: a method read back from its composition."""

import argparse
import shutil
from collections.abc import Sequence

from polopt.cli.parse import read_arguments
from polopt.cli.show import show
from polopt.cli.table import find_algorithm
from polopt.errors import UsageError

_EPILOG = """\
examples:
  polopt explain grpo
  polopt explain dapo --versus dr_grpo
  polopt explain mine.py:my_method --versus grpo"""

_STYLES = (
    ("bold", r"^[A-Z].* side$|^(Token weights|Needs|Costs|Repairs|Held against)$|^Differs from .*"),
    ("bold", r"\A.*$"),
    ("cyan", r"^ {2,6}[a-z_]\w*(?=\()"),
    ("dim", r"^ +(from|differs:) .*(\n {8,}\S.*)*"),
    ("green", r"^ {4,}\+ .*"),
    ("red", r"^ {4,}- .*"),
    ("yellow", r"^ {4,}~ .*"),
)


def run(argv: Sequence[str]) -> int:
    """Print what a method is made of, needs, costs and repairs, and how it differs."""
    parser = argparse.ArgumentParser(
        prog="polopt explain",
        description="Say what a method is made of, what it needs, costs and repairs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("method", nargs="?", help="a key of polopt methods, or file.py:name")
    parser.add_argument("--versus", metavar="METHOD", help="compare with this one")
    args = read_arguments(parser, argv)
    if args.method is None:
        raise UsageError("which method? polopt methods lists them")
    made = [find_algorithm(spec) for spec in (args.method, args.versus) if spec is not None]
    from polopt.describe import explain

    width = min(100, max(60, shutil.get_terminal_size().columns))
    show(explain(*made, width=width), _STYLES)
    return 0
