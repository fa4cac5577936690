"""Record the default run: its curves and what it reached, over seeds, from finished run folders.

    for s in 0 1 2; do polopt train --seed $s; done
    python experiments/main_job/record.py runs/grpo-chain_sum-0 runs/grpo-chain_sum-1 \
        runs/grpo-chain_sum-2
"""

import json
import sys
from pathlib import Path

from polopt.train.plots import plot_run
from polopt.train.record import read_metrics

HERE = Path(__file__).parent


def main(folders: list[str]) -> None:
    rows = []
    for folder in folders:
        metrics = read_metrics(folder)
        evaluations = [row for row in metrics if "eval/accuracy" in row]
        keys = ("step", "eval/accuracy", "eval/accuracy_low", "eval/accuracy_high", "eval/length")
        rows.append(
            {
                "seed": json.loads((Path(folder) / "config.json").read_text())["seed"],
                "evaluations": [{key: row[key] for key in keys} for row in evaluations],
                "seconds": sum(
                    row.get("time/step", 0) + row.get("time/eval", 0) for row in metrics
                ),
            }
        )
    (HERE / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    plot_run(folders[0], HERE / "run.png")
    for row in rows:
        first, last = row["evaluations"][0], row["evaluations"][-1]
        print(
            f"| {row['seed']} | {100 * first['eval/accuracy']:.1f} % "
            f"[{100 * first['eval/accuracy_low']:.0f}, {100 * first['eval/accuracy_high']:.0f}] "
            f"| {100 * last['eval/accuracy']:.1f} % "
            f"[{100 * last['eval/accuracy_low']:.0f}, {100 * last['eval/accuracy_high']:.0f}] "
            f"| {first['eval/length']:.1f} → {last['eval/length']:.1f} | {row['seconds']:.0f} |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
