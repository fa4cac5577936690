"""``polopt methods``: the methods that train takes."""

import argparse
import json
from collections.abc import Sequence

from polopt.cli.table import METHODS
from polopt.errors import UsageError


def methods() -> dict[str, str]:
    """Return every method's key and its purpose in a line."""
    return {key: purpose for key, (_, purpose) in METHODS.items()}


def run(argv: Sequence[str]) -> int:
    """Print the table, or with ``--json`` an object from key to factory and purpose."""
    parser = argparse.ArgumentParser(
        prog="polopt methods",
        description="List the methods that polopt train takes.",
        epilog="example: polopt train --algorithm dr_grpo",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UsageError(f"unexpected argument {unknown[0]!r} (polopt methods --help)")
    if args.json:
        table = {k: {"factory": home, "purpose": text} for k, (home, text) in METHODS.items()}
        print(json.dumps(table, indent=2))
        return 0
    for key, purpose in methods().items():
        print(f"{key:<14}{purpose}")
    return 0
