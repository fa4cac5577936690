import io
import re

import pytest
from cli.fake_loop import HOSTILE, evaluation, fresh, metrics, samples
from rich.cells import cell_len
from rich.console import Console

from polopt.train.config import TrainConfig
from polopt.train.progress import LiveProgress, PlainProgress, mark, render, terminal_sink
from polopt.train.sinks import SampleView, Summary
from polopt.train.view import (
    History,
    clean,
    clean_end,
    duration,
    header,
    sparkline,
    summary_lines,
    verdict,
)


class Clock:
    """A clock that is told the time."""

    now = 0.0

    def __call__(self):
        return self.now


def play(sink, config, clock, seconds=1.0):
    sink.start(config, {"devices": 1, "device": "cpu", "resumed_from": 0})
    sink.evaluation(0, evaluation(0.27))
    sink.samples(0, samples(0.0))
    for step in range(1, config.steps + 1):
        clock.now += seconds
        progress = step / config.steps
        sink.step(step, metrics(step, progress))
        sink.samples(step, [fresh(step)])
        if step % config.eval_every == 0:
            sink.evaluation(step, evaluation(0.27 + 0.3 * progress))
            sink.samples(step, samples(progress))
    sink.finish(
        Summary(
            run=config.folder,
            steps=config.steps,
            seconds=clock.now,
            first=evaluation(0.27),
            last=evaluation(0.57),
        )
    )
    sink.close()


def plain(config, seconds=1.0):
    stream, clock = io.StringIO(), Clock()
    play(PlainProgress(stream, clock=clock), config, clock, seconds)
    return stream.getvalue().splitlines()


def drawn(width, height=40, steps=100, upto=None):
    config, clock = TrainConfig(steps=steps, run="r"), Clock()
    history = History(config, clock)
    history.add_evaluation(0, evaluation(0.27))
    history.add_samples(samples(0.0))
    for step in range(1, (steps if upto is None else upto) + 1):
        clock.now += 2.0
        history.add_step(step, metrics(step, step / steps))
    if upto is None:
        history.add_evaluation(steps, evaluation(0.57))
        history.add_samples(samples(1.0))
        history.add_samples([fresh(steps)])
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, height=height, force_terminal=True, color_system=None
    )
    console.print(render(history, width, height))
    return stream.getvalue().splitlines()


def test_plain_lines_fit_80_columns_and_do_not_flood():
    printed = plain(TrainConfig(steps=1000, eval_every=500, run="r"))
    assert max(cell_len(line) for line in printed[1:]) <= 80
    steps = [line for line in printed if re.match(r" *\d+/1000 ", line)]
    assert len(steps) == 21  # the first, and every twentieth of the run
    assert steps[0] == "   1/1000 reward 0.270 ent 0.900 kl 0.0002 tied 10% cut 2% len 3"
    assert "8:20 left" in next(line for line in steps if " 500/1000 " in line)
    assert "left" not in steps[-1]


def test_completions_are_printed_with_evaluations_only():
    printed = plain(TrainConfig(steps=40, eval_every=20, run="r"))
    assert sum(line.endswith("12 + 7 =") for line in printed) == 3  # before, at 20, at 40
    assert not any(" + 1 =" in line for line in printed)


def test_the_header_names_run_machine_and_resumption():
    config = TrainConfig(algorithm="x\x1b.py:f", data="d.jsonl", steps=7, run="r")
    info = {"devices": 8, "device": "TPU v5 lite", "resumed_from": 3}
    assert header(config, info) == (
        "polopt: x\ufffd.py:f on d.jsonl, 7 steps, resumed from step 3 on 8 TPU v5 lite -> r"
    )


def test_slow_steps_are_each_printed():
    printed = plain(TrainConfig(steps=100, eval_every=100, run="r"), seconds=61.0)
    assert sum("/100 " in line for line in printed) == 100


def test_the_start_explains_a_loss_near_zero_once():
    printed = plain(TrainConfig(steps=5, run="r"))
    assert sum("Loss near 0 is normal" in line for line in printed) == 1
    assert any("compiling" in line for line in printed)


def test_plain_text_carries_no_control_characters():
    text = "\n".join(plain(TrainConfig(steps=5, run="r")))
    assert "[bold]7[/bold]\ufffd[2J⏎8" in text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800]", text)


def test_a_stream_that_knows_only_ascii_gets_ascii():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    play(PlainProgress(stream, clock=Clock()), TrainConfig(steps=5, run="r"), Clock())
    assert b"\\u23ce" in raw.getvalue()


