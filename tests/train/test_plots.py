import struct

import numpy as np
import pytest
from cli.fake_loop import evaluation, metrics

from polopt.errors import PoloptError
from polopt.train import plots
from polopt.train.config import TrainConfig
from polopt.train.plots import PlotSink, compare_runs, plot_run, spread
from polopt.train.record import open_record
from polopt.train.sinks import Summary


def make_run(path, steps=40, **changes):
    config = TrainConfig(run=str(path), **changes)
    with open_record(config) as record:
        record.evaluation(0, evaluation(0.27))
        for step in range(1, steps + 1):
            record.step(
                step,
                metrics(step, step / steps)
                | ({"update/grad_norm": float("nan")} if step == 3 else {}),
            )
        record.evaluation(steps, evaluation(0.5))
    return config


def size(path):
    """Read width and height from a PNG's header."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def pixels(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]


def has_colour(image, colour):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return bool((np.abs(image - rgb).max(axis=-1) < 0.02).any())


def test_a_run_is_drawn_into_its_folder(tmp_path):
    config = make_run(tmp_path / "run", algorithm="my$file$.py:a_b")
    path = plot_run(config.folder)
    assert path == config.folder / "plots" / "run.png"
    assert size(path) == (1440, 768)
    image = pixels(path)
    assert all(has_colour(image, c) for c in (plots.BLUE, plots.ORANGE, plots.RED, plots.GREEN))
    assert [p.name for p in path.parent.iterdir()] == ["run.png"]


def test_a_run_without_evaluations_is_drawn_too(tmp_path):
    config = TrainConfig(run=str(tmp_path))
    with open_record(config) as record:
        record.step(1, {"reward/mean": 0.5})
    assert size(plot_run(tmp_path, tmp_path / "elsewhere.png")) == (1440, 768)


def test_a_run_without_metrics_is_refused(tmp_path):
    open_record(TrainConfig(run=str(tmp_path / "run"))).close()
    with pytest.raises(PoloptError, match="no metrics yet"):
        plot_run(tmp_path / "run")


def test_the_sink_draws_at_the_end_and_when_the_picture_is_old(tmp_path):
    config = make_run(tmp_path / "run", steps=3)
    now = [0.0]
    sink = PlotSink(patience=10, clock=lambda: now[0])
    sink.start(config, {})
    picture = config.folder / "plots" / "run.png"
    sink.evaluation(1, {})
    assert not picture.exists()
    now[0] = 11.0
    sink.evaluation(2, {})
    assert picture.exists()
    picture.unlink()
    sink.finish(Summary(run=config.folder, steps=3, seconds=1.0))
    assert picture.exists()


def test_spread_is_median_and_range_over_the_seeds_that_have_the_step():
    runs = [
        [{"step": 0, "x": 1.0}, {"step": 1, "x": 5.0}],
        [{"step": 0, "x": 2.0}, {"step": 1, "x": None}],
        [{"step": 0, "x": 9.0}, {"step": 2, "y": 0.0}],
    ]
    assert spread(runs, "x") == ([0, 1], [2.0, 5.0], [1.0, 5.0], [9.0, 5.0])


def test_runs_are_compared(tmp_path):
    folders = [make_run(tmp_path / str(i), seed=i).folder for i in range(2)]
    path = compare_runs(
        {"one": folders[:1], "two": folders},
        tmp_path / "out" / "compare.png",
        keys=("reward/mean", "eval/accuracy", "user/absent"),
    )
    image = pixels(path)
    assert has_colour(image, plots.BLUE)
    assert has_colour(image, plots.ORANGE)


def test_nothing_to_compare_is_refused(tmp_path):
    with pytest.raises(PoloptError, match="at least one run"):
        compare_runs({"one": []}, tmp_path / "x.png")
