"""Every core method on the default task: held-out accuracy before and after, several seeds.

Each run is `polopt train --algorithm KEY --seed S` and nothing else, shortened. Finished runs are
kept, so the study can be interrupted. Writes results.json, README.md and curves.png beside itself.

    python experiments/core_methods/run.py --seeds 0 1 2 --steps 40
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from polopt.cli.table import METHODS
from polopt.train.intervals import wilson_difference
from polopt.train.plots import compare_runs
from polopt.train.record import read_metrics

HERE = Path(__file__).parent


def run(key: str, seed: int, steps: int, folder: Path) -> Path:
    """One run, unless it is there already."""
    out = folder / f"{key}-{seed}"
    done = out / "metrics.jsonl"
    if not (done.exists() and read_metrics(out)[-1]["step"] == steps):
        command = [
            sys.executable,
            "-m",
            "polopt",
            "train",
            "--algorithm",
            key,
            "--seed",
            str(seed),
            "--steps",
            str(steps),
            "--eval-every",
            "0",
            "--checkpoint-every",
            "0",
            "--no-plot",
            "--quiet",
            "--run",
            str(out),
        ]
        if out.exists():
            command.append("--resume")
        start = time.perf_counter()
        subprocess.run(command, check=True)
        print(f"{key} seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    return out


def row(key: str, runs: list[Path]) -> dict:
    """Before and after of one method over its seeds."""
    evaluations = [[r for r in read_metrics(out) if "eval/accuracy" in r] for out in runs]
    before = [e[0]["eval/accuracy"] for e in evaluations]
    after = [e[-1]["eval/accuracy"] for e in evaluations]
    problems = evaluations[0][0]["eval/problems"]
    rises = [
        wilson_difference(b, problems, a, problems) for b, a in zip(before, after, strict=True)
    ]
    return {
        "method": key,
        "before": before,
        "after": after,
        "length": [[e[0]["eval/length"], e[-1]["eval/length"]] for e in evaluations],
        "rise_low": [low for low, _ in rises],
        "step_seconds": statistics.median(
            r["time/step"] for out in runs for r in read_metrics(out)[2:] if "time/step" in r
        ),
    }


def table(rows: list[dict]) -> str:
    lines = [
        "| method | before | after (median; each seed) | smallest rise, 95 % lower end | "
        "length | s/step |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        each = ", ".join(f"{100 * a:.0f}" for a in r["after"])
        length = [statistics.median(x[i] for x in r["length"]) for i in (0, 1)]
        lines.append(
            f"| `{r['method']}` | {100 * statistics.median(r['before']):.1f} % "
            f"| **{100 * statistics.median(r['after']):.1f} %** ({each}) "
            f"| {100 * min(r['rise_low']):+.1f} points | {length[0]:.1f} → {length[1]:.1f} "
            f"| {r['step_seconds']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--runs", type=Path, default=Path("runs/core_methods"))
    args = parser.parse_args()
    runs = {key: [] for key in args.methods}
    for seed in args.seeds:
        for key in args.methods:
            runs[key].append(run(key, seed, args.steps, args.runs))
    rows = [row(key, runs[key]) for key in args.methods]
    info = json.loads((runs[args.methods[0]][0] / "info.json").read_text())
    versions = {k: info[k] for k in ("polopt", "jax", "flax", "optax", "numpy") if k in info}
    seeds = " ".join(map(str, args.seeds))
    setting = {
        "command": f"python experiments/core_methods/run.py --seeds {seeds} --steps {args.steps}",
        "python": platform.python_version(),
        "versions": versions,
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
    }
    text = json.dumps({**setting, "rows": rows}, indent=1)
    (HERE / "results.json").write_text(text + "\n")
    compare_runs(runs, HERE / "curves.png")
    (HERE / "README.md").write_text(README.format(table=table(rows), steps=args.steps, **setting))


README = """# The core methods on the default task

`polopt train --algorithm KEY --seed S`, shortened to {steps} steps of 256 completions, everything
else as it comes: each method's own settings, scaled down by `polopt.train.setup.scale` (groups of
at most 8, at most 4 epochs of at most 4 optimiser steps). Held-out accuracy is of 256 problems that
are never trained on, one completion each at temperature 1. The rise is the difference after −
before with Newcombe's 95 % interval; the column shows the worst seed's lower end. Length is in
tokens. Methods were not tuned: this shows that each of them learns, not which is best. DAPO's
training reward is that of the groups which it kept, the informative ones.

{table}

![held-out accuracy over steps, median and spread over seeds](curves.png)

    {command}

Python {python}, {versions}, {hardware}. The machine was shared: seconds per step are a guide only.
"""

if __name__ == "__main__":
    main()
