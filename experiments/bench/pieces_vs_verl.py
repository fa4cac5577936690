"""Credit and trajectory side of polopt against verl's functions, on the same arrays in one process.

Three things are timed of each method: the credit (`prepare` against verl's estimator), the policy's
loss with its gradient in the log-probabilities, and both in one, ours compiled as one. Pairs
alternate; medians and the ratio's range are printed, with what XLA says that ours needs beside its
arguments, in units of one [N,T] float32 array. verl has no GiGPO: it is timed alone.

In an environment with verl 0.9.1 and torch, and polopt's own packages:

    PYTHONPATH=. python experiments/bench/pieces_vs_verl.py --rows 4096 --tokens 2048 --pairs 5
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from verl.trainer.ppo import core_algos as core
from verl.workers.config import ActorConfig

from polopt import PolicyOutputs, Stop, Trajectories, algorithms
from polopt.compose import loss, prepare

GROUP = 8
PARTS = ("credit", "loss", "whole")
# ours: (factory, its arguments), verl: (estimator, loss, aggregation, settings)
CASES = {
    "grpo": (algorithms.grpo, {"kl": 0.0}, "grpo", "vanilla", "token-mean", {"clip_ratio": 0.2}),
    "dapo": (
        algorithms.dapo,
        {},
        "grpo",
        "vanilla",
        "token-mean",
        {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28},
    ),
    "gspo": (
        algorithms.gspo,
        {},
        "grpo",
        "gspo",
        "seq-mean-token-mean",
        {"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4},
    ),
    "otb": (
        algorithms.otb,
        {},
        "optimal_token_baseline",
        "vanilla",
        "token-mean",
        {"clip_ratio": 0.2},
    ),
    "gigpo": (algorithms.gigpo, {}, None, None, None, {}),
}


def arrays(rows: int, tokens: int) -> dict[str, np.ndarray]:
    """Ragged rows of completions, groups of eight, outcomes of 0 or 1 at the last token."""
    rng = np.random.default_rng(0)
    length = rng.integers(tokens // 8, tokens + 1, rows)
    mask = np.arange(tokens) < length[:, None]
    reward = np.zeros((rows, tokens), np.float32)
    reward[np.arange(rows), length - 1] = rng.integers(0, 2, rows)
    old = -rng.exponential(1.0, (rows, tokens)).astype(np.float32)
    logp = np.minimum(old + 0.1 * rng.standard_normal((rows, tokens), np.float32), -1e-3)
    spread = rng.uniform(0.1, 0.9, (rows, tokens)).astype(np.float32)
    return {
        "mask": mask,
        "length": length,
        "reward": reward,
        "old": old,
        "logp": logp,
        "sq": spread,
    }


def trajectories(x: dict[str, np.ndarray]) -> Trajectories:
    """The same arrays as our record; every fourth of a row is a turn, states repeat in groups."""
    rows, tokens = x["mask"].shape
    ids = np.arange(rows, dtype=np.int32)
    turn = np.where(x["mask"], np.arange(tokens) * 4 // tokens, -1).astype(np.int32)
    group = ids // GROUP
    return Trajectories(
        tokens=np.zeros((rows, tokens), np.int32),
        length=x["length"].astype(np.int32),
        prompt_length=np.zeros(rows, np.int32),
        action_mask=x["mask"],
        turn=turn,
        group=group,
        id=ids,
        prompt=group,
        episode=ids,
        reward_parts={"score": x["reward"]},
        scored=np.ones(rows, bool),
        stop=np.full(rows, Stop.EOS, np.int32),
        logp_sampler=x["old"],
        log_keep=np.zeros((rows, tokens), np.float32),
        temperature=np.ones(rows, np.float32),
        version=np.zeros((rows, tokens), np.int32),
        columns={
            "logp_old": x["old"],
            "logp_ref": x["old"],
            "sum_prob_sq": x["sq"],
            "anchor": np.where(turn >= 0, turn * 2 + (ids % 2)[:, None], -1).astype(np.int32),
        },
    )


def ours(factory, arguments, batch: Trajectories, logp: np.ndarray):
    """Compiled credit and gradient functions, their inputs on the device, and their memory."""
    alg = factory(**arguments)
    batch = jax.tree.map(jnp.asarray, batch)
    logp = jnp.asarray(logp)
    credit = jax.jit(lambda b: prepare(alg, b)[0])
    gradient = jax.jit(
        jax.value_and_grad(lambda given, p: loss(alg, PolicyOutputs(logp=given), p)[0])
    )
    whole = jax.jit(
        lambda b, given: jax.value_and_grad(
            lambda given: loss(alg, PolicyOutputs(logp=given), prepare(alg, b)[0])[0]
        )(given)
    )
    prepared = credit(batch)
    one = logp.size * 4
    compiled = (
        credit.lower(batch).compile(),
        gradient.lower(logp, prepared).compile(),
        whole.lower(batch, logp).compile(),
    )
    memory = [c.memory_analysis() for c in compiled]
    return (
        lambda: jax.block_until_ready(credit(batch)),
        lambda: jax.block_until_ready(gradient(logp, prepared)),
        lambda: jax.block_until_ready(whole(batch, logp)),
        [(m.temp_size_in_bytes + m.output_size_in_bytes) / one for m in memory],
    )


def theirs(estimator, name, aggregation, settings, x: dict[str, np.ndarray]):
    """verl's two functions on the same arrays."""
    mask = torch.tensor(x["mask"], dtype=torch.float32)
    reward, old, sq = (torch.tensor(x[key]) for key in ("reward", "old", "sq"))
    index = (np.arange(len(mask)) // GROUP).astype(str).astype(object)
    config = ActorConfig(
        strategy="fsdp", rollout_n=GROUP, ppo_micro_batch_size_per_gpu=1, **settings
    )
    extra = {"old_log_probs": old, "sum_pi_squared": sq} if "baseline" in estimator else {}

    def credit():
        fn = core.get_adv_estimator_fn(estimator)
        return fn(token_level_rewards=reward, response_mask=mask, index=index, **extra)[0]

    made = credit()

    def gradient(advantage=made):
        logp = torch.tensor(x["logp"]).requires_grad_()
        value, _ = core.get_policy_loss_fn(name)(old, logp, advantage, mask, aggregation, config)
        value.backward()
        return logp.grad

    return credit, gradient, lambda: gradient(credit())


def timed(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def paired(a, b, pairs: int) -> dict:
    """Medians of two functions timed in turn, and the median and range of the ratio b / a."""
    a(), b()
    both = [(timed(a), timed(b)) for _ in range(pairs)]
    ratios = [y / x for x, y in both]
    return {
        "ours_s": round(statistics.median(x for x, _ in both), 4),
        "verl_s": round(statistics.median(y for _, y in both), 4),
        "verl_over_ours": round(statistics.median(ratios), 2),
        "range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    x = arrays(args.rows, args.tokens)
    batch = trajectories(x)
    for key, (factory, arguments, estimator, name, aggregation, settings) in CASES.items():
        *mine, memory = ours(factory, arguments, batch, x["logp"])
        record = {"case": key, "arrays": [round(m, 1) for m in memory]}
        if estimator is None:
            for part, run in zip(PARTS, mine, strict=True):
                run()
                seconds = [timed(run) for _ in range(args.pairs)]
                record[part] = {"ours_s": round(statistics.median(seconds), 4)}
        else:
            other = theirs(estimator, name, aggregation, settings, x)
            for part, run, peer in zip(PARTS, mine, other, strict=True):
                record[part] = paired(run, peer, args.pairs)
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
