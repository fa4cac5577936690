"""SmolLM2-135M-Instruct learns sums by GRPO: all weights, and adapters alone.

The model cannot begin from nothing: a short supervised warm start on a task's own solutions comes
first, and is counted apart. Finished runs are kept, so the study can be interrupted. Writes
results.json, README.md, curves.png and samples.md beside itself.

    python -m experiments.smollm2_grpo.run --seeds 0 --steps 40
"""

from __future__ import annotations

import json
from pathlib import Path

from experiments import study

HERE = Path(__file__).parent
RUNS = Path("runs/smollm2_grpo")
WARM = RUNS / "warm_start"
TASK = ("--task", "chain_sum")
ARMS = {
    "full": ("--learning-rate", "1e-5"),
    "lora": ("--lora-rank", "16", "--learning-rate", "2e-4"),
}
SAME = (
    *("--algorithm", "grpo", "--model", str(WARM), *TASK, "--prompts", "8", "--group-size", "8"),
    *("--minibatches", "1", "--max-new-tokens", "40", "--eval-every", "10"),
    *("--eval-problems", "256"),
)
SERIES = ("reward/mean", "policy/entropy", "rollout/length", "rollout/logp_gap")


def main() -> None:
    args = study.options(__doc__, steps=40)
    rows = ("--solution", "worked", "--problems", "256", "--epochs", "1", "--batch", "16")
    warm = study.execute(
        WARM,
        *("sft", "--model", "smollm2-135m", *TASK, *rows, "--learning-rate", "5e-5"),
        *("--run", str(WARM), "--quiet", "--no-plot"),
    )
    records = [
        study.train(
            RUNS / f"{arm}-{seed}",
            arm,
            seed,
            *(*SAME, *how, "--steps", str(args.steps)),
            series=SERIES,
        )
        for seed in args.seeds
        for arm, how in ARMS.items()
    ]
    (HERE / "samples.md").write_text(samples(records))
    study.report(HERE, README, records, SERIES[:3], [("rollout/logp_gap", ".1e")], warm=warm)


def samples(records: list[study.Record]) -> str:
    """What the model answered to the same held-out problems before and after, of every run."""
    parts = ["# Held-out problems, before and after\n"]
    for record in records:
        shown = [
            json.loads(line)
            for path in sorted(Path(record["run"]).glob("rollouts/*.jsonl"))
            for line in path.read_text().splitlines()
        ]
        parts.append(f"## {record['method']}, seed {record['seed']}\n")
        parts += [f"    {json.dumps(view)}" for view in shown[:4] + shown[-4:]]
    return "\n".join(parts) + "\n"


README = """# SmolLM2-135M learns sums by GRPO

{table}

    {command}

Python {python}, {versions}, {hardware}.
"""

if __name__ == "__main__":
    main()
