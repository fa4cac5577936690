"""``polopt doctor``: what of this machine a run would stumble over."""

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from polopt.cli.parse import read_arguments
from polopt.cli.show import show

if TYPE_CHECKING:
    from polopt.doctor import Finding

_EPILOG = """\
examples:
  polopt doctor                       this machine, and runs/ in this folder
  polopt doctor --run /mnt/bucket/a   can a run be kept there?
  polopt doctor --json                for programs

Exits with 1 if a run would fail. A device that does not answer is given up after
two minutes."""

_STYLES = (
    ("green", r"^ok\b"),
    ("yellow", r"^warn\b"),
    ("bold red", r"^fail\b"),
    ("cyan", r"^ {8,}\S.*$"),
)
_INDENT = 24


def run(argv: Sequence[str]) -> int:
    """Print a line for each check, or with ``--json`` all of them as one object."""
    parser = argparse.ArgumentParser(
        prog="polopt doctor",
        description="Check versions, devices, memory, the compile cache and a run's folder.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--run", default="runs", metavar="FOLDER", help="where runs are to be kept")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = read_arguments(parser, argv)
    from polopt.doctor import examine

    return report(examine(args.run), as_json=args.json)


def report(findings: Iterable["Finding"], *, as_json: bool) -> int:
    """Print findings as they come; return the exit code."""
    seen = []
    for finding in findings:
        seen.append(finding)
        if not as_json:
            show(line(finding), _STYLES)
    good = all(finding.mark != "fail" for finding in seen)
    if as_json:
        checks = [dataclasses.asdict(finding) for finding in seen]
        print(json.dumps({"ok": good, "checks": checks}, indent=2))
    return 0 if good else 1


def line(finding: "Finding") -> str:
    """A finding as people read it: mark, name, what was found, and below it what to do."""
    text = f"{finding.mark:<6}{finding.name:<{_INDENT - 6}}{' '.join(finding.found.split())}"
    return f"{text}\n{' ' * _INDENT}do: {finding.advice}" if finding.advice else text
