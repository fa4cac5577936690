"""A smaller student, its own reward and a teacher: three methods, several seeds.

Finished runs are kept, so the study can be interrupted. Writes results.json, README.md and
curves.png beside itself.

    python -m experiments.distillation.run --seeds 0 1 2 --steps 20
"""

from __future__ import annotations

from pathlib import Path

from experiments import study

HERE = Path(__file__).parent
RUNS = Path("runs/distillation")
METHODS = ("grpo", "opd", "grpo_opd")
TEACHER, STUDENT = RUNS / "teacher", RUNS / "student"
SAME = (
    *("--model", str(STUDENT), "--prompts", "16", "--group-size", "8", "--minibatches", "4"),
    *("--learning-rate", "3e-4", "--eval-every", "2", "--eval-problems", "256"),
)


def main() -> None:
    args = study.options(__doc__, steps=20)
    teacher = study.train(TEACHER, "teacher", 0, "--eval-every", "0")
    size = ("--layers", "2", "--width", "64", "--steps", "1500")
    student = study.execute(STUDENT, "pretrain", "--out", str(STUDENT), *size)
    records = [
        study.train(
            RUNS / f"{key}-{seed}",
            key,
            seed,
            *("--algorithm", key, *SAME, "--steps", str(args.steps)),
            *(() if key == "grpo" else ("--teacher", str(TEACHER))),
        )
        for seed in args.seeds
        for key in METHODS
    ]
    height = teacher["evaluations"][-1]["eval/accuracy"]
    more = {"teacher": teacher, "student": student, "level": f"{100 * height:.1f} %"}
    study.report(HERE, README, records, (), levels=[("teacher", height)], **more)


README = """# A smaller student, its own reward and a teacher

The teacher is the default job, `polopt train`, which reaches {level} of the held-out problems of
chain_sum. The student has 2 layers of width 64 and is pretrained for 1,500 steps on the mixture
that the shipped model was trained on. `grpo` learns from the outcome alone, `opd` from the teacher
alone (the reverse KL of each token as its credit), `grpo_opd` from both credits added. For all: 16
prompts of 8 completions and 4 optimiser steps per step, learning rate 3e-4, the rest as the methods
ship. Accuracy is of 256 problems that are never trained on, one completion each at temperature 1,
with Wilson's 95 % interval.

{table}

![held-out accuracy over steps, with the teacher's level](curves.png)

**What it shows.** All three take the small student from 33 to between 76 and 81 % in twenty steps,
most of it in the first six. `opd`, which never sees a reward, rises as fast and as far as the
others; nobody reaches the teacher, which is twice as deep and twice as wide. That looks like the
student's own limit, as `grpo`, which does not know the teacher, ends at the same height.

**What it does not show.** That one of the three is better: intervals of single runs overlap.
`grpo` is 5 points above `opd` in the median, as its goal is the measured one; whether that would
hold on a longer run, at another learning rate or with more than three seeds is open. The sum of
both credits was not tuned. The teacher's forward pass and its training are a cost that `grpo` does
not have. `grpo` as it ships also has a KL term and weighs sequences alike, `opd` and `grpo_opd`
have none and weigh tokens alike; and `grpo_opd` clips, which `opd` does not.

    {command}

Python {python}, {versions}, {hardware}. The machine was shared: seconds are a guide only.
The student took {student[seconds]:.0f} s: `{student[command]}`, the teacher
{teacher[seconds]:.0f} s. [results.json](results.json) has every run: its command, seconds and
curves.
"""

if __name__ == "__main__":
    main()
