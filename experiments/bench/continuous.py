"""Continuous batching against padded batches, both ours: 256 requests over 32 lanes.

    python experiments/bench/continuous.py [--pairs 5]

Lengths are fixed and uniform from 16 to 256 tokens, prompts have 64. The padded way decodes 32
requests at a time and stops each batch at its longest row (`polopt.rollout.generate`); the engine
(`polopt.rollout.engine`) gives a lane the next request when its row is done. Both draw the same
tokens, but for rows in which a draw fell on an edge that rounding moves: the share is printed. They
are timed in turn in one process; the ratio is the median over the pairs.
"""

import argparse
import pathlib
import statistics
import sys
import time

import jax
import numpy as np

sys.path.append(str(pathlib.Path(__file__).parent / "grpo_step"))
from worker_polopt import model_of
from workload import Case, lengths_of, prompts_of

from polopt.rollout import Decoding, generate
from polopt.rollout.engine import Engine
from polopt.rollout.lanes import Drawing

REQUESTS, LANES = 256, 32
CASE = Case(prompts=REQUESTS, group=1, prompt=64, completion=256, shortest=16)


def contestants():
    """Two functions of a key that return tokens i32[N,C]."""
    model = model_of(CASE)
    params = model.init(jax.random.key(0))
    prompts, most = prompts_of(CASE), lengths_of(CASE)
    ids, full = np.arange(REQUESTS, dtype=np.int32), np.full(REQUESTS, CASE.prompt, np.int32)
    drawing = Drawing(decoding=Decoding(), eos_ids=())
    engine = Engine(model=model, drawing=drawing, max_new_tokens=CASE.completion, lanes=LANES)

    def padded(key):
        made = []
        for start in range(0, REQUESTS, LANES):
            part = slice(start, start + LANES)
            out = generate(
                model,
                params,
                prompts[part],
                full[part],
                ids[part],
                key=key,
                group_size=1,
                max_new_tokens=CASE.completion,
                decoding=drawing.decoding,
                eos_ids=(),
                most=most[part],
            )
            made.append(jax.device_get(out.tokens))
        return np.concatenate(made)

    def continuous(key):
        return engine(params, key, prompts, full, ids[:, None], most=most[:, None]).tokens

    return padded, continuous


def timed(run, key):
    start = time.perf_counter()
    out = run(key)
    return time.perf_counter() - start, out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="alternated runs of each")
    pairs = parser.parse_args().pairs
    padded, continuous = contestants()
    key = jax.random.key(1)
    same = (padded(key) == continuous(key)).mean()  # compiles both
    ratios, times = [], []
    for _ in range(pairs):
        slow, fast = timed(padded, key)[0], timed(continuous, key)[0]
        ratios.append(slow / fast)
        times.append((slow, fast))
    tokens = int(lengths_of(CASE).sum())
    slow, fast = (statistics.median(x) for x in zip(*times, strict=True))
    print(f"{REQUESTS} requests, {tokens} tokens, {LANES} lanes; {same:.2%} of tokens equal")
    print(f"padded {slow:.2f} s, continuous {fast:.2f} s, {tokens / fast:.0f} tokens per second")
    low, high = min(ratios), max(ratios)
    print(f"speed-up {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f}), target 1.50")


if __name__ == "__main__":
    main()
