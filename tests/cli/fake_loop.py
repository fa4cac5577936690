"""A training loop without a model: it tells a made-up run to its sinks.

As a script it is ``polopt train`` with this loop; FAKE_DELAY sets the seconds per step.
"""

import math
import os
import sys
import time
from pathlib import Path

from polopt.train.config import TrainConfig
from polopt.train.intervals import wilson
from polopt.train.record import open_record
from polopt.train.sinks import Fanout, SampleView, Summary
from polopt.train.stop import stop_on_signals

HOSTILE = "[bold]7[/bold]\x1b[2J\r\n8\u202e \ud800 " + "日本" * 60


def evaluation(accuracy, problems=256):
    low, high = wilson(round(accuracy * problems), problems)
    return {
        "eval/accuracy": round(accuracy * problems) / problems,
        "eval/accuracy_low": low,
        "eval/accuracy_high": high,
        "eval/problems": problems,
        "eval/reward": accuracy,
        "eval/length": 3 + 10 * accuracy,
        "eval/truncated": 0.01,
    }


def samples(progress):
    return [
        SampleView(
            prompt="Long prompt " * 12 + "12 + 7 =",
            answer="19",
            reward=1.0,
            stop="EOS",
            completion="19" if progress > 0.5 else HOSTILE,
            correct=progress > 0.5,
        ),
        SampleView(prompt="5 + 5 =", completion="", answer="10", reward=0.0, stop="LENGTH"),
    ]


def fresh(step):
    return SampleView(
        prompt=f"{step} + 1 =",
        completion=f"{step + 1}",
        answer=f"{step + 1}",
        reward=1.0,
        stop="EOS",
        correct=True,
    )


def metrics(step, progress):
    return {
        "reward/mean": 0.27 + 0.3 * progress,
        "policy/loss": -1e-9 * step,
        "policy/entropy": 0.9 - 0.5 * progress,
        "policy/kl": 2e-4,
        "policy/clip_fraction": 0.01,
        "groups/zero_spread": 0.1 + 0.2 * progress,
        "rollout/truncated": 0.02,
        "rollout/length": 3 + 11 * progress,
        "update/grad_norm": 0.5 + 0.1 * math.sin(step),
        "time/tokens_per_second": 3210.0,
    }


def train(config: TrainConfig, *, algorithm, sinks=()) -> Summary:
    assert callable(algorithm)
    delay = float(os.environ.get("FAKE_DELAY", "0"))
    began = time.monotonic()
    first = last = evaluation(0.27)
    done = 0
    with open_record(config) as record, stop_on_signals() as stop:
        if record.resumed:
            done = sum(1 for _ in record.checkpoints.iterdir())
            record.resume_at(done or -1)
        out = Fanout([record, *sinks])
        out.start(config, {"devices": 1, "device": "cpu", "resumed_from": done})
        if done == 0:
            out.evaluation(0, first)
            out.samples(0, samples(0.0))
        while done < config.steps and not stop:
            done += 1
            progress = done / config.steps
            time.sleep(delay)
            out.step(done, metrics(done, progress))
            out.samples(done, [fresh(done)])
            if done % config.eval_every == 0:
                last = evaluation(0.27 + 0.3 * progress)
                out.evaluation(done, last)
                out.samples(done, samples(progress))
            (record.checkpoints / str(done)).touch()
        summary = Summary(
            run=record.path,
            steps=done,
            seconds=time.monotonic() - began,
            first=first,
            last=last,
            stopped=stop.signal,
            checkpoint=Path(record.checkpoints / str(done)),
        )
        out.finish(summary)
    return summary


if __name__ == "__main__":
    from polopt.cli.train import run

    sys.exit(run(sys.argv[1:], loop=train))
