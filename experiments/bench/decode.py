"""Time of one token step: polopt's sampler against a plain cached decode loop, alternated.

    python experiments/bench/decode.py

Both run the same Llama shape: vocabulary 8,192, hidden 256, 6 layers, 4 heads, MLP 688, float32,
4 prompts x 8 rows, prompts of 64 tokens, 128 new tokens and no early stop. The plain loop is what
one would write first: each row has its prompt in a cache of its own, tokens come from
`jax.random.categorical`, and no log-probabilities are kept. Its prompts are not even read (the
cache holds zeros there), where polopt's time includes the prefill.

The two are timed in turn in one process, as the machine's speed drifts; the ratio is the median
over the pairs.
"""

import argparse
import os
import statistics
import time

import jax
import jax.numpy as jnp

from polopt.models import DecoderConfig, LanguageModel
from polopt.rollout import Decoding, generate

P, G, S, C = 4, 8, 64, 128
N = P * G
CONFIG = DecoderConfig(
    vocab_size=8192,
    hidden_size=256,
    num_layers=6,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
    mlp_size=688,
    max_length=S + C,
)


def plain_params(key):
    """Fused projections, stacked by layer."""
    D, F, L = CONFIG.hidden_size, CONFIG.mlp_size, CONFIG.num_layers
    shapes = {
        "embed": (CONFIG.vocab_size, D),
        "qkv": (L, D, 3 * D),
        "out": (L, D, D),
        "gate_up": (L, D, 2 * F),
        "down": (L, F, D),
    }
    keys = jax.random.split(key, len(shapes))
    return {
        name: 0.02 * jax.random.normal(k, shape)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def rms(x):
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + CONFIG.norm_eps)


def turn(x, position):
    half = CONFIG.head_dim // 2
    angle = position / CONFIG.rope_theta ** (jnp.arange(half) / half)
    a, b, cos, sin = x[..., :half], x[..., half:], jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def plain_step(params, cache, token, position):
    """Logits after `token i32[N]`; a cache of [N,heads,S+C,d] keys and values per layer."""
    heads = (N, CONFIG.num_heads, CONFIG.head_dim)
    x = params["embed"][token]
    for i, (keys, values) in enumerate(cache):
        qkv = rms(x) @ params["qkv"][i]
        q, k, v = (part.reshape(heads) for part in jnp.split(qkv, 3, -1))
        q, k = turn(q, position), turn(k, position)
        keys = keys.at[:, :, position].set(k)
        values = values.at[:, :, position].set(v)
        scores = jnp.einsum("nhd,nhsd->nhs", q, keys) * CONFIG.head_dim**-0.5
        scores = jnp.where(jnp.arange(S + C) <= position, scores, -jnp.inf)
        mixed = jnp.einsum("nhs,nhsd->nhd", jax.nn.softmax(scores), values)
        x = x + mixed.reshape(N, -1) @ params["out"][i]
        gate, up = jnp.split(rms(x) @ params["gate_up"][i], 2, -1)
        x = x + (jax.nn.silu(gate) * up) @ params["down"][i]
        cache = (*cache[:i], (keys, values), *cache[i + 1 :])
    return cache, rms(x) @ params["embed"].T


@jax.jit
def plain_generate(params, key):
    def body(step, carry):
        cache, token, tokens = carry
        cache, logits = plain_step(params, cache, token, S + step)
        token = jax.random.categorical(jax.random.fold_in(key, step), logits)
        return cache, token, tokens.at[:, step].set(token)

    room = jnp.zeros((N, CONFIG.num_heads, S + C, CONFIG.head_dim))
    cache = ((room, room),) * CONFIG.num_layers
    start = (cache, jnp.zeros(N, jnp.int32), jnp.zeros((N, C), jnp.int32))
    return jax.lax.fori_loop(0, C, body, start)[2]


def contestants():
    """{name: function of a key}; the first is the reference."""
    model = LanguageModel(CONFIG)
    params = model.init(jax.random.key(0))
    plain = plain_params(jax.random.key(0))
    prompts = jax.random.randint(jax.random.key(1), (P, S), 0, CONFIG.vocab_size)

    def polopt(decoding, grow_at=()):
        return lambda key: generate(
            model,
            params,
            prompts,
            jnp.full(P, S),
            jnp.arange(N),
            key=key,
            group_size=G,
            max_new_tokens=C,
            decoding=decoding,
            eos_ids=(),
            grow_at=grow_at,
        )

    return {
        "plain loop": lambda key: plain_generate(plain, key),
        "polopt": polopt(Decoding()),
        "polopt, cache grows at 32, 64": polopt(Decoding(), (32, 64)),
        "polopt, top-k 50": polopt(Decoding(top_k=50)),
        "polopt, top-p 0.95": polopt(Decoding(top_p=0.95)),
    }


def milliseconds(run, key):
    start = time.perf_counter()
    jax.block_until_ready(run(key))
    return (time.perf_counter() - start) / C * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9, help="alternated runs of each")
    pairs = parser.parse_args().pairs
    runs = contestants()
    keys = jax.random.split(jax.random.key(2), pairs + 1)
    for run in runs.values():
        milliseconds(run, keys[0])
    times = [{name: milliseconds(run, key) for name, run in runs.items()} for key in keys[1:]]
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores")
    print("ms per token step, medians; ratios to the plain loop, median and range over the pairs")
    for name in runs:
        ratios = [pair[name] / pair["plain loop"] for pair in times]
        print(
            f"{name:30s} {statistics.median(pair[name] for pair in times):6.2f} ms  "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
