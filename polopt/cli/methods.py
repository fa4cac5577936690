"""``polopt methods``: the methods that train takes."""

import argparse
import json
from collections.abc import Sequence

from polopt.catalogue import FAMILIES, METHODS
from polopt.cli.parse import read_arguments
from polopt.cli.show import show

_STYLES = (
    ("bold", r"^\S.*$"),
    ("cyan", r"^  [a-z]\w+"),
    ("magenta", r"(?<= )R(?=[T ] )"),
    ("green", r"(?<=[ R])T(?= )"),
)


def methods() -> dict[str, str]:
    """Return every method's key and its purpose in a line."""
    return {key: method.purpose for key, method in METHODS.items()}


def run(argv: Sequence[str]) -> int:
    """Print the table, or with ``--json`` a list with what each method is made of."""
    parser = argparse.ArgumentParser(
        prog="polopt methods",
        description="List the methods that polopt train takes.",
        epilog="example: polopt train --algorithm dr_grpo",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--json", action="store_true", help="print all that is known, as JSON")
    args = read_arguments(parser, argv)
    if args.json:
        from polopt.describe.facts import as_json, method_map

        print(json.dumps([as_json(entry) for entry in method_map().values()], indent=2))
    else:
        show(listing(), _STYLES)
    return 0


def listing() -> str:
    """The methods by family: key, year, paper, the sides that they change, and purpose."""
    lines = []
    for family in FAMILIES:
        lines += [family]
        for key, method in METHODS.items():
            if method.family == family:
                paper = method.paper if method.on_arxiv else method.paper.split(" ")[0]
                marks = "".join(side if side in method.sides else " " for side in "RT")
                lines.append(f"  {key:<22}{method.year}  {paper:<11} {marks}  {method.purpose}")
        lines.append("")
    lines.append("R changes the reward side of REINFORCE, T the trajectory side.")
    lines.append("polopt explain KEY says what a method is made of, polopt map draws them all.")
    return "\n".join(lines)
