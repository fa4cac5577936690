"""What the chunked head costs: memory of an update against the vocabulary, and time of the head.

    python experiments/bench/head_memory.py
    python experiments/bench/head_memory.py --vocabularies 8192 65536 --chunk 128 --pairs 10

Memory: one Adam step of a small untied decoder (hidden 256, 2 layers) on 4,096 scored tokens, each
vocabulary in a process of its own. "beyond" is what stays of the peak when parameters, both
moments and one gradient are taken off: `compiled` from XLA's own account of arguments, outputs and
temporaries, `resident` from the growth of the process's peak resident set over the step.

Time: forward and backward of the head alone, chunked against a softmax over all of [N,T,V], in
turn in one process, as the machine's speed drifts; the ratio is the median over pairs.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import polopt
from polopt.models.config import DecoderConfig
from polopt.models.head import default_chunk
from polopt.models.language_model import LanguageModel
from polopt.models.score import score

N, PROMPT, COMPLETION, HIDDEN = 32, 64, 128, 256
MIB = 2**20


def model(vocabulary: int) -> LanguageModel:
    return LanguageModel(
        DecoderConfig(
            vocab_size=vocabulary,
            hidden_size=HIDDEN,
            num_layers=2,
            num_heads=4,
            num_kv_heads=4,
            head_dim=64,
            mlp_size=688,
            max_length=PROMPT + COMPLETION,
            tie_embeddings=False,
        )
    )


def batch(vocabulary: int) -> polopt.Trajectories:
    rng = np.random.default_rng(0)
    asked = np.repeat(rng.integers(0, vocabulary, (N // 8, PROMPT)), 8, axis=0).tolist()
    answers = rng.integers(0, vocabulary, (N, COMPLETION)).tolist()
    made = polopt.Trajectories.build(asked, answers, rng.random(N).tolist(), group=8)
    return jax.tree.map(jnp.asarray, made)


def resident_peak() -> int:
    """Bytes of this process's peak resident set (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def measure(vocabulary: int, want: tuple[str, ...], chunk: int | None) -> dict[str, float]:
    """One Adam step; bytes beyond parameters, moments and gradient."""
    policy, rows = model(vocabulary), batch(vocabulary)
    optimizer = optax.adam(1e-4)

    def loss(params):
        out = score({"policy": (policy, params)}, rows, want, chunk=chunk)
        return -(out.logp.sum() + sum(column.sum() for column in out.columns.values()))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, moments):
        change, moments = optimizer.update(jax.grad(loss)(params), moments)
        return optax.apply_updates(params, change), moments

    params = policy.init(jax.random.key(0))
    moments = optimizer.init(params)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    program = step.lower(params, moments).compile()
    account = program.memory_analysis()
    held = account.argument_size_in_bytes + account.output_size_in_bytes
    compiled = held - account.alias_size_in_bytes + account.temp_size_in_bytes - 4 * weights
    jax.block_until_ready((params, moments))
    before = resident_peak()
    jax.block_until_ready(program(params, moments))
    return {
        "chunk": (chunk or default_chunk(vocabulary, HIDDEN)) * vocabulary * 4 / MIB,
        "weights": weights / MIB,
        "compiled": compiled / MIB,
        "resident": (resident_peak() - before - weights) / MIB,
    }


def naive(params, states, tokens):
    logits = states[:, PROMPT - 1 : -1] @ params["out"].T
    picked = jnp.take_along_axis(logits, tokens[:, PROMPT:, None], axis=-1)[..., 0]
    return (picked - jax.nn.logsumexp(logits, axis=-1)).sum()


class Tape:
    """A model whose states are parameters: the head and nothing else."""

    def hidden(self, params, tokens):
        return params["states"]

    def unembedding(self, params):
        return params["out"]


def compare(vocabulary: int, chunk: int | None, pairs: int) -> tuple[float, float, float]:
    """Seconds of forward and backward: chunked, over [N,T,V], and the median ratio."""
    rows = batch(vocabulary)
    rng = np.random.default_rng(1)
    shape = (N, PROMPT + COMPLETION, HIDDEN)
    params = {
        "states": jnp.asarray(rng.normal(size=shape), jnp.float32),
        "out": jnp.asarray(rng.normal(size=(vocabulary, HIDDEN)) / 16, jnp.float32),
    }

    def chunked(params):
        return score({"policy": (Tape(), params)}, rows, chunk=chunk).logp.sum()

    def full(params):
        return naive(params, params["states"], rows.tokens)

    programs = [jax.jit(jax.grad(f)).lower(params).compile() for f in (chunked, full)]
    jax.block_until_ready([program(params) for program in programs])
    times: list[list[float]] = [[], []]
    for _ in range(pairs):
        for program, taken in zip(programs, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(program(params))
            taken.append(time.perf_counter() - start)
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    return statistics.median(times[0]), statistics.median(times[1]), ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[8192, 32768, 65536])
    parser.add_argument("--want", nargs="+", default=["logp"])
    parser.add_argument("--chunk", type=int, help="rows of a chunk, if not the default")
    parser.add_argument("--pairs", type=int, default=0, help="timed pairs per vocabulary")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.vocabularies[0], tuple(options.want), options.chunk)))
        return
    print("vocabulary  chunk MiB  parameters MiB  beyond: compiled MiB  resident MiB")
    for vocabulary in options.vocabularies:
        command = [sys.executable, __file__, "--one", "--vocabularies", str(vocabulary)]
        command += ["--want", *options.want]
        command += ["--chunk", str(options.chunk)] if options.chunk else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{vocabulary:10d}  {row['chunk']:9.1f}  {row['weights']:14.1f}"
            f"  {row['compiled']:20.1f}  {row['resident']:12.1f}"
        )
    for vocabulary in options.vocabularies if options.pairs else ():
        mine, full, ratio = compare(vocabulary, options.chunk, options.pairs)
        print(f"{vocabulary}: head {mine:.2f} s, over [N,T,V] {full:.2f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