def test_events_before_the_start_are_a_mistake():
    with pytest.raises(RuntimeError, match="start comes before"):
        PlainProgress(io.StringIO()).step(1, {})


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_picture_fits_its_width(width):
    picture = drawn(width)
    assert max(cell_len(line) for line in picture) <= width
    text = "\n".join(picture)
    for words in (
        "100/100",
        "57.0 % [51, 63] @ 100",
        "27.0 % [22, 33] @ 0",
        "0.400",
        "equal-reward groups  30.0 %",
        "3,210",
        "right     19",
        "at first  [bold]7",
        "100 + 1 =",
    ):
        assert words in text, words
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800]", text)


def test_the_live_picture_fits_a_low_terminal():
    assert len(drawn(80, height=24)) <= 22
    assert len(drawn(80, height=12)) <= 12


def test_before_the_first_step_it_says_that_it_compiles():
    assert "compiling" in drawn(80, upto=0)[0]
    assert "compiling" not in "\n".join(drawn(80, upto=1))


def test_time_left_is_the_median_pace_times_what_is_left():
    assert "0:20, 3:00 left, 2 s/step" in drawn(80, upto=10)[0]


def test_the_live_display_draws_and_gives_the_cursor_back():
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, width=80, height=40, force_terminal=True)
    play(LiveProgress(console, clock=clock), TrainConfig(steps=5, eval_every=5, run="r"), clock)
    text = stream.getvalue()
    assert text.index("\x1b[?25l") < text.rindex("5/5") < text.rindex("\x1b[?25h")
    assert "\x1b[2J" not in text
    assert "better: held-out accuracy" in text


def test_closing_twice_or_before_the_start_is_fine():
    sink = LiveProgress(Console(file=io.StringIO(), force_terminal=True))
    sink.close()
    sink.close()


def test_anything_but_a_terminal_gets_lines():
    assert isinstance(terminal_sink(io.StringIO()), PlainProgress)


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("", 3, ""),
        ("a\r\nb\tc", None, "a⏎b c"),
    ],
)
def test_clean_counts_columns(text, width, shown):
    assert clean(text, width) == shown


@pytest.mark.parametrize("width", range(1, 30))
def test_cleaned_text_is_never_too_wide(width):
    for text in (HOSTILE, "e" + "\u0301" * 200 + "x" * 50, "日" * 99):
        for cut in (clean(text, width), clean_end(text, width)):
            assert cell_len(cut) <= width


def test_clean_end_keeps_the_end():
    assert clean_end("What is 12 + 7?", 8) == "…12 + 7?"
    assert clean_end("12 + 7?", 8) == "12 + 7?"


def test_a_sparkline_averages_and_scales():
    assert sparkline([0, 7], 10) == "▁█"
    assert sparkline([0, 0, 7, 7, 3, 4], 3) == "▁█▅"
    assert sparkline([2, 2], 2) == "▁▁"
    assert sparkline([], 5) == ""
    assert len(sparkline(range(1000), 60)) == 60


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("after", "word", "change"),
    [
        (0.57, "better", "+30.1 points"),
        (0.28, "undecided", "+1.2 points"),
        (0.1, "worse", "-16.8 points"),
    ],
)
def test_the_verdict_follows_the_interval_of_the_change(after, word, change):
    summary = Summary(
        run=TrainConfig().folder,
        steps=9,
        seconds=1.0,
        first=evaluation(0.27),
        last=evaluation(after),
    )
    assert verdict(summary).startswith(f"{word}: ")
    assert change in verdict(summary)


def test_without_evaluations_there_is_no_verdict(tmp_path):
    printed = summary_lines(Summary(run=tmp_path, steps=9, seconds=61.0, stopped="SIGTERM"))
    assert printed[0].startswith("no verdict")
    assert printed[1] == "9 steps in 1:01, stopped by SIGTERM"


def test_the_summary_says_where_things_are(tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "run.png").touch()
    printed = summary_lines(
        Summary(
            run=tmp_path,
            steps=9,
            seconds=1.0,
            first=evaluation(0.27),
            last=evaluation(0.57),
            checkpoint=tmp_path / "c" / "9",
        )
    )
    assert printed[0].split() == ["before", "after"]
    assert printed[1].split("  ")[0] == "accuracy"
    assert f"plot        {tmp_path / 'plots' / 'run.png'}" in printed
    assert f"checkpoint  {tmp_path / 'c' / '9'}" in printed


def test_a_completion_without_verdict_shows_its_reward():
    view = SampleView(prompt="p", completion="c", answer="a", reward=0.25, stop="EOS")
    assert mark(view) == "0.25"


def test_the_best_evaluation_is_the_earliest_of_equals():
    history = History(TrainConfig())
    for step, accuracy in ((0, 0.25), (1, 0.5), (2, 0.5), (3, float("nan"))):
        history.add_evaluation(step, {"eval/accuracy": accuracy})
    assert history.best == (1, {"eval/accuracy": 0.5})
