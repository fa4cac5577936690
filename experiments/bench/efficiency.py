"""How near the update and the token step come to what this machine can do.

    python experiments/bench/efficiency.py [--case a] [--repeats 7]

Update: model FLOPs (recomputation excluded, a prompt counted once per group) over the time, against
matmul rates measured in the same process: at the model's own shapes, forward and backward, and of
2048 x 2048 matrices. Token step: the larger of two bounds, weights and live cache bytes at the
measured read bandwidth or its FLOPs at the 2048 rate, over the time. Tables show where the rest
goes. Times are medians; rates are measured between the repeats, as the machine's speed drifts.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.append(str(pathlib.Path(__file__).parent / "grpo_step"))
from worker_polopt import GRPO, algorithm, model_of, step_of, trajectories
from workload import CASES, LEARNING_RATE, Case, lengths_of, prompts_of

from polopt import init, score
from polopt.models.layout import Layout, plan
from polopt.rollout import Decoding
from polopt.rollout.engine import Engine
from polopt.rollout.lanes import Drawing
from polopt.train.update import apply_gradient, init_state


class Timer:
    """Seconds of some functions, called in turn."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, name: str, run) -> None:
        """One more measurement, after one that is not counted if it is the first."""
        if name not in self.seconds:
            self.seconds[name] = []
            jax.block_until_ready(run())
        start = time.perf_counter()
        jax.block_until_ready(run())
        self.seconds[name].append(time.perf_counter() - start)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])


def products(case: Case, positions: int, scored: int) -> list[tuple[int, int, int, int]]:
    """(rows, inner, outer, how often) of the model's matrix products forward."""
    D, F, L, d = case.hidden, case.mlp, case.layers, case.head_dim
    return [
        (positions, D, case.heads * d, L),
        (positions, D, case.kv_heads * d, 2 * L),
        (positions, case.heads * d, D, L),
        (positions, D, F, 2 * L),
        (positions, F, D, L),
        (scored, D, case.vocab, 1),
    ]


def attention_flops(case: Case, lengths: np.ndarray) -> float:
    """Forward, over the pairs of query and key that a causal mask leaves."""
    S, read = case.prompt, lengths - 1.0  # the last token is not read
    pairs = case.prompts * S * (S + 1) / 2 + (read * S + read * (read + 1) / 2).sum()
    return 4 * case.heads * case.head_dim * case.layers * pairs


def rates(case: Case, shapes: list[tuple[int, int, int, int]], timer: Timer):
    """A function that measures, for every product, itself and the two of its gradient."""
    x = jnp.ones((2048, 2048))
    square = jax.jit(jnp.matmul)
    big = jnp.ones((2**26,))  # 256 MiB
    read = jax.jit(jnp.sum)
    forward = jax.jit(lambda a, b, g: a @ b)
    states = jax.jit(lambda a, b, g: g @ b.T)
    weights = jax.jit(lambda a, b, g: a.T @ g)
    given = [(jnp.ones((m, k)), jnp.ones((k, n)), jnp.ones((m, n))) for m, k, n, _ in shapes]

    def measure() -> None:
        timer("2048", lambda: square(x, x))
        timer("read", lambda: read(big))
        for i, arrays in enumerate(given):
            for name, run in (("forward", forward), ("states", states), ("weights", weights)):
                timer(f"{name} {i}", lambda run=run, arrays=arrays: run(*arrays))

    return measure


class States:
    """A language model whose states are its parameters: what is left is the head."""

    compute_dtype = "float32"

    def states(self, params, layout: Layout):
        return params["states"]

    def unembedding(self, params):
        return params["unembedding"]


def update_parts(case: Case, timer: Timer):
    """A function that times the whole update, and its parts alone."""
    model, alg, optimizer = model_of(case), algorithm(GRPO), optax.adamw(LEARNING_RATE)
    params = model.init(jax.random.key(0))
    rng, lengths = np.random.default_rng(0), lengths_of(case)
    batch = trajectories(
        case,
        [rng.integers(3, case.vocab, n) for n in lengths],
        rng.normal(size=case.rows),
        [np.zeros(n) for n in lengths],
    )
    rows = np.arange(case.rows)
    layout = jax.tree.map(lambda x: x[0], plan(batch, rows))
    layouts = plan(batch, rows.reshape(case.prompts, -1))  # a group at a time, as the step does it
    step = step_of(case, model, alg, optimizer)
    held = init_state({"policy": params}, optimizer, init(alg))
    states = jnp.full((len(layout.prompt) + layout.tokens.size, case.hidden), 0.1)

    @jax.jit
    def layers(params):
        def add(total, layout):
            found = jax.grad(lambda p: model.states(p, layout).sum())(params)
            return jax.tree.map(jnp.add, total, found), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), layouts)[0]

    given = {"states": states, "unembedding": model.unembedding(params)}
    head = jax.jit(
        jax.grad(lambda p: score({"policy": (States(), p)}, batch, layout=layout).logp.sum())
    )
    moved = jax.jit(lambda s, g: apply_gradient(alg, optimizer, s, g, {})[0])

    def whole():
        nonlocal held
        held, _ = step(held, batch)
        return held

    def measure() -> None:
        timer("update", whole)
        timer("layers", lambda: layers(params))
        timer("head", lambda: head(given))
        timer("optimiser", lambda: moved(held, {"policy": params}))

    return measure, case.prompts * layouts.room.positions, int(lengths.sum())


