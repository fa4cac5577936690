"""Plans for this machine's CPU, which are compiled."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from plan.jobs import configured

from polopt.algorithms import grpo
from polopt.plan.planner import make_plan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return make_plan(configured(folder, slice="cpu-2", micro_batch=8), grpo())


def test_every_program_of_a_step_is_compiled(plan):
    assert [program.name for program in plan.programs] == ["update", "scoring", "prefill", "decode"]
    assert plan.fits
    for program in plan.programs:
        assert program.refusal is None
        assert program.bytes.temporary > 0
        assert plan.needed(program) > plan.held.total
    update = plan.programs[0]
    assert {"all-gather", "all-reduce"} <= {sent.kind for sent in update.collectives}


def test_what_an_update_takes_is_what_the_run_holds_and_a_batch(plan):
    update = plan.programs[0].bytes
    taken = plan.held.parameters + plan.held.optimiser  # the reference is scored before it
    job = plan.job
    cells = job.rows * (job.prompt + job.completion)
    assert taken <= update.arguments <= taken + 4 * cells * 20
    assert update.reused == pytest.approx(taken, rel=0.01)  # the state is written in place


def test_the_largest_micro_batch_is_searched(plan):
    tried = [found.micro_batch for found in plan.tried]
    assert plan.largest == 16 == max(tried)  # all rows of a device
    assert tried[0] == plan.micro_batch == 8


def test_copies_on_all_devices_are_planned_too(tmp_path):
    config = configured(tmp_path, slice="cpu-2", parallel="pmap", search=0)
    made = make_plan(config, grpo())
    assert [program.name for program in made.programs] == ["update", "scoring", "sampling"]
    one = make_plan(dataclasses.replace(config, slice="cpu", compile=False), grpo())
    assert made.held == one.held  # nothing is cut
    update = made.programs[0]
    assert {sent.kind for sent in update.collectives} == {"all-reduce"}
    held = made.held.parameters + made.held.optimiser
    assert update.bytes.arguments == pytest.approx(held, rel=0.5)
    assert update.bytes.arguments > held


def test_an_interrupt_ends_it_in_the_middle_of_compiling(tmp_path):
    configured(tmp_path)
    flags = ["--model", str(tmp_path), "--slice", "cpu", "--prompt-length", "16",
             "--max-new-tokens", "32"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "polopt", "plan", *flags],
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    said = b""
    while b"compiling the update ..." not in said:  # before its seconds
        said += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    start = time.perf_counter()
    assert process.wait(timeout=60) == -signal.SIGINT
    assert time.perf_counter() - start < 2
    process.stderr.close()
