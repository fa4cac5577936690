"""A plan's peak against the one that is measured, on the CPU: an optimiser step of the base model.

    python experiments/plan/peak.py [--micro-batch 32]

The plan says arguments, results and temporaries. The very program is then run once on a batch of
full length, and the growth of the process's peak resident set is read (Linux).
"""

import argparse
import gc
import pathlib

import jax
import numpy as np

from polopt.algorithms import grpo
from polopt.models.layout import plan as lay_out
from polopt.plan.config import PlanConfig
from polopt.plan.planner import make_plan

MIB = 2**20


def status(field: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def batch_of(job):
    """A rollout in which every row has all its tokens."""

    def filled(shape):
        return np.zeros(shape.shape, shape.dtype)

    made = jax.tree.map(filled, job.trajectories())
    N, T = made.tokens.shape
    mask = np.broadcast_to(np.arange(T) >= job.prompt, (N, T))
    length, start = np.full(N, T, np.int32), np.full(N, job.prompt, np.int32)
    group = np.repeat(np.arange(job.prompts, dtype=np.int32), job.group_size)
    changed = {"action_mask": mask, "length": length, "prompt_length": start, "group": group}
    return made.__class__(**{**vars(made), **changed})


def arguments(job, micro_batch):
    """What an optimiser step is called with; numbers are ones, which take the same room."""

    def ones(tree):
        return jax.tree.map(lambda x: np.ones(x.shape, x.dtype), tree)

    batch = batch_of(job)
    prepared = jax.tree.map(
        lambda x: jax.random.key(0) if x.dtype == jax.random.key(0).dtype else ones(x),
        job.prepared(),
    )
    splits = np.arange(job.rows, dtype=np.int32).reshape(-1, micro_batch)
    layout = lay_out(batch, splits, room=job.room(micro_batch))
    return ones(job.state), ones(job.given), batch, prepared, splits, layout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--micro-batch", type=int, default=32)
    asked = parser.parse_args().micro_batch
    config = PlanConfig(
        model="base",
        slice="cpu",
        prompts=8,
        group_size=8,
        prompt_length=64,
        max_new_tokens=64,
        micro_batch=asked,
        compute_dtype="float32",
        search=0,
        update_only=True,
    )
    made = make_plan(config, grpo())
    update = made.programs[0]
    args, _ = update.compiled.input_shardings
    placed = jax.device_put(arguments(made.job, asked), args)
    jax.block_until_ready(placed)
    gc.collect()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = status("VmRSS")
    jax.block_until_ready(update.compiled(*placed))
    grown = status("VmHWM") - before
    size = update.bytes
    planned = size.temporary + size.outputs - size.reused
    print(
        f"micro-batch {asked}: planned beyond arguments {planned / MIB:.1f} MiB, measured ", end=""
    )
    print(f"{grown / MIB:.1f} MiB, difference {100 * (grown / planned - 1):+.1f} %")
    print(
        f"whole: planned {size.peak / MIB:.1f} MiB, of which arguments {size.arguments / MIB:.1f}"
    )


if __name__ == "__main__":
    main()
