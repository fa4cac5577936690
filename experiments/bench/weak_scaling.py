"""What polopt adds to JAX on several devices: its optimiser step against a minimal one by hand.

    python experiments/bench/weak_scaling.py [--pairs 100] [--devices 1 2 4 8] [--processes 2]

Every device has as many rows. The minimal step is what one would write: the same log-probabilities,
a loss of one line, `jax.grad`, a sum over devices, optax, the loss read on the host. Both deal rows
from the host in each step. The devices are virtual and share the cores, so that seconds say nothing
of scaling; the ratio of each pair says what is added, and at which number of devices it begins to.
"""

import argparse
import contextlib
import functools
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from composition import CONFIG, batch
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from pairs import compare

import polopt
from polopt import algorithms
from polopt.models import LanguageModel
from polopt.models.score import score
from polopt.processes import present
from polopt.train.parallel import choose
from polopt.train.rows import take
from polopt.train.update import init_state, make_update

GROUP, PROMPT, COMPLETION = 8, 16, 48  # of a device
MODEL = LanguageModel(CONFIG)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4))
FORMS = {"pmap": (), "mesh": ("data=-1",)}


def loss_of(shards, params, rows, weights):
    logp = score({"policy": (MODEL, params)}, rows, shards=shards).logp
    return -jnp.sum(weights * logp)


def of_process(index):
    return [device for device in jax.devices() if device.process_index == index]


def minimal(kind, n, params, trajectories, weights):
    """A step that is called without arguments; it keeps its own state."""
    moments = OPTIMIZER.init(params)
    loss = functools.partial(loss_of, n if kind == "mesh" else 1)

    def step(params, moments, rows, weights):
        value, grads = jax.value_and_grad(loss)(params, rows, weights)
        if kind == "pmap":
            value, grads = jax.lax.psum((value, grads), "data")
        updates, moments = OPTIMIZER.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, value

    me = present()
    devices = [d for i in range(me.count) for d in of_process(i)[: n // me.count]]
    data = jax.tree.map(np.asarray, (trajectories, weights))
    if kind == "pmap":
        here = [device for device in devices if device.process_index == me.index]
        step = jax.pmap(step, axis_name="data", donate_argnums=(0, 1), devices=devices)
        held = jax.pmap(lambda x, _: x, axis_name="data", in_axes=(None, 0), devices=here)(
            (params, moments), np.arange(len(here))
        )

        def place(x):
            return x[me.share(len(x))].reshape(len(here), -1, *x.shape[1:])
    else:
        mesh = Mesh(np.array(devices), ("data",))
        step = jax.jit(step, donate_argnums=(0, 1))
        held = jax.device_put((params, moments), NamedSharding(mesh, PartitionSpec()))
        held = jax.tree.map(jnp.copy, held)

        def place(x):
            return jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))

    def run():
        nonlocal held
        *held, loss = step(*held, *jax.tree.map(place, data))
        return float(np.ravel(loss.addressable_data(0))[0])

    return run


def ours(kind, n, params, trajectories, prepared, memory):
    me = present()
    form = choose(kind, n // me.count, FORMS[kind], me)
    alg = algorithms.grpo()
    how = {"axis": form.axis, "shards": form.shards}
    step = form.step(make_update(alg, {"policy": MODEL}, OPTIMIZER, **how))
    state = init_state({"policy": jax.tree.map(jnp.copy, params)}, OPTIMIZER, memory)
    held, given = form.place((state, {}))
    splits = np.arange(len(trajectories.length), dtype=np.int32).reshape(n, -1)

    def run():
        nonlocal held
        held, info = step(held, given, trajectories, prepared, splits)
        return float(info["policy/loss"].value())

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--devices", type=int, nargs="+", help="multiples of the processes")
    parser.add_argument("--processes", type=int, default=1, help="that share them, by pmap")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--at", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.devices = args.devices or [n for n in (1, 2, 4, 8) if n % args.processes == 0]
    if any(n % args.processes for n in args.devices):
        parser.error(f"--devices {args.devices}: give multiples of {args.processes} processes")
    if args.processes > 1 and args.process is None:
        start_all(args.processes)
    else:
        measure(args)


def measure(args: argparse.Namespace) -> None:
    jax.config.update("jax_num_cpu_devices", max(args.devices) // args.processes)
    if args.processes > 1:
        jax.distributed.initialize(args.at, args.processes, args.process)
    params = jax.device_get(MODEL.init(jax.random.key(0)))
    for kind in args.forms if args.processes == 1 else ["pmap"]:
        for n in args.devices:
            trajectories = jax.tree.map(np.asarray, batch(n, GROUP, PROMPT, COMPLETION))
            alg = algorithms.grpo()
            prepared, memory = jax.jit(lambda t, a=alg: polopt.prepare(a, t))(trajectories)
            weights = prepared.rows.weights["policy"] * prepared.credit
            everyone = take(trajectories, np.arange(len(trajectories.length)))
            plain = minimal(kind, n, params, everyone, weights)
            found = compare(
                ours(kind, n, params, trajectories, prepared, memory), plain, args.pairs
            )
            if present().first:
                print(
                    f"{kind} {n} devices: {found.seconds:.3f} s, ratio {found.ratio:.4f} "
                    f"(95 % {found.low:.4f} to {found.high:.4f})",
                    flush=True,
                )


def start_all(count: int) -> None:
    """Run this script in so many processes that meet on the loopback."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, *sys.argv, "--at", at, "--process"]
    started = [subprocess.Popen([*command, str(i)]) for i in range(count)]
    codes = [process.wait() for process in started]
    raise SystemExit(max(codes))


if __name__ == "__main__":
    main()
