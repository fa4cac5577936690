"""What the small studies share: runs that are kept, their record, table and curves.

A study is a module beside this one, run from the repository's root.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polopt.train.plots import LABELS
from polopt.train.record import read_metrics

Record = dict[str, Any]  # of one run: method, seed, run, command, seconds, evaluations, series

# Okabe and Ito's palette: told apart with every common kind of colour vision.
LINES = (("#0072B2", "-"), ("#E69F00", "--"), ("#009E73", "-."), ("#CC79A7", ":"))
NAMES = {
    **LABELS,
    "groups/zero_spread": "equal-reward groups trained on (share)",
    "groups/refills": "extra rounds of sampling",
    "rollout/logp_gap": "gap of the sampler's log-probabilities (nats)",
    "policy/clip_fraction": "clipped tokens (share)",
    "rollout/turns": "turns of an episode",
    "rollout/tool_errors": "episodes ended by a misused tool (share)",
    "reward/part/tool": "reward for right calls (at most 0.1)",
}


def options(doc: str, steps: int) -> argparse.Namespace:
    """Seeds and steps from the command line."""
    shaped = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=shaped)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=steps)
    return parser.parse_args()


# ---------------------------------------------------------------- runs


def execute(out: Path, *arguments: str) -> Record:
    """One `polopt` command that writes the folder `out`, unless it was run before."""
    note = out.with_name(f"{out.name}.json")
    if not note.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "polopt", *arguments], check=True)
        seconds = round(time.perf_counter() - start, 1)
        command = shlex.join(["polopt", *arguments])
        note.write_text(json.dumps({"command": command, "seconds": seconds}) + "\n")
        print(f"{out.name}: {seconds:.0f} s", flush=True)
    return json.loads(note.read_text())


def train(out: Path, method: str, seed: int, *arguments: str, series: Sequence[str] = ()) -> Record:
    """One `polopt train`, and what it measured: held-out curve, and `series` at every step."""
    kept = ("--checkpoint-every", "0", "--no-plot", "--quiet", "--run", str(out))
    note = execute(out, "train", *arguments, "--seed", str(seed), *kept)
    rows = read_metrics(out)
    keys = ("step", "eval/accuracy", "eval/accuracy_low", "eval/accuracy_high", "eval/length")
    keys += ("eval/truncated",)
    steps = [row for row in rows if "reward/mean" in row]
    return {
        "method": method,
        "seed": seed,
        "run": str(out),
        **note,
        "evaluations": [{key: row[key] for key in keys} for row in rows if keys[1] in row],
        "series": {key: [row.get(key) for row in steps] for key in series},
    }


# ---------------------------------------------------------------- reports


def report(
    folder: Path,
    readme: str,
    records: Sequence[Record],
    panels: Sequence[str],
    columns: Sequence[tuple[str, str]] = (),
    levels: Sequence[tuple[str, float]] = (),
    **more: Any,
) -> None:
    """Write results.json, curves.png and README.md into the folder of a study.

    Args:
      folder: of the study.
      readme: a format string that names `table`, `command`, `python`, `versions`, `hardware`.
      records: of all runs.
      panels: series that `curves` draws.
      columns: series that `table` shows.
      levels: horizontal lines that `curves` draws.
      more: what else belongs into results.json and may be named by `readme`.
    """
    known = json.loads((Path(records[0]["run"]) / "info.json").read_text())
    versions = {key: known[key] for key in ("polopt", "jax", "flax", "optax", "numpy")}
    facts = {
        "command": f"python -m experiments.{folder.name}.run {shlex.join(sys.argv[1:])}".strip(),
        "python": platform.python_version(),
        "versions": versions,
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        **more,
    }
    text = json.dumps({**facts, "runs": list(records)}, indent=1)
    (folder / "results.json").write_text(text + "\n")
    curves(records, folder / "curves.png", panels, levels)
    named = ", ".join(f"{key} {value}" for key, value in versions.items())
    filled = readme.format(table=table(records, columns), **{**facts, "versions": named})
    (folder / "README.md").write_text(filled)


def by_method(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Runs of each method, in the order in which methods were named."""
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(record["method"], []).append(record)
    return grouped


def table(records: Sequence[Record], series: Sequence[tuple[str, str]] = ()) -> str:
    """A row per method: accuracy before and after, and the last value of each series.

    Args:
      records: of all runs.
      series: key, and format of its value, for the columns to add.
    """
    names = [NAMES[key] for key, _ in series]
    head = ["method", "before", "after: median", "each seed, 95 % interval", *names, "s/run"]
    lines = [" | ".join(head), "|".join(["---"] * len(head))]
    for method, runs in by_method(records).items():
        ends = [[run["evaluations"][i] for run in runs] for i in (0, -1)]
        before, after = (statistics.median(e["eval/accuracy"] for e in end) for end in ends)
        cells = [
            f"`{method}`",
            f"{100 * before:.1f} %",
            f"**{100 * after:.1f} %**",
            "; ".join(map(_interval, ends[1])),
            *(_last(runs, key, form) for key, form in series),
            f"{statistics.median(run['seconds'] for run in runs):.0f}",
        ]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def _interval(evaluation: Record) -> str:
    ends = ("eval/accuracy_low", "eval/accuracy_high")
    accuracy, low, high = (100 * evaluation[key] for key in ("eval/accuracy", *ends))
    return f"{accuracy:.1f} [{low:.0f}, {high:.0f}]"


def _last(runs: Sequence[Record], key: str, form: str) -> str:
    """Median over the seeds of the mean over the last three steps, as one batch is small."""
    return format(statistics.median(statistics.fmean(r["series"][key][-3:]) for r in runs), form)


def curves(
    records: Sequence[Record],
    out: Path,
    series: Sequence[str],
    levels: Sequence[tuple[str, float]] = (),
) -> None:
    """Held-out accuracy and each series over steps: seeds thin, their median thick.

    Args:
      records: of all runs.
      out: the PNG.
      series: keys of the panels after the first.
      levels: names and heights of horizontal lines in the first panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, 1 + len(series))
    lines = -(-(1 + len(series)) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.5 * lines), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for axis, key in zip(axes, ["eval/accuracy", *series], strict=False):
        for (method, runs), (colour, dash) in zip(by_method(records).items(), LINES, strict=False):
            seeds = [_points(run, key) for run in runs]
            for steps, values in seeds:
                axis.plot(steps, values, color=colour, linewidth=0.7, alpha=0.45)
            middle = [statistics.median(v) for v in zip(*(v for _, v in seeds), strict=True)]
            axis.plot(seeds[0][0], middle, dash, color=colour, linewidth=2, label=method)
        axis.set_title(NAMES[key], loc="left", fontsize="medium")
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for name, height in levels:
        figure.axes[0].axhline(height, color="0.4", linestyle="--", linewidth=1, label=name)
    for axis in list(axes)[1 + len(series) :]:
        axis.set_axis_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    title = f"median of {len(next(iter(by_method(records).values())))} seeds"
    figure.legend(handles, labels, frameon=False, title=title, loc="outside right upper")
    figure.savefig(out)


def _points(run: Record, key: str) -> tuple[list[int], list[float]]:
    if key == "eval/accuracy":
        return [e["step"] for e in run["evaluations"]], [e[key] for e in run["evaluations"]]
    return list(range(1, len(run["series"][key]) + 1)), run["series"][key]
