"""What composition costs: the update of a composed method against a plain weighted log-likelihood.

Both are one guarded optimiser step of the same decoder, head, optimiser and rows; the plain one's
loss is written by hand as `−Σ weight·logp`. Prints FLOPs and bytes of the compiled programs, and
the median of the paired time ratios with its 95 % bootstrap interval.

    python experiments/bench/composition.py --pairs 100
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pairs import compare

import polopt
from polopt import algorithms
from polopt.models.config import DecoderConfig
from polopt.models.language_model import LanguageModel
from polopt.models.score import score
from polopt.train.rows import take
from polopt.train.update import apply_gradient, init_state, make_update

CONFIG = DecoderConfig(
    vocab_size=8192,
    hidden_size=256,
    num_layers=6,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
    mlp_size=688,
    max_length=192,
)


def batch(prompts: int, group: int, prompt: int, completion: int) -> polopt.Trajectories:
    rng = np.random.default_rng(0)
    rows = prompts * group
    asked = np.repeat(rng.integers(0, 8192, (prompts, prompt)), group, 0).tolist()
    answers = rng.integers(0, 8192, (rows, completion)).tolist()
    made = polopt.Trajectories.build(asked, answers, rng.random(rows).tolist(), group=group)
    columns = {"logp_old": np.where(made.action_mask, -9.0, 0).astype(np.float32)}
    columns["logp_ref"] = columns["logp_old"]
    return jax.tree.map(jnp.asarray, made.__class__(**{**vars(made), "columns": columns}))


def plain_update(alg, model, optimizer):
    """The same step, with the loss written by hand and no piece in sight."""

    def update(state, trajectories, weights, rows):
        def loss(params):
            part = take(trajectories, rows)
            logp = score({"policy": (model, params["policy"])}, part).logp
            return -jnp.sum(jnp.take(weights, rows, axis=0) * logp)

        return apply_gradient(alg, optimizer, state, jax.grad(loss)(state.params), {})

    return jax.jit(update, donate_argnums=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument(
        "--shape",
        type=int,
        nargs=4,
        default=(4, 8, 64, 128),
        metavar=("PROMPTS", "GROUP", "PROMPT", "COMPLETION"),
    )
    args = parser.parse_args()
    model = LanguageModel(CONFIG)
    params = {"policy": model.init(jax.random.key(0))}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4))
    trajectories = batch(*args.shape)
    rows = jnp.arange(len(trajectories.length))
    alg = algorithms.grpo()
    prepared, memory = jax.jit(lambda t: polopt.prepare(alg, t))(trajectories)
    ours = jax.jit(make_update(alg, {"policy": model}, optimizer), donate_argnums=0)
    plain = plain_update(alg, model, optimizer)
    weights = prepared.rows.weights["policy"] * prepared.credit
    held = {name: init_state(params, optimizer, memory) for name in ("ours", "plain")}
    compiled = {
        "ours": ours.lower(held["ours"], {}, trajectories, prepared, rows[None]).compile(),
        "plain": plain.lower(held["plain"], trajectories, weights, rows).compile(),
    }
    for name, unit in (("flops", "GFLOP"), ("bytes accessed", "GB")):
        a, b = (compiled[k].cost_analysis()[name] / 1e9 for k in ("ours", "plain"))
        print(f"{name:<15} composed {a:9.3f} {unit:<6} plain {b:9.3f} {unit:<6} ratio {a / b:.4f}")

    def run_ours() -> None:
        held["ours"], _ = jax.block_until_ready(
            compiled["ours"](held["ours"], {}, trajectories, prepared, rows[None])
        )

    def run_plain() -> None:
        held["plain"], _ = jax.block_until_ready(
            compiled["plain"](held["plain"], trajectories, weights, rows)
        )

    found = compare(run_ours, run_plain, args.pairs)
    print(
        f"time            composed {found.seconds:.3f} s   median of {args.pairs} "
        f"paired ratios {found.ratio:.4f} (95 % {found.low:.4f} to {found.high:.4f})"
    )


if __name__ == "__main__":
    main()
