"""What a person sees while a run goes on: a live display in a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from polopt.errors import missing_extra
from polopt.train import view
from polopt.train.config import TrainConfig
from polopt.train.sinks import SampleView, Sink, Summary
from polopt.train.view import History

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_COMPILING = "compiling the sampler and the update, once ..."


def terminal_sink(stream: TextIO | None = None) -> Sink:
    """Return the live display for a terminal, and plain lines for anything else."""
    out: TextIO = sys.stdout if stream is None else stream
    encoding = (getattr(out, "encoding", None) or "ascii").lower().replace("-", "")
    if not out.isatty() or encoding != "utf8":
        return PlainProgress(out)
    try:
        from rich.console import Console
    except ModuleNotFoundError as error:
        raise missing_extra("rich", "the live display") from error
    console = Console(file=out)
    return PlainProgress(out) if console.is_dumb_terminal else LiveProgress(console)


class PlainProgress:
    """Prints about twenty lines in all, for logs and notebooks.

    A line is due every twentieth of the run, and when `patience` seconds have passed since
    the last one.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        patience: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Print to `stream`, standard output unless given."""
        self._stream = sys.stdout if stream is None else stream
        self._patience = patience
        self._clock = clock
        self._history: History | None = None
        self._spoke = clock()

    def _print(self, line: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        safe = line.encode(encoding, "backslashreplace").decode(encoding)
        print(safe, file=self._stream, flush=True)

    def start(self, config: TrainConfig, info: Mapping[str, Any]) -> None:
        """Say what runs."""
        self._history = History(config, self._clock)
        for line in (view.header(config, info), view.LOSS_NOTE, view.LEGEND, _COMPILING):
            self._print(line)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print a line when one is due."""
        history = self._need_history()
        first = not history.latest
        history.add_step(step, metrics)
        every = max(1, history.config.steps // 20)
        late = self._clock() - self._spoke >= self._patience
        if first or late or step % every == 0 or step == history.config.steps:
            self._print(view.step_line(history))
            self._spoke = self._clock()

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print every evaluation."""
        history = self._need_history()
        known = len(history.evaluations)
        history.add_evaluation(step, metrics)
        if len(history.evaluations) > known:
            self._print(view.evaluation_line(history))

    def samples(self, step: int, samples: Sequence[SampleView]) -> None:
        """Print a completion of a prompt that was there at first, to see it change."""
        history = self._need_history()
        history.add_samples(samples)
        for sample in [s for s in samples if s.prompt in history.tracked][:1]:
            self._print(f"  {view.clean_end(sample.prompt, 76)}")
            self._print(f"  {mark(sample)} {view.clean(sample.completion, 68)}")

    def finish(self, summary: Summary) -> None:
        """Print the outcome."""
        for line in view.summary_lines(summary):
            self._print(line)

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def _need_history(self) -> History:
        if self._history is None:
            raise RuntimeError("start comes before every other event")
        return self._history


class LiveProgress:
    """A display that stays in place: bar, numbers, curves, completions. Needs rich."""

    def __init__(self, console: "Console", *, clock: Callable[[], float] = time.monotonic) -> None:
        """Draw on `console`."""
        from rich.live import Live

        self._console = console
        self._clock = clock
        self._history: History | None = None
        self._live = Live(
            console=console,
            get_renderable=self._draw,
            refresh_per_second=4,
            transient=False,
            vertical_overflow="crop",
        )

    def start(self, config: TrainConfig, info: Mapping[str, Any]) -> None:
        """Say what runs and begin to draw."""
        from rich.text import Text

        self._console.print(Text(view.header(config, info), style="bold"))
        self._console.print(Text(view.LOSS_NOTE, style="dim"))
        self._history = History(config, self._clock)
        self._live.start()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the step."""
        if self._history is not None:
            self._history.add_step(step, metrics)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the evaluation."""
        if self._history is not None:
            self._history.add_evaluation(step, metrics)

    def samples(self, step: int, samples: Sequence[SampleView]) -> None:
        """Show the completions."""
        if self._history is not None:
            self._history.add_samples(samples)

    def finish(self, summary: Summary) -> None:
        """Leave the last picture and print the outcome below."""
        from rich.text import Text

        self.close()
        self._console.print()
        for line in view.summary_lines(summary):
            self._console.print(Text(line), soft_wrap=True)

    def close(self) -> None:
        """Stop drawing and give the cursor back."""
        self._live.stop()

    def _draw(self) -> "RenderableType":
        if self._history is None:
            return ""
        return render(self._history, self._console.width, self._console.height)


def mark(sample: SampleView) -> str:
    """Write right, wrong, or the reward where only that is known."""
    if sample.correct is None:
        return f"{sample.reward:.2f}"
    return "right" if sample.correct else "wrong"


def render(history: History, width: int, height: int = 40) -> "RenderableType":
    """Draw a run: bar, numbers, curves and as many completions as `height` leaves room for."""
    from rich.console import Group
    from rich.text import Text

    parts = [_bar(history, width), _numbers(history)]
    curve = width - 14
    if len(history.rewards) > 1:
        parts.append(Text(f"  reward    {view.sparkline(history.rewards, curve)}", style="cyan"))
    if len(history.evaluations) > 1:
        accuracies = [m["eval/accuracy"] for _, m in history.evaluations]
        parts.append(Text(f"  accuracy  {view.sparkline(accuracies, curve)}", style="green"))
    room = max(0, (height - 14) // 3)
    shown = [*history.tracked.values(), *([(history.fresh,) * 2] if history.fresh else [])][:room]
    if shown:
        parts.append(Text())
    for first, last in shown:
        parts.append(_sample(first, last, width))
    return Group(*parts)


def _bar(history: History, width: int) -> "RenderableType":
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    total, done = history.config.steps, history.done
    pace = history.seconds_per_step
    if not history.latest:
        after = f"{_COMPILING} {view.duration(history.elapsed)}"
    elif pace is None or done == total:
        after = view.duration(history.elapsed)
    else:
        left = view.duration(pace * (total - done))
        after = f"{view.duration(history.elapsed)}, {left} left, {pace:.2g} s/step"
    row = Table.grid(padding=(0, 1))
    room = max(8, width - len(after) - 2 * len(str(total)) - 6)
    row.add_row(
        Text(f"  {done}/{total}"), ProgressBar(total=total, completed=done, width=room), Text(after)
    )
    return row


def _numbers(history: History) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    m = history.latest
    best = history.best
    first = history.evaluations[0] if history.evaluations else None
    last = history.evaluations[-1] if history.evaluations else None

    def at(evaluation: tuple[int, dict[str, float]] | None) -> str:
        if evaluation is None:
            return "-"
        return f"{view.accuracy_text(evaluation[1])} @ {evaluation[0]}"

    left = [
        ("reward", view.number(m, "reward/mean")),
        ("accuracy, last", at(last)),
        ("  at first", at(first)),
        ("  best", at(best)),
        ("equal-reward groups", view.number(m, "groups/zero_spread")),
        ("cut off", view.number(m, "rollout/truncated")),
    ]
    right = [
        ("entropy", view.number(m, "policy/entropy")),
        ("KL to reference" if "policy/kl_ref" in m else "KL", view.number(m, view.kl_key(m))),
        ("clipped", view.number(m, "policy/clip_fraction")),
        ("gradient norm", view.number(m, "update/grad_norm")),
        ("length", view.number(m, "rollout/length")),
        ("tokens/s", view.number(m, "time/tokens_per_second")),
    ]
    table = Table.grid(padding=(0, 2))
    for style in ("dim", "bold", "dim", "bold"):
        table.add_column(style=style, no_wrap=True)
    for (a, b), (c, d) in zip(left, right, strict=True):
        table.add_row(Text("  " + a), Text(b), Text(c), Text(d))
    return table


def _sample(first: SampleView, sample: SampleView, width: int) -> "RenderableType":
    """Draw a completion, and the first one of the same prompt where it was another."""
    from rich.text import Text

    style = {True: "green", False: "red", None: "yellow"}[sample.correct]
    room = width - 12
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"  prompt    {view.clean_end(sample.prompt, room)}\n", style="dim")
    if first.completion != sample.completion:
        text.append(f"  at first  {view.clean(first.completion, room)}\n", style="dim")
    answer = f"  (answer {view.clean(sample.answer, 20)}, {sample.stop})"
    completion = view.clean(sample.completion, max(10, room - len(answer))) or "(empty)"
    text.append(f"  {mark(sample):<9} ", style=style)
    text.append(completion)
    text.append(answer, style="dim")
    return text
