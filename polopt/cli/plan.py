"""``polopt plan``: whether a training step fits a TPU slice that is not here."""

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from polopt.cli.parse import parse
from polopt.cli.show import show
from polopt.cli.table import find_algorithm
from polopt.plan.config import PlanConfig

EXAMPLES = """\
  polopt plan --model llama3-8b --slice v5e-16 --algorithm gspo
  polopt plan --slice v5e-16 --remat --micro-batch 1 --update-only --search 0
  polopt plan --model qwen2.5-0.5b --slice v5e-1 --lora-rank 16 --remat
  polopt plan --model llama3-70b --slice v5p-64 --no-compile     in seconds
  polopt plan --model base --slice cpu --json     what the CPU's compiler says

The compiler of TPUs comes with pip install "polopt[tpu]" and needs no TPU. A
model of billions of weights takes it minutes. Other options are those of
polopt train."""

_STYLES = (
    ("bold", r"\A.*$|^([GM]iB on a device|a training step  |sent by a device|would fit:).*"),
    ("green", r"^fits.*"),
    ("red", r"^does not fit.*|^  the .* refused .*"),
    ("dim", r"^(polopt train|  --(mesh|parallel)|estimate:) .*"),
)

_SECONDS = 24  # characters of a line of progress beside what it is about


def run(argv: Sequence[str]) -> int:
    """Print the plan; what it says is not an exit code, so that 1 means that there is none."""
    config = parse(PlanConfig, argv, command="plan", examples=EXAMPLES)
    if "jax" not in sys.modules:
        os.environ["JAX_PLATFORMS"] = "cpu"  # a TPU or GPU that is here is left alone
    method = find_algorithm(config.algorithm)
    from polopt.plan.planner import make_plan
    from polopt.plan.report import as_json, text

    with stopping_at_once():
        plan = make_plan(config, method, watched)
    if config.picture is not None:
        from polopt.plan.picture import draw

        draw(plan, Path(config.picture))
    if config.json:
        print(json.dumps(as_json(plan), indent=2))
    else:
        show(text(plan), _STYLES)
    return 0


@contextlib.contextmanager
def stopping_at_once() -> Iterator[None]:
    """Ctrl-C ends the process: Python would wait for the compiler, which takes minutes."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def watched(what: str) -> Iterator[None]:
    """Say on standard error what is being done, and for how many seconds."""
    start, done, live = time.perf_counter(), threading.Event(), sys.stderr.isatty()
    if live:  # what is longer than a line could not be written over
        what = what[: shutil.get_terminal_size().columns - _SECONDS]

    def say(text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)

    def seconds() -> str:
        return f" {time.perf_counter() - start:.0f} s"

    def count() -> None:
        while not done.wait(1.0):
            say(f"\rpolopt: {what} ...{seconds()}")

    counting = threading.Thread(target=count, daemon=True)
    say(f"polopt: {what} ...")
    if live:
        counting.start()
    try:
        yield
    finally:
        done.set()
        if live:
            counting.join()
            say(f"\rpolopt: {what} ...")
        say(f"{seconds()}\n")
