"""Pictures of runs, as PNG files. Needs matplotlib; touches no global state of it."""

import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polopt.errors import PoloptError, missing_extra
from polopt.train.config import TrainConfig
from polopt.train.record import read_metrics
from polopt.train.sft_config import SftConfig, read_run
from polopt.train.sinks import SampleView, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every common kind of colour vision.
BLUE, ORANGE, GREEN, PINK, SKY, RED = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)
_DASHES = ("-", "--", "-.", ":")

Rows = Sequence[Mapping[str, Any]]

LABELS = {
    "reward/mean": "mean reward",
    "eval/accuracy": "held-out accuracy",
    "rollout/length": "completion length (tokens)",
    "policy/entropy": "entropy (nats per token)",
}


def plot_run(run: str | Path, out: str | Path | None = None) -> Path:
    """Draw a run's folder into ``plots/run.png`` (or `out`) and return that path.

    Six panels: reward and held-out accuracy with its 95 % interval, length, entropy, KL,
    equal-reward groups and truncation, gradient norm.
    """
    rows = read_metrics(run)
    if not rows:
        raise PoloptError(f"{run} has no metrics yet: nothing to draw")
    figure = _figure(12, 6.4)
    axes = figure.subplots(2, 3).flat
    _outcome(axes[0], rows)
    _panel(axes[1], rows, "Completion length", "tokens", [("rollout/length", "mean", BLUE)])
    _panel(axes[2], rows, "Entropy", "nats per token", [("policy/entropy", "policy", BLUE)])
    _panel(
        axes[3],
        rows,
        "KL",
        "nats per token",
        [("policy/kl_ref", "to the reference", BLUE), ("policy/kl", "within the step", ORANGE)],
    )
    _panel(
        axes[4],
        rows,
        "Lost signal",
        "share",
        [
            ("groups/zero_spread", "equal-reward groups", RED),
            ("rollout/truncated", "cut off", SKY),
            ("policy/clip_fraction", "clipped tokens", GREEN),
        ],
    )
    _panel(axes[5], rows, "Gradient norm", "before clipping", [("update/grad_norm", "norm", BLUE)])
    figure.suptitle(_title(Path(run)))
    return _save(figure, Path(run) / "plots" / "run.png" if out is None else Path(out))


def plot_losses(run: str | Path, out: str | Path | None = None) -> Path:
    """Draw a supervised run's folder into ``plots/run.png`` (or `out`) and return that path.

    Three panels: loss, gradient norm, learning rate.
    """
    rows = read_metrics(run)
    if not rows:
        raise PoloptError(f"{run} has no metrics yet: nothing to draw")
    figure = _figure(12, 3.4)
    axes = figure.subplots(1, 3).flat
    _panel(axes[0], rows, "Loss", "nats per token", [("supervised/loss", "loss", BLUE)])
    _panel(axes[1], rows, "Gradient norm", "before clipping", [("update/grad_norm", "norm", BLUE)])
    _panel(axes[2], rows, "Learning rate", "", [("update/learning_rate", "rate", BLUE)])
    figure.suptitle(_title(Path(run)))
    return _save(figure, Path(run) / "plots" / "run.png" if out is None else Path(out))


def compare_runs(
    groups: Mapping[str, Sequence[str | Path]],
    out: str | Path,
    keys: Sequence[str] = ("reward/mean", "eval/accuracy", "rollout/length", "policy/entropy"),
) -> Path:
    """Draw several runs side by side, one panel per metric, and return `out`.

    `groups` maps a label to the folders of its seeds. The line is the median over the seeds
    that have the step, the band their smallest and largest value.
    """
    if not groups or not all(groups.values()):
        raise PoloptError("compare_runs needs at least one label, each with at least one run")
    read = {label: [read_metrics(run) for run in runs] for label, runs in groups.items()}
    columns = min(2, len(keys))
    lines = math.ceil(len(keys) / columns)
    figure = _figure(5.4 * columns, 3.4 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).flat
    styles = list(
        itertools.islice(
            itertools.cycle(itertools.product(_DASHES, (BLUE, ORANGE, GREEN, PINK, SKY, RED))),
            len(read),
        )
    )
    for axis, key in zip(axes, keys, strict=False):
        for (label, runs), (dash, colour) in zip(read.items(), styles, strict=True):
            steps, middle, low, high = spread(runs, key)
            axis.plot(steps, middle, dash, color=colour, label=f"{label} ({len(runs)})")
            axis.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        _finish_axis(axis, LABELS.get(key, key), "")
    for axis in itertools.islice(axes, len(keys), None):
        axis.set_axis_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    # Beside the panels: on one of them a long legend would hide the curves.
    figure.legend(handles, labels, frameon=False, title="runs (seeds)", loc="outside right upper")
    return _save(figure, Path(out))