def decoding(case: Case, timer: Timer):
    """A function that times a whole generation, and its prefill alone."""
    model = model_of(case)
    params = model.init(jax.random.key(0))
    prompts, full = prompts_of(case), np.full(case.prompts, case.prompt, np.int32)
    ids = np.arange(case.rows, dtype=np.int32).reshape(case.prompts, -1)
    engine = Engine(
        model=model,
        drawing=Drawing(decoding=Decoding(), eos_ids=()),
        max_new_tokens=case.completion,
    )
    prefill = jax.jit(model.prefill)
    key, most = jax.random.key(1), lengths_of(case).reshape(ids.shape)

    def measure() -> None:
        timer("generate", lambda: engine(params, key, prompts, full, ids, most=most).length)
        timer("prefill", lambda: prefill(params, prompts, full))

    return measure


def decode_bound(case: Case, rate: float, bandwidth: float) -> tuple[float, float]:
    """Seconds of all token steps: by bytes, and by FLOPs."""
    lengths = lengths_of(case)
    D, d = case.hidden, case.head_dim
    layer = D * d * (2 * case.heads + 2 * case.kv_heads) + 3 * D * case.mlp
    weights = case.layers * layer + case.vocab * D
    per_key = 2 * case.layers * case.kv_heads * d
    seconds = np.zeros(2)
    for step in range(1, int(lengths.max())):
        live = lengths > step
        keys = case.prompts * case.prompt + int(live.sum()) * step
        seen = int(live.sum()) * (case.prompt + step)
        flops = 2 * weights * int(live.sum()) + 4 * case.layers * case.heads * d * seen
        seconds += 4 * (weights + per_key * keys) / bandwidth, flops / rate
    return float(seconds[0]), float(seconds[1])


def report(case: Case, shapes, timer: Timer) -> dict:
    """The two efficiencies, and tables of where the rest goes."""
    flops = [6.0 * m * k * n * count for m, k, n, count in shapes]
    ideal = [
        count * sum(timer.median(f"{part} {i}") for part in ("forward", "states", "weights"))
        for i, (*_, count) in enumerate(shapes)
    ]
    square = 2 * 2048**3 / timer.median("2048")
    own = sum(flops) / sum(ideal)
    attention = 3 * attention_flops(case, lengths_of(case))
    total, update = sum(flops) + attention, timer.median("update")
    rest = update - sum(timer.median(part) for part in ("layers", "head", "optimiser"))
    bandwidth = 4 * 2**26 / timer.median("read")
    by_bytes, by_flops = decode_bound(case, square, bandwidth)
    tokens = timer.median("generate") - timer.median("prefill")
    found = {
        "gflops_2048": square / 1e9,
        "gflops_own_shapes": own / 1e9,
        "read_gb_per_s": bandwidth / 1e9,
        "update_s": update,
        "update_gflop": total / 1e9,
        "update_of_own_shapes": total / own / update,
        "update_of_2048": total / square / update,
        "decode_s": tokens,
        "decode_bound_bytes_s": by_bytes,
        "decode_bound_flops_s": by_flops,
        "decode_of_bound": max(by_bytes, by_flops) / tokens,
    }
    print(json.dumps({name: round(x, 3) for name, x in found.items()}, indent=1))
    print("| part of the update | seconds | its matrix products at the measured rate |")
    print("|---|---|---|")
    print(f"| layers | {timer.median('layers'):.3f} | {sum(ideal[:-1]) + attention / own:.3f} |")
    print(f"| head | {timer.median('head'):.3f} | {ideal[-1]:.3f} |")
    print(f"| optimiser | {timer.median('optimiser'):.3f} | 0 |")
    print(f"| credit, layout, loss, transfers | {rest:.3f} | 0 |")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, default="a")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    case, timer = CASES[args.case], Timer()
    update, positions, scored = update_parts(case, timer)
    shapes = products(case, positions // case.prompts, scored // case.prompts)
    shapes = [(m, k, n, count * case.prompts) for m, k, n, count in shapes]
    measures = rates(case, shapes, timer), update, decoding(case, timer)
    for _ in range(args.repeats):
        for measure in measures:
            measure()
    report(case, shapes, timer)


if __name__ == "__main__":
    main()
