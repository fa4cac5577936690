"""README.md of the mutation check, from results.json."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

HEAD = """# Mutation check of the pieces

Small wrong changes are made to the reward side, the trajectory side, the aggregations and the
numerics, one at a time in a copy of the package, and each is run against the tests that touch its
piece: the piece's own tests, then up to three rows of the oracle comparison whose method is made of
it, then the relations between methods, then the conformance laws of one such method, until a test
fails or 15 s of CPU time are over. Not part of CI.

    python experiments/mutation/run.py

`mutants.py` lists the mutants in a fixed order, `touching.py` finds their tests, `results.json`
holds every mutant with its diff, its tests, its killer and its seconds; the reason of a survivor is
written there by hand and kept. `--again` runs survivors again; `--control` runs all killers on the
package as it is.
"""


def write_readme(results: Path, to: Path) -> None:
    """Counts, times and survivors."""
    data = json.loads(results.read_text())
    mutants = data["mutants"]
    alive = [x for x in mutants if x["killed_by"] is None]
    equal = [x for x in alive if x.get("reason", "").startswith("equivalent")]
    killed = len(mutants) - len(alive)
    real = len(mutants) - len(equal)
    lines = [HEAD]
    lines += [
        f"**{killed} of {len(mutants)} mutants are killed ({100 * killed / len(mutants):.1f} %)**;"
        f" of the {real} that are not equivalent {100 * killed / real:.1f} %.\n",
        _machine(data),
        _times(mutants),
        _killers(mutants),
        _control(data),
        "## By operator\n",
        *_operators(mutants),
        "\n## Survivors\n",
        *(_survivors(alive) if alive else ["None."]),
    ]
    to.write_text("\n".join(lines) + "\n")


def _machine(data: dict[str, Any]) -> str:
    m = data["machine"]
    names = ", ".join(f"{k} {v}" for k, v in m.items() if k not in ("python", "cpu"))
    return f"Python {m['python']}, {names}; {m['cpu']}, shared with other work, one process.\n"


def _times(mutants: list[dict[str, Any]]) -> str:
    out = []
    for key, words in (("seconds", "wall"), ("cpu_seconds", "CPU")):
        x = sorted(m[key] for m in mutants)
        middle, high = statistics.median(x), x[int(0.95 * (len(x) - 1))]
        out.append(f"{words} median {middle:.1f}, 95 % {high:.1f}, most {x[-1]:.1f}")
    over = sum(round(m["cpu_seconds"]) > 30 for m in mutants)
    return f"Seconds a mutant: {'; '.join(out)}; {over} above 30 s of CPU time.\n"


def _killers(mutants: list[dict[str, Any]]) -> str:
    """Which kind of test killed, and how many mutants did not even run."""
    dead = [x for x in mutants if x["killed_by"] is not None]
    oracle = sum("test_oracles.py" in x["killed_by"] for x in dead)
    laws = sum("test_conformance.py" in x["killed_by"] for x in dead)
    gaps = sum("test_mutants.py" in x["killed_by"] for x in dead)
    wrong = sum(x["message"].startswith(("AssertionError", "assert", "polopt.")) for x in dead)
    pieces = {name for x in mutants for name in x["pieces"]}
    return (
        f"Killed by a piece's own tests: {len(dead) - oracle - laws} ({gaps} of them by"
        " `tests/*/test_mutants.py`, written for mutants that had survived), by the oracle"
        f" comparison: {oracle}, by the laws: {laws}. Killed by a wrong number: {wrong}, by an"
        f" exception (shapes, types, warnings): {len(dead) - wrong}. The mutants touch"
        f" {len(pieces)} pieces.\n"
    )


def _control(data: dict[str, Any]) -> str:
    if "control" not in data:
        return "The control has not been run.\n"
    c = data["control"]
    failed = f"{len(c['failed'])} fail" if c["failed"] else "none fails"
    return (
        f"Control: of the tests that kill, {c['passed']} pass on the package as it is, {failed}"
        f" ({c['seconds']:.0f} s).\n"
    )


def _operators(mutants: list[dict[str, Any]]) -> list[str]:
    every = Counter(x["operator"] for x in mutants)
    alive = Counter(x["operator"] for x in mutants if x["killed_by"] is None)
    rows = [f"| {k} | {n} | {n - alive[k]} |" for k, n in sorted(every.items())]
    return ["| operator | mutants | killed |", "|---|---|---|", *rows]


def _survivors(alive: list[dict[str, Any]]) -> list[str]:
    lines = ["| mutant | change | reason |", "|---|---|---|"]
    for x in alive:
        change = "<br>".join(f"`{line.replace('|', '&#124;')}`" for line in x["diff"])
        lines.append(f"| {x['id']} in `{x['function']}` | {change} | {x.get('reason', '')} |")
    return lines