def spread(
    runs: Sequence[Rows], key: str
) -> tuple[list[int], list[float], list[float], list[float]]:
    """Return steps, and median, smallest and largest value of `key` over the runs at each."""
    values: dict[int, list[float]] = {}
    for rows in runs:
        for step, value in zip(*_series(rows, key), strict=True):
            values.setdefault(step, []).append(value)
    steps = sorted(values)
    each = [values[step] for step in steps]
    return (
        steps,
        [statistics.median(v) for v in each],
        [min(v) for v in each],
        [max(v) for v in each],
    )


class PlotSink:
    """Draws run.png when the run ends, and at evaluations at most every `patience` seconds."""

    def __init__(
        self,
        patience: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[Path], Path] = plot_run,
    ) -> None:
        """Refuse at once if matplotlib is missing; `draw` makes a picture of a run's folder."""
        _figure(1, 1)
        self._draw = draw
        self._patience = patience
        self._clock = clock
        self._drawn = clock()
        self._run = Path()

    def start(self, config: TrainConfig | SftConfig, info: Mapping[str, Any]) -> None:
        """Remember the folder."""
        self._run = config.folder

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing: the record is read when it is time to draw."""

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Draw if the last picture is old."""
        if self._clock() - self._drawn >= self._patience:
            self._draw(self._run)
            self._drawn = self._clock()

    def samples(self, step: int, samples: Sequence[SampleView]) -> None:
        """Do nothing."""

    def finish(self, summary: Summary) -> None:
        """Draw the whole run."""
        self._draw(self._run)

    def close(self) -> None:
        """Do nothing: nothing is held."""


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_extra("matplotlib", "drawing a run (turn off with --no-plot)") from error
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", path: Path) -> Path:
    """Write so that a viewer sees the old picture or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png")
    os.replace(partial, path)
    return path


def _series(rows: Rows, key: str) -> tuple[list[int], list[float]]:
    """Return steps and values where `key` was measured and finite."""
    pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _smooth(values: Sequence[float], window: int) -> list[float]:
    """Average each value with those up to `window` before and after it."""
    return [
        statistics.fmean(values[max(0, i - window) : i + window + 1]) for i in range(len(values))
    ]


def _curve(axis: "Axes", rows: Rows, key: str, label: str, colour: str, dash: str = "-") -> bool:
    """Draw raw values faintly and their running mean; say whether there were any."""
    steps, values = _series(rows, key)
    if not values:
        return False
    window = len(values) // 30
    if window:
        axis.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
    axis.plot(
        steps,
        _smooth(values, window),
        dash,
        color=colour,
        label=label,
        marker="o" if len(values) == 1 else None,
    )
    return True


def _panel(
    axis: "Axes", rows: Rows, title: str, unit: str, curves: Sequence[tuple[str, str, str]]
) -> None:
    drawn = [
        _curve(axis, rows, key, label, colour, dash)
        for (key, label, colour), dash in zip(curves, _DASHES, strict=False)
    ]
    if not any(drawn):
        axis.text(
            0.5,
            0.5,
            "not measured",
            ha="center",
            va="center",
            transform=axis.transAxes,
            color="0.5",
        )
    if len(curves) > 1 and any(drawn):
        axis.legend(frameon=False, fontsize="small")
    _finish_axis(axis, title, unit)


def _outcome(axis: "Axes", rows: Rows) -> None:
    """Draw training reward and, where it was evaluated, accuracy with its interval."""
    drawn = _curve(axis, rows, "reward/mean", "training reward", ORANGE)
    evaluated = [row for row in rows if row.get("eval/accuracy") is not None]
    steps = [row["step"] for row in evaluated]
    if evaluated:
        axis.plot(
            steps,
            [row["eval/accuracy"] for row in evaluated],
            color=BLUE,
            marker="o",
            markersize=4,
            label="held-out accuracy, 95 % interval",
        )
    bounds = ("eval/accuracy_low", "eval/accuracy_high")
    if evaluated and all(row.get(key) is not None for row in evaluated for key in bounds):
        low, high = ([row[key] for row in evaluated] for key in bounds)
        axis.fill_between(steps, low, high, color=BLUE, alpha=0.18, linewidth=0)
    if drawn or evaluated:
        axis.legend(frameon=False, fontsize="small")
    _finish_axis(axis, "Reward and accuracy", "")


def _finish_axis(axis: "Axes", title: str, unit: str) -> None:
    axis.set_title(title, loc="left", fontsize="medium")
    axis.set_xlabel("step")
    axis.set_ylabel(unit)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _title(run: Path) -> str:
    config = read_run(run)
    source = config.task if config.data is None else Path(config.data).name
    how = config.algorithm if isinstance(config, TrainConfig) else config.command
    # A dollar sign would start a formula, and user text is no formula.
    return f"{how} on {source}, seed {config.seed}".replace("$", r"\$")
