"""What a run looks like in words: its history, and pure functions from it to text."""

import bisect
import itertools
import math
import statistics
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from polopt.train.config import TrainConfig
from polopt.train.intervals import wilson_difference
from polopt.train.sinks import SampleView, Summary

LOSS_NOTE = "Loss near 0 is normal: on-policy it is the mean centred credit. Watch reward."

LEGEND = "ent: entropy, tied: groups of equal rewards (no gradient), cut: by the limit"

_BLOCKS = "▁▂▃▄▅▆▇█"


class History:
    """Everything that a display needs, gathered from a sink's events."""

    def __init__(self, config: TrainConfig, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin at `clock`'s present time."""
        self.config = config
        self.done = 0
        self.latest: dict[str, float] = {}
        self.rewards: list[float] = []
        self.evaluations: list[tuple[int, dict[str, float]]] = []
        self.fresh: SampleView | None = None
        self.tracked: dict[str, tuple[SampleView, SampleView]] = {}
        self._clock = clock
        self._began = clock()
        self._ends: list[float] = []

    def add_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a training step."""
        self.done = step
        self.latest = {k: float(v) for k, v in metrics.items()}
        reward = self.latest.get("reward/mean", math.nan)
        if math.isfinite(reward):
            self.rewards.append(reward)
        self._ends = [*self._ends[-20:], self._clock()]

    def add_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take an evaluation; only those with an accuracy are kept."""
        values = {k: float(v) for k, v in metrics.items()}
        if math.isfinite(values.get("eval/accuracy", math.nan)):
            self.evaluations.append((step, values))

    def add_samples(self, samples: Sequence[SampleView]) -> None:
        """Take completions; the prompts that come first are followed through the run."""
        if not self.tracked:
            self.tracked = {sample.prompt: (sample, sample) for sample in samples[:2]}
            return
        for sample in samples:
            if sample.prompt in self.tracked:
                self.tracked[sample.prompt] = (self.tracked[sample.prompt][0], sample)
        self.fresh = next((s for s in samples if s.prompt not in self.tracked), self.fresh)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._began

    @property
    def seconds_per_step(self) -> float | None:
        """Median over the last steps; None until two have ended (the first one compiles)."""
        gaps = [b - a for a, b in itertools.pairwise(self._ends)]
        return statistics.median(gaps) if gaps else None

    @property
    def best(self) -> tuple[int, dict[str, float]] | None:
        """The evaluation with the highest accuracy, the earliest of equals."""
        return max(self.evaluations, key=lambda e: (e[1]["eval/accuracy"], -e[0]), default=None)


def clean(text: str, width: int | None = None) -> str:
    """Make any text safe to print on one line, at most `width` columns wide.

    Line ends and tabs become visible; other control, format and surrogate characters (which
    could move the cursor or turn the writing direction) become U+FFFD.

    >>> clean("7\\n8\\x1b[2J", 4)
    '7⏎8…'
    """
    limit = None if width is None else 2 * width + 1
    safe = "".join(_visible(c) for c in text.replace("\r\n", "\n")[:limit])
    if width is None:
        return safe
    used = list(itertools.accumulate(_columns(c) for c in safe))
    if not used or (used[-1] <= width and len(text) <= 2 * width):
        return safe
    return safe[: bisect.bisect_right(used, width - 1)] + "…"


def clean_end(text: str, width: int) -> str:
    """Like `clean`, but of a text that is too wide the end stays.

    >>> clean_end("What is 7 + 8?", 8)
    '… 7 + 8?'
    """
    tail = clean(text[-2 * width :])
    used = list(itertools.accumulate(_columns(c) for c in reversed(tail)))
    if not used or (used[-1] <= width and len(text) <= 2 * width):
        return tail
    return "…" + tail[len(tail) - bisect.bisect_right(used, width - 1) :]


def _visible(character: str) -> str:
    if character in "\n\r":
        return "⏎"
    if character == "\t":
        return " "
    return "\ufffd" if unicodedata.category(character)[0] == "C" else character


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw values as at most `width` blocks, each the mean of its share, scaled to the range.

    >>> sparkline([0, 1, 2, 3], 4)
    '▁▃▆█'
    """
    count = min(width, len(values))
    if count == 0:
        return ""
    edges = [i * len(values) // count for i in range(count + 1)]
    means = [statistics.fmean(values[a:b]) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return _BLOCKS[0] * count
    return "".join(_BLOCKS[round((m - low) / (high - low) * 7)] for m in means)


def duration(seconds: float) -> str:
    """Write seconds as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def accuracy_text(metrics: Mapping[str, float]) -> str:
    """Write an accuracy with its interval, in percent."""
    text = f"{100 * metrics['eval/accuracy']:.1f} %"
    if "eval/accuracy_low" in metrics and "eval/accuracy_high" in metrics:
        low, high = metrics["eval/accuracy_low"], metrics["eval/accuracy_high"]
        text += f" [{100 * low:.0f}, {100 * high:.0f}]"
    return text


def number(metrics: Mapping[str, float], key: str) -> str:
    """Write one metric in the form that suits its key; a dash where it was not measured."""
    value = metrics.get(key)
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "not finite"
    if key in ("policy/clip_fraction", "groups/zero_spread", "rollout/truncated"):
        return f"{100 * value:.1f} %"
    if key == "time/tokens_per_second":
        return f"{value:,.0f}"
    if key == "rollout/length":
        return f"{value:.1f}"
    return f"{value:.3f}" if 1e-2 <= abs(value) < 1e3 or value == 0 else f"{value:.1e}"


def kl_key(metrics: Mapping[str, float]) -> str:
    """Return the KL that tells most: to the reference where there is one."""
    return "policy/kl_ref" if "policy/kl_ref" in metrics else "policy/kl"


def header(config: TrainConfig, info: Mapping[str, Any]) -> str:
    """Say in one line what is run, where, and on what."""
    source = config.task if config.data is None else config.data
    where = f" on {info.get('devices', '')} {info['device']}" if "device" in info else ""
    resumed = f", resumed from step {info['resumed_from']}" if info.get("resumed_from") else ""
    return clean(
        f"polopt: {config.algorithm} on {source}, {config.steps} steps"
        f"{resumed}{where} -> {config.folder}"
    )


def step_line(history: History) -> str:
    """Write the latest step on one line of fewer than 80 columns."""
    m, total = history.latest, history.config.steps
    parts = [f"{history.done:>{len(str(total))}}/{total}"]
    for label, key, form in (
        ("reward", "reward/mean", ".3f"),
        ("ent", "policy/entropy", ".3f"),
        ("kl", kl_key(m), ".4f"),
        ("tied", "groups/zero_spread", ".0%"),
        ("cut", "rollout/truncated", ".0%"),
        ("len", "rollout/length", ".0f"),
    ):
        if key in m:
            parts.append(f"{label} {m[key]:{form}}")
    pace = history.seconds_per_step
    if pace is not None and history.done < total:
        parts.append(f"{duration(pace * (total - history.done))} left")
    return " ".join(parts)


def evaluation_line(history: History) -> str:
    """Write the latest evaluation on one line, with the first one to compare."""
    step, metrics = history.evaluations[-1]
    first_step, first = history.evaluations[0]
    compared = f", {accuracy_text(first)} at first" if step != first_step else ""
    when = f"after {step} steps" if step else "before training"
    return f"held-out accuracy {when}: {accuracy_text(metrics)}{compared}"


def verdict(summary: Summary) -> str:
    """Say whether held-out accuracy changed, by how much, and how sure that is."""
    first, last = summary.first, summary.last
    if not first or not last or "eval/accuracy" not in first or "eval/accuracy" not in last:
        return "no verdict: there is no held-out evaluation before and after training"
    before, after = first["eval/accuracy"], last["eval/accuracy"]
    n_before, n_after = (int(m.get("eval/problems", 0)) for m in (first, last))
    if not n_before or not n_after:
        return f"held-out accuracy went from {100 * before:.1f} % to {100 * after:.1f} %"
    low, high = wilson_difference(before, n_before, after, n_after)
    change = (
        f"{100 * (after - before):+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    )
    if low > 0:
        return f"better: held-out accuracy changed by {change}"
    if high < 0:
        return f"worse: held-out accuracy changed by {change}"
    return f"undecided: held-out accuracy changed by {change}"


def summary_lines(summary: Summary) -> list[str]:
    """Write the outcome: a table before and after, the verdict, and where things lie."""
    rows = [("", "before", "after")]
    first, last = summary.first or {}, summary.last or {}
    if "eval/accuracy" in first and "eval/accuracy" in last:
        rows.append(("accuracy", accuracy_text(first), accuracy_text(last)))
    for label, key, scale, unit in (
        ("reward", "eval/reward", 1, ""),
        ("length", "eval/length", 1, " tokens"),
        ("cut off", "eval/truncated", 100, " %"),
    ):
        if key in first and key in last:
            before, after = (f"{scale * m[key]:.3g}{unit}" for m in (first, last))
            rows.append((label, before, after))
    lines = [f"{a:<10}{b:<22}{c}" for a, b, c in rows] if len(rows) > 1 else []
    ended = f"{summary.steps} steps in {duration(summary.seconds)}"
    if summary.stopped:
        ended += f", stopped by {summary.stopped}"
    lines += [verdict(summary), ended]
    plot = summary.run / "plots" / "run.png"
    if plot.exists():
        lines.append(f"plot        {plot}")
    if summary.checkpoint is not None:
        lines.append(f"checkpoint  {summary.checkpoint}")
    return [line.rstrip() for line in lines]
