"""Mutation check: every chosen mutant of a piece against the tests that touch the piece.

Works in a temporary copy of the package and its tests. Libraries are imported once; every mutant
runs pytest in a fork of this process, so that it imports a package of its own and compiles anew.
Finished mutants are kept in results.json, so the check can be interrupted.

    python experiments/mutation/run.py --count 200
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mutants import Mutant, choose
from report import write_readme
from touching import Tests

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
# CPU seconds, which other work on the machine does not lengthen.
BUDGET = 15  # after which no further test of a mutant begins
LIMIT = 30  # of a mutant that never ends
STOPPED = "stopped at the limit"


def preload() -> None:
    """Import what all forks share: nothing of polopt, and no device is touched."""
    import warnings

    sys.dont_write_bytecode = True  # a mutant may be as long as the file it stands for
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import chex  # noqa: F401
        import hypothesis  # noqa: F401
        import jax.numpy  # noqa: F401
        import numpy  # noqa: F401
        import optax  # noqa: F401
        import pytest  # noqa: F401
        import rlax  # noqa: F401
        import scipy.special  # noqa: F401


def copy_tree(to: Path) -> None:
    """What the tests of pieces need of the repository."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("polopt", "tests"):
        shutil.copytree(ROOT / name, to / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", to)


def forked(folder: Path, work: Callable[[], Any], limit: int) -> tuple[Any, float, float]:
    """What `work` answers in a fork that imports from `folder`; its wall and CPU seconds.

    None if it crashed, `STOPPED` if it reached the limit of CPU seconds.
    """
    answer, log = folder / "answer.json", folder / "log.txt"
    answer.unlink(missing_ok=True)
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
            os.chdir(folder)
            sys.path[:0] = [str(folder), str(folder / "tests")]
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            answer.write_text(json.dumps(work()))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    _, status, usage = os.wait4(pid, 0)
    made = json.loads(answer.read_text()) if answer.exists() else None
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        made = STOPPED
    return made, time.perf_counter() - start, usage.ru_utime + usage.ru_stime


class Recorder:
    """A pytest plugin: which tests ran and which failed, within a budget of seconds."""

    def __init__(self, budget: float) -> None:
        self.end = time.process_time() + budget
        self.passed: list[str] = []
        self.failed: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self._fail(report)
        elif report.when == "call":
            self.passed.append(report.nodeid)

    def pytest_runtest_teardown(self, item: Any) -> None:
        if time.process_time() > self.end:
            item.session.shouldstop = "the budget is spent"

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._fail(report)

    def _fail(self, report: Any) -> None:
        crash = getattr(report.longrepr, "reprcrash", None)
        lines = (crash.message if crash else str(report.longrepr)).strip().splitlines()
        self.failed.append((report.nodeid, next((x for x in lines if x.strip()), "")[:160]))


def pytest_run(nodes: list[str], budget: float, *flags: str) -> Callable[[], dict[str, Any]]:
    """Run tests in their order, in the working directory, while the budget lasts."""

    def work() -> dict[str, Any]:
        import pytest

        recorder = Recorder(budget)
        # Libraries that bring plugins are imported already.
        ignored = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        args = ["-p", "no:cacheprovider", *ignored, *flags, *nodes]
        code = int(pytest.main(args, plugins=[recorder]))
        return {"code": code, "passed": recorder.passed, "failed": recorder.failed}

    return work


def attempt(folder: Path, mutant: Mutant, nodes: list[str]) -> dict[str, Any]:
    """One mutant against its tests, up to the first that fails."""
    file = folder / "polopt" / mutant.file
    source = file.read_bytes()
    file.write_bytes(mutant.apply(source))
    try:
        made, wall, cpu = forked(folder, pytest_run(nodes, BUDGET, "-x"), LIMIT)
    finally:
        file.write_bytes(source)
    result: dict[str, Any] = {
        "id": mutant.id,
        "function": mutant.function,
        "operator": mutant.operator,
        "diff": mutant.diff(source),
        "tests": nodes,
        "seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
    }
    if made == STOPPED:
        return {**result, "killed_by": "timeout", "message": ""}
    if made is None or made["code"] not in (0, 1, 2):
        log = (folder / "log.txt").read_text(errors="replace")
        raise RuntimeError(f"{mutant.id}: {made}\n{log[-3000:]}")
    result["passed"] = len(made["passed"])
    node, message = made["failed"][0] if made["failed"] else (None, "")
    return {**result, "killed_by": node, "message": message}


def control(folder: Path, nodes: list[str]) -> dict[str, Any]:
    """The tests that killed, on the package as it is: all of them must pass."""
    made, wall, cpu = forked(folder, pytest_run(nodes, 1800), 1800)
    if made is None or made["code"] not in (0, 1):
        log = (folder / "log.txt").read_text(errors="replace")
        raise RuntimeError(f"the control did not run: {made}\n{log[-3000:]}")
    failed = [node for node, _ in made["failed"]]
    times = {"seconds": round(wall, 1), "cpu_seconds": round(cpu, 1)}
    return {"passed": len(made["passed"]), "failed": failed, **times}


def machine() -> dict[str, str]:
    """Versions and hardware."""
    from importlib.metadata import version

    names = ("jax", "jaxlib", "numpy", "pytest", "hypothesis", "rlax")
    cores = f"{os.cpu_count()} virtual CPU cores ({platform.machine()})"
    return {"python": platform.python_version(), **{n: version(n) for n in names}, "cpu": cores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="how many mutants")
    parser.add_argument("--first", type=int, help="stop after so many new ones")
    parser.add_argument("--again", nargs="*", help="ids to run again; none given: all survivors")
    parser.add_argument("--control", action="store_true", help="only the control run")
    options = parser.parse_args()
    os.nice(5)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"mutants": []}
    preload()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        copy_tree(folder)
        tests = Tests(folder, lambda work: forked(folder, work, 120)[0])
        mutants = choose(folder / "polopt", options.count)
        by_id = recorded(folder, mutants, known["mutants"])
        if not options.control:
            broken = known.get("control", {}).get("failed", [])
            for mutant in due(folder, mutants, by_id, options, broken):
                nodes = tests.of(mutant.file, mutant.function)
                made = {**attempt(folder, mutant, nodes), "pieces": tests.pieces(mutant)}
                reason = by_id.get(mutant.id, {}).get("reason")
                if reason and made["killed_by"] is None:
                    made["reason"] = reason
                by_id[mutant.id] = made
                killer = made["killed_by"] or "SURVIVED"
                print(f"{made['seconds']:5.1f} s {mutant.id:50} {killer}", flush=True)
                save(known, mutants, by_id)
        done = [by_id[m.id] for m in mutants if m.id in by_id]
        if options.control or (len(done) == len(mutants) and options.again is None):
            killers = sorted({x["killed_by"] for x in done if "::" in (x["killed_by"] or "")})
            known["control"] = control(folder, killers)
            print(known["control"])
        save(known, mutants, by_id)
    write_readme(RESULTS, HERE / "README.md")


