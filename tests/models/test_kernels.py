"""Attention by the TPU's kernels, emulated, against XLA's over masks that are written out here."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.errors import PoloptError, UsageError
from polopt.models import DecoderConfig, LanguageModel, ValueModel
from polopt.models.attention import Rule, attention
from polopt.models.kernels import choose, rows
from polopt.models.layout import Layout
from polopt.models.lora import LoraModel

PLAIN = Rule(scale=0.3, softcap=None, window=None)
LOCAL = dataclasses.replace(PLAIN, window=150)  # longer than a block, and shorter than a row
CAPPED = dataclasses.replace(LOCAL, softcap=2.0)
RULES = [
    pytest.param(PLAIN, id="plain", marks=pytest.mark.slow),
    pytest.param(LOCAL, id="local", marks=pytest.mark.slow),
    pytest.param(CAPPED, id="capped"),
]
H, K, D = 4, 2, 8
TOLERANCE = 2e-5


def draw(seed, *shapes):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


def seen(queries, keys, window):
    """bool[..., queries, keys]: what is not ahead of a query, nor beyond its window."""
    distance = queries[..., :, None] - keys
    return (distance >= 0) & (distance < (window or 10**6))


def assert_same(ours, reference, arrays, real):
    """Results at real queries, and gradients of their weighted sum."""
    weight = np.random.default_rng(0).normal(size=(*real.shape, H, D)) * real[..., None, None]

    def both(fn):
        def total(*arrays):
            out = fn(*arrays)
            return jnp.sum(out * weight), jnp.where(real[..., None, None], out, 0)

        return jax.jit(jax.grad(total, range(len(arrays)), has_aux=True))(*arrays)

    made, expected = both(ours), both(reference)
    for x, y in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=TOLERANCE)
        assert np.abs(y).max() > 0.1


@pytest.mark.parametrize("rule", RULES)
def test_rows_alone(rule):
    T = 300  # two blocks and a part of a third
    arrays = draw(0, (2, T, H, D), (2, K, T, D), (2, K, T, D))
    visible = seen(np.arange(T), np.arange(T), rule.window)[None]
    assert_same(
        lambda q, k, v: rows.attend(q, (k, v), rule, emulated=True),
        lambda q, k, v: attention(q, (k, v), visible, rule),
        arrays,
        np.ones((2, T), bool),
    )


P, G, S, T = 2, 2, 150, 260
LENGTH = np.array([S, 90], np.int32)  # prompts are ragged; a window ends within some rows
# Bins of several continuations, of one, and of less than one and padding.
ENDS = [[100, 200, 260], [260], [7], [120, 121, 240]]


def bins():
    """i32[N,T]: segment of each place (-1 outside), and how many of it come before."""
    segment, place = np.full((P * G, T), -1, np.int32), np.zeros((P * G, T), np.int32)
    for b, ends in enumerate(ENDS):
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            segment[b, start:end], place[b, start:end] = number, np.arange(end - start)
    return segment, place


@pytest.mark.parametrize("rule", RULES)
def test_bins_and_their_shared_prompts(rule):
    N, (segment, place) = P * G, bins()
    arrays = draw(1, (N, T, H, D), (N, K, T, D), (N, K, T, D), (P, K, S, D), (P, K, S, D))
    length = LENGTH.repeat(G)[:, None]
    position = length + place
    own = seen(np.arange(T), np.arange(T), rule.window) & (segment[:, :, None] == segment[:, None])
    shared = seen(position, np.arange(S), rule.window) & (np.arange(S) < length)[:, None]
    where = {"segment": segment, "length": LENGTH, "position": position}
    where = jax.tree.map(jnp.asarray, where)

    def ours(q, k, v, *prompt):
        return rows.attend(q, (k, v), rule, prompt=prompt, **where, emulated=True)

    def reference(q, k, v, *prompt):
        return attention(q, (k, v), own, rule, prompt, shared)

    assert_same(ours, reference, arrays, segment >= 0)


@pytest.mark.slow
def test_on_a_mesh_by_rows_and_heads():
    T, (segment, place) = 128, bins()
    segment, position = segment[:, :128], place[:, :128] + LENGTH.repeat(G)[:, None]
    arrays = draw(3, (4, T, H, D), *[(4, K, T, D)] * 2, *[(P, K, S, D)] * 2)
    arrays += tuple(map(jnp.asarray, (segment, LENGTH, position)))

    def total(q, k, v, a, b, segment, length, position):
        where = {"segment": segment, "length": length, "position": position, "emulated": True}
        return jnp.sum(rows.attend(q, (k, v), PLAIN, prompt=(a, b), **where) ** 2)

    gradient = jax.jit(jax.value_and_grad(total, range(5)))
    expected = gradient(*arrays)
    automatic = (jax.sharding.AxisType.Auto,) * 2
    with jax.set_mesh(jax.make_mesh((2, 2), ("data", "tensor"), automatic)):
        made = jax.jit(gradient)(*arrays)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-4), made, expected
    )


def test_the_kernels_are_for_tpus():
    assert choose("auto", "tpu") == "splash"
    assert choose("auto", "gpu") == "xla"
    with pytest.raises(UsageError, match=r"needs TPUs, and the devices are cpu"):
        choose("splash", "cpu")


def test_adapters_and_critics_are_computed_as_their_model_is():
    model = dataclasses.replace(decoder(), attention="splash")
    adapted = LoraModel.over(model, rank=2)
    assert adapted.attention == adapted.base_model.attention == "splash"
    assert ValueModel(model.config, attention="splash").decoder == model


def test_an_unknown_kind_is_refused():
    with pytest.raises(PoloptError, match="'flash': accepted are xla, splash, emulated"):
        dataclasses.replace(decoder(), attention="flash")


def decoder(**changes):
    """Two layers, of which one is local; heads of a size that the kernels decode."""
    sizes = {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 128,
        "mlp_size": 32,
        "max_length": 1024,
        "window": 20,
        "local_layers": (1,),
    }
    return LanguageModel(DecoderConfig(**sizes | changes))


@pytest.fixture(scope="module")
def model():
    made = decoder()
    params = made.init(jax.random.key(0))
    return made, jax.tree.map(lambda x: 3 * x if x.ndim == 2 else x, params)


def test_decoding_on_a_ring_that_goes_round(model):
    plain, params = model
    lengths = np.array([30, 9], np.int32)
    prompts = np.random.default_rng(0).integers(0, 32, (2, 30))
    start = 250  # at 256 the ring goes round

    def written(kind):
        handle = dataclasses.replace(plain, attention=kind)
        prompt, _ = handle.prefill(params, prompts, lengths)
        cache = handle.empty_cache(4, 256)

        def step(carry, number):
            cache, tokens = carry
            place = jnp.maximum(number - jnp.array([0, 4, 0, 9]), 0)  # some begin later
            cache, hidden = handle.decode(params, prompt, cache, tokens, start + number, place)
            return (cache, (tokens * 7 + number) % 32), hidden

        return jax.lax.scan(step, (cache, jnp.arange(4)), jnp.arange(16))[1]

    made, expected = (jax.jit(written, static_argnums=0)(kind) for kind in ("emulated", "xla"))
    np.testing.assert_allclose(made, expected, atol=TOLERANCE)


@pytest.mark.slow
def test_a_layout_through_layers_that_are_computed_again():
    plain = decoder(head_dim=8)
    segment, place = bins()
    tokens = np.random.default_rng(0).integers(0, 32, (P * G, T))
    layout = Layout(
        prompt=tokens[:P, :S],
        prompt_length=LENGTH,
        tokens=tokens,
        place=place,
        segment=segment,
        source=np.zeros((P * G, 1), np.int32),
    )
    real = np.concatenate([np.ones(P, bool), segment.ravel() >= 0])

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(kind, params):
        handle = dataclasses.replace(plain, attention=kind)

        def total(params):
            states = handle.states(params, layout, remat=kind != "xla") * real[:, None]
            return jnp.sum(jnp.sin(states)), states

        return jax.grad(total, has_aux=True)(params)

    params = plain.init(jax.random.key(0))
    made, expected = gradient("emulated", params), gradient("xla", params)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=TOLERANCE * scale), made, expected
    )
