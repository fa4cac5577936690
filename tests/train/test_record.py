import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from polopt.errors import PoloptError
from polopt.train.config import TrainConfig, read_config
from polopt.train.record import PREFIXES, SCHEMA, open_record, read_metrics, unknown_keys
from polopt.train.sinks import Fanout, SampleView, Summary


@pytest.fixture
def config(tmp_path):
    return TrainConfig(run=str(tmp_path / "run"))


def resumed(config):
    return TrainConfig(run=config.run, resume=True)


def strict(line):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)


def lines(config):
    return [strict(x) for x in (config.folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_is_one_object_per_step(config):
    with open_record(config) as record:
        record.start(config, {"devices": "1 CPU device"})
        record.evaluation(0, {"eval/accuracy": 0.25})
        record.step(1, {"reward/mean": 0.5})
        record.step(2, {"reward/mean": 0.75})
        record.evaluation(2, {"eval/accuracy": 0.5})
        record.step(3, {"reward/mean": 1.0})
    assert lines(config) == [
        {"step": 0, "eval/accuracy": 0.25},
        {"step": 1, "reward/mean": 0.5},
        {"step": 2, "reward/mean": 0.75, "eval/accuracy": 0.5},
        {"step": 3, "reward/mean": 1.0},
    ]
    assert read_metrics(config.folder) == lines(config)
    assert read_config(config.folder) == config
    assert strict((config.folder / "info.json").read_text())["schema"] == 1
    assert {p.name for p in config.folder.iterdir() if p.is_dir()} == {
        "rollouts",
        "checkpoints",
        "plots",
    }


def test_a_line_is_in_the_file_at_once(config):
    with open_record(config) as record:
        record.step(1, {"reward/mean": 0.5})
        assert lines(config) == [{"step": 1, "reward/mean": 0.5}]


def test_what_is_not_finite_becomes_null_and_arrays_become_numbers(config):
    with open_record(config) as record:
        record.step(
            1,
            {
                "reward/mean": float("nan"),
                "policy/kl": -np.inf,
                "policy/entropy": jnp.float32(0.5),
                "eval/problems": 256,
                "rollout/tokens": np.int64(7),
            },
        )
    assert lines(config) == [
        {
            "step": 1,
            "reward/mean": None,
            "policy/kl": None,
            "policy/entropy": 0.5,
            "eval/problems": 256,
            "rollout/tokens": 7,
        }
    ]


def test_steps_do_not_go_back(config):
    with open_record(config) as record:
        record.step(2, {"reward/mean": 1.0})
        with pytest.raises(ValueError, match="step 1 comes after step 2"):
            record.step(1, {"reward/mean": 1.0})
    assert [row["step"] for row in lines(config)] == [2]


def test_a_key_outside_the_schema_is_named_once_and_left_out(config):
    with open_record(config) as record:
        with pytest.warns(RuntimeWarning, match="'reward/men'.*did you mean 'reward/mean'"):
            record.step(1, {"reward/men": 1.0, "reward/mean": 0.5, "user/mine": 2.0})
        record.step(2, {"reward/men": 1.0})
    assert lines(config) == [{"step": 1, "reward/mean": 0.5, "user/mine": 2.0}, {"step": 2}]


def test_the_schema_gives_every_key_a_unit_and_a_meaning():
    assert all(unit and meaning for unit, meaning in SCHEMA.values())
    assert all(key.count("/") == 1 for key in SCHEMA)
    assert unknown_keys([*SCHEMA, *(prefix + "x" for prefix in PREFIXES)]) == []
    assert unknown_keys(["x", "rewards/mean"]) == ["x", "rewards/mean"]


def test_completions_of_any_kind_are_kept_as_they_are(config):
    text = '\ud800 \x00 \u202e 👨‍👩‍👧 "\n'
    view = SampleView(prompt=text, completion=text, answer="1", reward=float("nan"), stop="EOS")
    with open_record(config) as record:
        record.samples(3, [view, view])
    rows = [
        strict(x)
        for x in (config.folder / "rollouts" / "samples.jsonl").read_text("utf-8").splitlines()
    ]
    assert [row["completion"] for row in rows] == [text, text]
    assert rows[0]["step"] == 3
    assert rows[0]["reward"] is None


def begin(config):
    with open_record(config) as record:
        record.step(0, {"reward/mean": 0.5})


def test_a_start_that_failed_at_once_is_no_run(config):
    open_record(config).close()
    with open_record(config) as record:
        assert not record.resumed


def test_a_folder_that_holds_a_run_is_refused(config):
    begin(config)
    with pytest.raises(PoloptError, match=r"already holds a run.*--resume"):
        open_record(config)


def test_a_folder_that_holds_something_else_is_left_alone(config):
    config.folder.mkdir()
    (config.folder / "thesis.tex").touch()
    with pytest.raises(PoloptError, match="not empty and holds no run"):
        open_record(resumed(config))
    assert [p.name for p in config.folder.iterdir()] == ["thesis.tex"]


def test_resuming_another_configuration_is_refused_field_by_field(config):
    begin(config)
    other = TrainConfig(run=config.run, resume=True, prompts=8, algorithm="rloo")
    with pytest.raises(PoloptError) as error:
        open_record(other)
    assert "algorithm is 'grpo' in the run and 'rloo' now" in str(error.value)
    assert "prompts is None in the run and 8 now" in str(error.value)
    open_record(resumed(config)).close()  # the refusal let go of the folder


def test_resume_starts_a_run_where_there_is_none(config):
    with open_record(resumed(config)) as record:
        assert not record.resumed
    assert read_config(config.folder) == config


def write(record, steps):
    for step in steps:
        record.step(step, {"reward/mean": step / 7})
        if step % 2 == 0:
            record.evaluation(step, {"eval/accuracy": step / 11})
            record.samples(
                step,
                [SampleView(prompt="p", completion=str(step), answer="1", reward=1.0, stop="EOS")],
            )


@pytest.mark.parametrize("at", [-1, 0, 2, 3])
def test_a_resumed_record_equals_an_undisturbed_one(tmp_path, at):
    straight, broken = (TrainConfig(run=str(tmp_path / name)) for name in ("a", "b"))
    with open_record(straight) as record:
        write(record, range(6))
    with open_record(broken) as record:
        write(record, range(5))
    with open(broken.folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "reward/me')  # the process died while it wrote
    with open_record(resumed(broken)) as record:
        assert record.resumed
        record.resume_at(at)
        write(record, range(at + 1, 6))
    for name in ("metrics.jsonl", "rollouts/samples.jsonl"):
        assert (broken.folder / name).read_bytes() == (straight.folder / name).read_bytes()


def test_an_evaluation_made_again_after_resume_replaces_itself(config):
    with open_record(config) as record:
        write(record, range(3))
    before = (config.folder / "metrics.jsonl").read_bytes()
    with open_record(resumed(config)) as record:
        record.resume_at(2)
        record.evaluation(2, {"eval/accuracy": 2 / 11})
    assert (config.folder / "metrics.jsonl").read_bytes() == before


def test_a_half_written_last_line_is_not_read_and_a_broken_one_before_is_an_error(config):
    with open_record(config) as record:
        write(record, range(2))
    file = config.folder / "metrics.jsonl"
    file.write_bytes(file.read_bytes() + b'{"step": 2')
    assert [row["step"] for row in read_metrics(config.folder)] == [0, 1]
    file.write_bytes(b"\x00\n" + file.read_bytes())
    with pytest.raises(PoloptError, match="line 1"):
        read_metrics(config.folder)


def test_a_second_record_in_this_process_is_refused(config):
    with open_record(config), pytest.raises(PoloptError, match=f"pid {os.getpid()}"):
        open_record(resumed(config))


def child(code, *args):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_a_living_process_holds_the_folder_and_a_dead_one_does_not(config):
    process = child(
        """
        import sys, time
        from polopt.train.config import TrainConfig
        from polopt.train.record import open_record
        record = open_record(TrainConfig(run=sys.argv[1]))
        record.step(0, {"reward/mean": 0.5})
        print("held", flush=True)
        time.sleep(60)
    """,
        config.run,
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(PoloptError, match=rf"in use by another process \(pid {process.pid}\)"):
            open_record(resumed(config))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert (config.folder / ".lock").read_text() == f"{process.pid}\n"
    with open_record(resumed(config)) as record:
        assert record.resumed


def test_a_full_disk_stops_the_file_and_not_the_run(config):
    process = child(
        """
        import resource, signal, sys, warnings
        from polopt.train.config import TrainConfig
        from polopt.train.record import open_record
        from polopt.train.sinks import Fanout
        with open_record(TrainConfig(run=sys.argv[1])) as record:
            sink = Fanout([record])
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for step in range(1, 10):
                    sink.step(step, {"reward/mean": 0.5})
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            sink.step(10, {"reward/mean": 0.5})
        print(len(caught), caught[0].message)
    """,
        config.run,
    )
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.startswith("1 Record failed at step and training goes on: OSError")
    steps = [row["step"] for row in lines(config)]
    assert steps == [1, 2, 3, 10]  # three lines of 32 bytes fit; nothing is left of the fourth


class Broken:
    """A sink that fails at everything."""

    def __getattr__(self, name):
        raise OSError("the logger is gone")


def test_a_failing_sink_warns_once_and_the_others_go_on(config):
    with open_record(config) as record:
        sink = Fanout([Broken(), record])
        with pytest.warns(RuntimeWarning, match="Broken failed at start.*the logger is gone"):
            sink.start(config, {})
        sink.step(1, {"reward/mean": 1.0})
        sink.evaluation(1, {"eval/accuracy": 1.0})
        sink.samples(1, [])
        sink.finish(Summary(run=config.folder, steps=1, seconds=0.0))
        sink.close()
    assert lines(config) == [{"step": 1, "reward/mean": 1.0, "eval/accuracy": 1.0}]


def test_an_interrupt_is_not_swallowed(config):
    class Interrupted:
        def step(self, step, metrics):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Fanout([Interrupted()]).step(1, {})
