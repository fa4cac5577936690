"""The folder that a run leaves behind, and the names of what is measured.

config.json     the configuration that reproduces the run
info.json       versions, devices and the schema's number, of the last start
metrics.jsonl   one object per step, flat keys of `SCHEMA`, step rising
rollouts/       samples.jsonl: completions to look at
checkpoints/    written by the loop
plots/          run.png
"""

import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from polopt.errors import PoloptError, did_you_mean
from polopt.train.config import TrainConfig, resume_conflicts, to_json
from polopt.train.sft_config import SftConfig, read_run
from polopt.train.sinks import SampleView, Summary

SCHEMA_VERSION = 1

SCHEMA: dict[str, tuple[str, str]] = {
    "reward/mean": ("reward", "mean reward of the rollout's scored completions"),
    "reward/std": ("reward", "standard deviation of the same"),
    "reward/unscored": ("fraction", "completions for which the reward abstained or failed"),
    "eval/accuracy": ("fraction", "held-out problems answered correctly"),
    "eval/accuracy_low": ("fraction", "lower end of its 95 % Wilson interval"),
    "eval/accuracy_high": ("fraction", "upper end of the same"),
    "eval/problems": ("count", "held-out problems evaluated"),
    "eval/reward": ("reward", "mean held-out reward"),
    "eval/length": ("tokens", "mean held-out completion length"),
    "eval/truncated": ("fraction", "held-out completions cut at the length limit"),
    "supervised/loss": (
        "nats/token",
        "mean −log p of the tokens that are learned",
    ),
    "supervised/tokens": ("count", "tokens of the step that are learned"),
    "policy/loss": ("loss", "value of the loss; on-policy near 0 by construction"),
    "policy/entropy": ("nats/token", "mean entropy of the next-token distribution"),
    "policy/kl": ("nats/token", "estimate of KL from the rollout's policy to the current one"),
    "policy/kl_ref": ("nats/token", "estimate of KL from the current policy to the reference"),
    "policy/clip_fraction": ("fraction", "tokens whose ratio was clipped"),
    "policy/clip_low": ("fraction", "tokens clipped at the lower bound"),
    "policy/clip_high": ("fraction", "tokens clipped at the upper bound"),
    "policy/ratio_max": ("ratio", "largest ratio of the step"),
    "groups/zero_spread": ("fraction", "groups whose rewards are all equal: no gradient"),
    "groups/solved": ("fraction", "groups in which every completion is right"),
    "groups/unsolved": ("fraction", "groups in which none is right"),
    "groups/refills": ("count", "extra sampling rounds to replace filtered groups"),
    "rollout/length": ("tokens", "mean completion length"),
    "rollout/length_max": ("tokens", "longest completion"),
    "rollout/truncated": ("fraction", "completions cut at the length limit"),
    "rollout/tokens": ("count", "completion tokens sampled"),
    "rollout/turns": ("count", "mean number of turns of a completion"),
    "rollout/tool_errors": ("fraction", "completions that a tool ended"),
    "rollout/staleness": ("steps", "that the weights which drew lie behind those that learn"),
    "rollout/logp_gap": ("nats", "mean |sampler's - trainer's log-probability| per token"),
    "rollout/logp_gap_max": ("nats", "largest such gap"),
    "router/entropy": ("nats", "mean entropy of the routers of a policy with experts"),
    "router/max_load": ("ratio", "tokens of its busiest expert over an even share"),
    "router/unused": ("fraction", "its experts that no token was sent to; of up to 32 rows"),
    "update/grad_norm": ("norm", "global gradient norm before clipping"),
    "update/param_change": ("ratio", "norm of the update over norm of the parameters"),
    "update/learning_rate": ("rate", "learning rate of the last optimiser step"),
    "update/skipped": ("count", "optimiser steps skipped for non-finite gradients so far"),
    "time/sample": ("seconds", "sampling the rollout"),
    "time/reward": ("seconds", "verifying completions"),
    "time/handover": ("seconds", "copying weights to the devices that sample"),
    "time/wait": ("seconds", "from the step's begin to its rollout: 0 if it was drawn ahead"),
    "time/score": ("seconds", "scoring under the models that the method needs"),
    "time/update": ("seconds", "preparing credit and all optimiser steps"),
    "time/eval": ("seconds", "held-out evaluation"),
    "time/step": ("seconds", "the whole step"),
    "time/tokens_per_second": ("tokens/s", "completion tokens over the whole step's time"),
}
"""Every metric of schema 1: key -> (unit, meaning)."""