def recorded(folder: Path, mutants: list[Mutant], known: list[dict[str, Any]]) -> dict[str, Any]:
    """The known results under today's ids: a mutant that only moved to other lines is the same."""

    def key(file: str, function: str, operator: str, diff: list[str]) -> tuple[str, ...]:
        return file, function, operator, *diff

    where: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for m in mutants:
        diff = m.diff((folder / "polopt" / m.file).read_bytes())
        where[key(m.file, m.function, m.operator, diff)].append(m.id)
    made = {x["id"]: x for x in known}
    for x in known:
        ids = where[key(x["id"].split(":")[0], x["function"], x["operator"], x["diff"])]
        if len(ids) == 1:
            made[ids[0]] = {**x, "id": ids[0]}
    return made


def due(
    folder: Path,
    mutants: list[Mutant],
    by_id: dict[str, Any],
    options: argparse.Namespace,
    broken: list[str],
) -> list[Mutant]:
    """The mutants that are to run: new, changed or killed by a broken test, or those asked for."""

    def same(m: Mutant) -> bool:
        source = (folder / "polopt" / m.file).read_bytes()
        known = by_id.get(m.id, {"diff": None, "killed_by": None})
        return known["diff"] == m.diff(source) and known["killed_by"] not in broken

    if options.again is None:
        return [m for m in mutants if not same(m)][: options.first]
    chosen = options.again or [k for k, x in by_id.items() if x["killed_by"] is None]
    return [m for m in mutants if m.id in chosen]


def save(known: dict[str, Any], mutants: list[Mutant], by_id: dict[str, Any]) -> None:
    """Write results.json anew, in the order of the mutants."""
    known["machine"] = machine()
    known["mutants"] = [by_id[m.id] for m in mutants if m.id in by_id]
    new = RESULTS.with_suffix(".new")
    new.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    new.replace(RESULTS)


if __name__ == "__main__":
    main()
