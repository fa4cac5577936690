"""The decoder: against NumPy loops, cached against uncached, and under JAX's transformations."""

import dataclasses
import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.errors import PoloptError
from polopt.models import DecoderConfig, LanguageModel, ValueModel, grow_cache
from polopt.models.attention import Rule, attention
from polopt.models.config import Experts
from polopt.models.layout import Layout
from polopt.models.rotary import frequencies, rotate

SIZES = {
    "vocab_size": 29,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_size": 24,
    "max_length": 32,
}
LLAMA = DecoderConfig(**SIZES)
QWEN = DecoderConfig(
    **{**SIZES, "num_kv_heads": 1, "rope_theta": 500.0, "norm_eps": 1e-3},
    tie_embeddings=False,
    qkv_bias=True,
    qk_norm=True,
)
MODEL = LanguageModel(LLAMA)
P, G, S, C = 2, 3, 5, 4
LENGTHS = np.array([5, 2])


def random_like(params, seed=0):
    """Weights large enough that every part of the decoder matters, norms and biases included."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape) + (leaf.ndim == 1), jnp.float32),
        params,
    )


@pytest.fixture(scope="module")
def params():
    return random_like(MODEL.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def hidden():
    return jax.jit(MODEL.hidden)


@pytest.fixture(scope="module")
def rows():
    """Ragged prompts [P,S], completions [P*G,C], and both joined, padded with nonsense."""
    rng = np.random.default_rng(1)
    prompts = rng.integers(0, 29, (P, S)).astype(np.int32)
    completions = rng.integers(0, 29, (P * G, C)).astype(np.int32)
    joined = rng.integers(0, 29, (P * G, S + C)).astype(np.int32)
    for n in range(P * G):
        length = LENGTHS[n // G]
        joined[n, :length] = prompts[n // G, :length]
        joined[n, length : length + C] = completions[n]
    return prompts, completions, joined


def own_part(hidden):
    """[N,S+C,D] of joined rows -> [N,C,D] at each row's own tokens."""
    return np.stack([np.asarray(h)[LENGTHS[n // G] :][:C] for n, h in enumerate(hidden)])


def numpy_decoder(params, config, row):
    """One row, one head and one position at a time, in float64, written from the papers."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2) + config.norm_eps) * scale

    def turn(x, position):
        half = len(x) // 2
        pairs = x[:half] + 1j * x[half:]
        pairs *= [
            np.exp(1j * position * config.rope_theta ** (-2 * j / len(x))) for j in range(half)
        ]
        return np.concatenate([pairs.real, pairs.imag])

    d, share = config.head_dim, config.num_heads // config.num_kv_heads
    x = [p["embed"]["embedding"][token] for token in row]
    for i in range(config.num_layers):
        layer = p["layers"][str(i)]
        a = layer["attention"]

        def heads(name, position, y, a=a):
            out = y @ a[name]["kernel"] + a[name].get("bias", 0)
            out = out.reshape(-1, d)
            if name != "v":
                scale = a.get(f"{name}_norm", {}).get("scale")
                out = out if scale is None else np.stack([norm(h, scale) for h in out])
                out = np.stack([turn(h, position) for h in out])
            return out

        normed = [norm(h, layer["attention_norm"]["scale"]) for h in x]
        q, k, v = ([heads(name, t, y) for t, y in enumerate(normed)] for name in "qkv")
        for t in range(len(row)):
            mixed = []
            for head in range(config.num_heads):
                keys = [k[s][head // share] for s in range(t + 1)]
                w = np.exp([q[t][head] @ key / np.sqrt(d) for key in keys])
                mixed.append(sum(w[s] * v[s][head // share] for s in range(t + 1)) / w.sum())
            x[t] = x[t] + np.concatenate(mixed) @ a["out"]["kernel"]
        for t in range(len(row)):
            y, m = norm(x[t], layer["mlp_norm"]["scale"]), layer["mlp"]
            gate = y @ m["gate"]["kernel"]
            gate = gate / (1 + np.exp(-gate)) * (y @ m["up"]["kernel"])
            x[t] = x[t] + gate @ m["down"]["kernel"]
    return np.stack([norm(h, p["norm"]["scale"]) for h in x])


@pytest.mark.parametrize("config", [LLAMA, QWEN], ids=["llama", "qwen"])
def test_hidden_and_logits_equal_a_numpy_loop(config):
    model = LanguageModel(config)
    params = random_like(jax.eval_shape(model.init, jax.random.key(0)))
    row = np.array([3, 28, 0, 7, 7, 12])
    expected = numpy_decoder(params, config, row)
    hidden = jax.jit(model.hidden)(params, row[None])
    np.testing.assert_allclose(hidden[0], expected, atol=2e-5, rtol=2e-5)
    matrix = np.asarray(params["embed" if config.tie_embeddings else "unembed"]["embedding"])
    assert model.unembedding(params).shape == (29, 16)
    np.testing.assert_allclose(
        model.logits(params, hidden)[0], expected @ matrix.T, atol=2e-4, rtol=2e-4
    )


def test_rotary_equals_complex_rotation():
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 6)).astype(np.float32)
    positions = np.array([[0, 7, 900]])
    angle = positions[:, :, None, None] * frequencies(6, 100.0)[0]
    turned = np.asarray(rotate(x, (np.cos(angle), np.sin(angle))))
    for t in range(3):
        for j in range(3):
            z = (x[0, t, :, j] + 1j * x[0, t, :, j + 3]) * np.exp(
                1j * positions[0, t] * 100.0 ** (-2 * j / 6)
            )
            np.testing.assert_allclose(turned[0, t, :, j], z.real, atol=1e-4)
            np.testing.assert_allclose(turned[0, t, :, j + 3], z.imag, atol=1e-4)


def test_grouped_heads_equal_repeated_heads():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 5, 6, 4)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 2, 5, 4)).astype(np.float32)
    visible, rule = np.tril(np.ones((1, 5, 5), bool)), Rule(scale=0.5, softcap=None, window=None)
    repeated = attention(q, (np.repeat(k, 3, 1), np.repeat(v, 3, 1)), visible, rule)
    np.testing.assert_allclose(attention(q, (k, v), visible, rule), repeated, atol=1e-6)


def test_hidden_is_causal_and_blind_to_right_padding(params, hidden, rows):
    tokens = rows[2]
    before = hidden(params, tokens)
    changed = tokens.copy()
    changed[:, 4:] = (changed[:, 4:] + 1) % 29
    after = hidden(params, changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).min() > 0
    np.testing.assert_allclose(hidden(params, tokens[:, :4]), before[:, :4], atol=1e-5)


def test_positions_are_relative(params, hidden, rows):
    shifted = np.broadcast_to(np.arange(S + C) + 11, rows[2].shape)
    np.testing.assert_allclose(hidden(params, rows[2], shifted), hidden(params, rows[2]), atol=2e-5)


def layout_of(prompts, completions):
    """One continuation in each bin."""
    place = np.broadcast_to(np.arange(C), completions.shape)
    return Layout(
        prompt=prompts,
        prompt_length=LENGTHS,
        tokens=completions,
        place=place,
        segment=np.zeros_like(place),
        source=np.zeros((P * G, 1), np.int32),
    )


def test_cached_equals_uncached(rows):
    model = LanguageModel(dataclasses.replace(QWEN, num_kv_heads=2))
    params = random_like(jax.eval_shape(model.init, jax.random.key(0)))
    prompts, completions, joined = rows
    full = jax.jit(model.hidden)(params, joined)
    prompt, last = jax.jit(model.prefill)(params, prompts, LENGTHS)
    np.testing.assert_allclose(last[0], full[0, 4], atol=1e-5)
    np.testing.assert_allclose(last[1], full[G, 1], atol=1e-5)
    expected = own_part(full)
    packed = jax.jit(model.states)(params, layout_of(prompts, completions))
    np.testing.assert_allclose(packed[:P], last, atol=1e-5)
    np.testing.assert_allclose(packed[P:].reshape(expected.shape), expected, atol=1e-5)
    decode = jax.jit(model.decode)
    cache = model.empty_cache(P * G, 1)
    for step in range(C):
        if step == 1:
            cache = grow_cache(cache, C)
        cache, state = decode(params, prompt, cache, completions[:, step], step)
        np.testing.assert_allclose(state, expected[:, step], atol=1e-5)


def test_a_layer_reads_its_weights_once_for_prompts_and_what_follows(params, rows):
    text = str(jax.make_jaxpr(MODEL.states)(params, layout_of(*rows[:2])))
    into_mlp = re.findall(rf"f32\[(\d+),{SIZES['mlp_size']}\] = dot_general", text)
    assert into_mlp == [str(P * S + P * G * C)] * 2 * LLAMA.num_layers  # gate and up


def test_gradients_through_shared_prompts_and_remat(rows):
    model = LanguageModel(dataclasses.replace(LLAMA, num_layers=1))
    params = random_like(jax.eval_shape(model.init, jax.random.key(0)))
    prompts, completions, joined = rows
    cotangent = np.random.default_rng(2).normal(size=(P * G, C, 16)).astype(np.float32)
    where = np.repeat(LENGTHS, G)[:, None] + np.arange(C)[None]

    def repeated(params):
        hidden = model.hidden(params, joined)
        return (jnp.take_along_axis(hidden, where[:, :, None], 1) * cotangent).sum()

    def shared(params):
        packed = model.states(params, layout_of(prompts, completions), remat=True)
        return (packed[P:].reshape(cotangent.shape) * cotangent).sum()

    expected, gradient = (jax.jit(jax.grad(loss))(params) for loss in (repeated, shared))
    chex.assert_trees_all_close(gradient, expected, atol=1e-4, rtol=1e-4)


def test_equal_handles_do_not_retrace(params, rows):
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(lambda model, params, tokens: model.hidden(params, tokens), n=1)
    run = jax.jit(traced, static_argnums=0)
    run(MODEL, params, rows[2])
    twin = LanguageModel(DecoderConfig.from_dict(LLAMA.to_dict()))
    assert twin == MODEL
    assert hash(twin) == hash(MODEL)
    run(twin, jax.tree.map(jnp.copy, params), rows[2])


def test_a_handle_passes_through_jit_as_an_argument(params, hidden, rows):
    def run(models, tokens):
        model, params = models["policy"]
        return model.hidden(params, tokens)

    out = jax.jit(run)({"policy": (MODEL, params)}, rows[2])
    np.testing.assert_allclose(out, hidden(params, rows[2]), atol=1e-6)


def test_vmap_over_weights_and_pmap(params, hidden, rows):
    both = [params, random_like(params, seed=5)]
    expected = np.stack([hidden(p, rows[2]) for p in both])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *both)
    out = jax.jit(jax.vmap(MODEL.hidden, (0, None)))(stacked, rows[2])
    np.testing.assert_allclose(out, expected, atol=1e-5)
    alone = jax.tree.map(lambda leaf: leaf[:1], stacked)
    out = jax.pmap(MODEL.hidden, devices=jax.devices()[:1])(alone, rows[2][None])
    np.testing.assert_allclose(out, expected[:1], atol=1e-5)


def test_bfloat16_weights_and_compute(params, hidden, rows):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    exact = hidden(rounded, rows[2])
    np.testing.assert_allclose(hidden(half, rows[2]), exact, atol=1e-5)
    coarse = jax.jit(LanguageModel(LLAMA, "bfloat16").hidden)(half, rows[2])
    assert coarse.dtype == jnp.float32
    error = np.abs(coarse - exact).mean() / np.abs(exact).mean()
    assert 1e-4 < error < 3e-2  # eight bits of mantissa: coarse, and really used


@pytest.mark.parametrize(
    "shape",
    [QWEN, dataclasses.replace(LLAMA, experts=Experts(count=4, chosen=2, size=8))],
    ids=["biases and norms of heads", "experts"],
)
def test_what_is_only_read_may_be_rounded_once(shape, rows):
    model = LanguageModel(shape, "bfloat16")
    params = random_like(model.init(jax.random.key(0)))
    rounded = model.read_only(params)
    exact = jax.jit(model.hidden, compiler_options={"xla_allow_excess_precision": False})
    np.testing.assert_array_equal(exact(rounded, rows[2]), exact(params, rows[2]))
    state = jnp.ones((2, shape.hidden_size))
    np.testing.assert_array_equal(model.logits(rounded, state), model.logits(params, state))
    wide = {
        jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")[2]
        for path, leaf in jax.tree_util.tree_leaves_with_path(rounded)
        if leaf.dtype == jnp.float32
    }
    assert wide == {"scale"}
    assert MODEL.read_only(params) is params


def test_init_is_random_in_float32_and_scaled():
    params = MODEL.init(jax.random.key(3))
    chex.assert_trees_all_equal_dtypes(params, jax.tree.map(lambda _: jnp.zeros(()), params))
    first, second = (params["layers"][i]["mlp"]["up"]["kernel"] for i in "01")
    assert not np.array_equal(first, second)
    assert 0.015 < np.std(params["embed"]["embedding"]) < 0.025
    assert "unembed" not in params
    counted = sum(leaf.size for leaf in jax.tree.leaves(params))
    by_hand = 29 * 16 + 16 + 2 * (2 * 16 + 16 * (32 + 16 + 16) + 32 * 16 + 3 * 16 * 24)
    assert counted == by_hand


def test_value_is_of_the_state_before_the_token(params, hidden, rows):
    critic = ValueModel(LLAMA)
    fresh = critic.init(jax.random.key(0), params)
    chex.assert_trees_all_equal(fresh["decoder"], params)
    value = jax.jit(critic.value)
    np.testing.assert_array_equal(value(fresh, rows[2]), np.zeros_like(rows[2], np.float32))
    kernel = np.random.default_rng(4).normal(size=16).astype(np.float32)
    trained = {"decoder": params, "head": {"kernel": kernel, "bias": np.float32(0.5)}}
    states = np.asarray(hidden(params, rows[2])) @ kernel + 0.5
    got = np.asarray(value(trained, rows[2]))
    np.testing.assert_allclose(got[:, 1:], states[:, :-1], atol=1e-4)
    np.testing.assert_array_equal(got[:, 0], 0)
    np.testing.assert_allclose(jax.jit(critic.value_after)(trained, rows[2]), states, atol=1e-4)


def test_config_survives_json():
    assert DecoderConfig.from_dict(json.loads(json.dumps(QWEN.to_dict()))) == QWEN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0: give an integer of 1 or more"),
        ({"mlp_size": 8.0}, "mlp_size is 8.0"),
        ({"num_kv_heads": 3}, "multiple of num_kv_heads"),
        ({"head_dim": 7}, "even number"),
        ({"norm_eps": 0}, "norm_eps is 0"),
        ({"layers": 2}, "unknown 'layers'"),
    ],
)
def test_bad_configs_are_refused_in_one_line(change, message):
    with pytest.raises(PoloptError, match=message) as error:
        DecoderConfig.from_dict({**LLAMA.to_dict(), **change})
    assert "\n" not in str(error.value)


def test_bad_calls_are_refused(params):
    with pytest.raises(PoloptError, match="at most 32 positions"):
        MODEL.hidden(params, np.zeros((1, 33), np.int32))
    with pytest.raises(PoloptError, match="float32, bfloat16"):
        LanguageModel(LLAMA, "float16")
    with pytest.raises(PoloptError, match="missing 'vocab_size'"):
        DecoderConfig.from_dict({key: 4 for key in SIZES if key != "vocab_size"})