PREFIXES: dict[str, str] = {
    "reward/part/": "mean of one named component of the reward",
    "eval/pass_at_": "pass@k on held-out problems",
    "method/": "what the method's pieces report",
    "user/": "your own metrics",
}
"""Keys outside `SCHEMA` are accepted under these prefixes."""


def unknown_keys(metrics: Iterable[str]) -> list[str]:
    """Return the keys that are neither in `SCHEMA` nor under one of `PREFIXES`."""
    return [k for k in metrics if k not in SCHEMA and not k.startswith(tuple(PREFIXES))]


class JsonLines:
    """A file of JSON objects, one a line; a line is in the file when `append` returns."""

    def __init__(self, path: Path) -> None:
        """Open `path` at its end; creates it."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._file: IO[bytes] = os.fdopen(handle, "r+b", buffering=0)
        self._start = self._end = self._file.seek(0, os.SEEK_END)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one more line; a failed write (a full disk) leaves no part of it."""
        self._start = self._end
        self._write(row)

    def replace_last(self, row: Mapping[str, Any]) -> None:
        """Write `row` over the line written last."""
        self._write(row)

    def _write(self, row: Mapping[str, Any]) -> None:
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        self._file.seek(self._start)
        written = 0
        try:
            while written < len(line):
                written += self._file.write(line[written:])
        except OSError:
            self._file.truncate(self._start)
            self._end = self._start
            raise
        self._end = self._start + len(line)
        self._file.truncate(self._end)

    def keep(self, last_step: int) -> dict[str, Any] | None:
        """Drop the lines after `last_step`, and a broken last one; return the last that stays."""
        self._file.seek(0)
        self._start = self._end = 0
        last = None
        for line in self._file.read().splitlines(keepends=True):
            row = _read_row(line)
            if row is None or row["step"] > last_step:
                break
            last, self._start, self._end = row, self._end, self._end + len(line)
        self._file.truncate(self._end)
        return last

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Record:
    """The run folder, held open by one process; the sink that writes metrics and samples.

    Made by `open_record`. `resumed` says that the folder already held this run; then call
    `resume_at` before the first event, with the step of the checkpoint (-1 if there is none).
    """

    def __init__(self, path: Path, lock: IO[str], *, resumed: bool) -> None:
        """Take a folder whose lock is held and whose configuration is written."""
        self.path = path
        self.resumed = resumed
        self.checkpoints = path / "checkpoints"
        self.rollouts = path / "rollouts"
        self.plots = path / "plots"
        for folder in (self.checkpoints, self.rollouts, self.plots):
            folder.mkdir(exist_ok=True)
        self._lock = lock
        self._metrics = JsonLines(path / "metrics.jsonl")
        self._samples = JsonLines(self.rollouts / "samples.jsonl")
        self._row: dict[str, Any] | None = None
        self._warned: set[str] = set()

    def resume_at(self, step: int) -> None:
        """Forget every line after `step`, so that the files equal undisturbed ones."""
        self._row = self._metrics.keep(step)
        self._samples.keep(step)

    def start(self, config: TrainConfig | SftConfig, info: Mapping[str, Any]) -> None:
        """Write info.json."""
        text = json.dumps({"schema": SCHEMA_VERSION, **info}, indent=2, default=str)
        _write_whole(self.path / "info.json", text + "\n")

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a step's metrics; with an evaluation of the same step they are one line."""
        for key in unknown_keys(metrics):
            if key not in self._warned:
                self._warned.add(key)
                warnings.warn(
                    f"metric {key!r} is not recorded: no such key in the schema"
                    f"{did_you_mean(key, SCHEMA)}; your own keys start with 'user/'",
                    RuntimeWarning,
                    stacklevel=2,
                )
        row = {k: _number(v) for k, v in metrics.items() if not unknown_keys([k])}
        last = self._row or {"step": -1}
        if step < last["step"]:
            raise ValueError(f"step {step} comes after step {last['step']} in {self.path}")
        self._row = {"step": step} | (last if step == last["step"] else {}) | row
        if step == last["step"]:
            self._metrics.replace_last(self._row)
        else:
            self._metrics.append(self._row)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write an evaluation into its step's line."""
        self.step(step, metrics)

    def samples(self, step: int, samples: Sequence[SampleView]) -> None:
        """Write completions into rollouts/samples.jsonl."""
        for sample in samples:
            self._samples.append({"step": step, **asdict(sample), "reward": _number(sample.reward)})

    def finish(self, summary: Summary) -> None:
        """Do nothing: every line is written already."""

    def close(self) -> None:
        """Close the files and let go of the folder."""
        for file in (self._metrics, self._samples, self._lock):
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_record(config: TrainConfig | SftConfig) -> Record:
    """Create the folder of a run, or take up the run in it if ``config.resume``.

    `config` is resolved: what the method and the task decide is filled in. Raises `PoloptError`
    if the folder holds a run and `resume` is off, holds another configuration, holds something
    else, or is held by another process. A lock left by a dead process is no obstacle.
    """
    path = config.folder
    saved = path / "config.json"
    try:
        path.mkdir(parents=True, exist_ok=True)
        strangers = sorted(p.name for p in path.iterdir() if p.name not in _OWN)
        if strangers and not saved.exists():
            raise PoloptError(
                f"{path} is not empty and holds no run ({strangers[0]}): choose another folder"
            )
        lock = _lock(path)
    except OSError as error:
        raise PoloptError(f"cannot use {path} as a run's folder: {error.strerror}") from error
    try:
        resumed = saved.exists() and _began(path)
        if resumed:
            _check_same_run(config, path)
        _write_whole(saved, to_json(replace(config, run=str(path), resume=False)))
        return Record(path, lock, resumed=resumed)
    except BaseException:
        lock.close()
        raise


