"""Draw loss.png from loss.jsonl.

python experiments/base_model/plot_loss.py
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent


def main() -> None:
    curve = [json.loads(line) for line in (FOLDER / "loss.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axes.plot([row["step"] for row in curve], [row["loss"] for row in curve])
    axes.set(xlabel="step", ylabel="weighted loss (nats per token)", yscale="log")
    axes.set_title("Pretraining the embedded base: mean of the last 50 steps")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(FOLDER / "loss.png", dpi=120)


if __name__ == "__main__":
    main()