_OWN = (".lock", "config.json.partial")  # what a start that was killed at once leaves


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """Read a run's metrics, one dictionary per step; a half-written last line is left out."""
    file = Path(run) / "metrics.jsonl"
    try:
        lines = file.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise PoloptError(f"cannot read {file}: {error.strerror}") from error
    rows = [_read_row(line) for line in lines]
    if None in rows[:-1]:
        raise PoloptError(f"{file}: line {rows.index(None) + 1} is not a step's JSON object")
    return [row for row in rows if row is not None]


def _began(path: Path) -> bool:
    """Whether anything was recorded: a start that failed at once is no run."""
    metrics = path / "metrics.jsonl"
    return (metrics.exists() and metrics.stat().st_size > 0) or any(path.glob("checkpoints/*"))


def _check_same_run(config: TrainConfig | SftConfig, path: Path) -> None:
    if not config.resume:
        raise PoloptError(
            f"{path} already holds a run: continue it with --resume or choose "
            "another folder with --run"
        )
    conflicts = resume_conflicts(read_run(path), config)
    if conflicts:
        raise PoloptError(f"{path} holds a run of another configuration: " + "; ".join(conflicts))


def _lock(path: Path) -> IO[str]:
    """Hold the folder until the file is closed; the kernel lets go for a process that died."""
    import fcntl

    file = open(path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 - held open on purpose
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise PoloptError(f"{path} is in use by another process (pid {holder})") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that readers see the old one or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _read_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _number(value: Any) -> int | float | None:
    """Return a JSON number; what is not finite has none, and becomes null."""
    number = value if type(value) is int else float(value)
    return number if math.isfinite(number) else None
