"""Adapters are the merged model with fewer things that move; quantised bases are near it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.errors import PoloptError
from polopt.models import DecoderConfig, LanguageModel
from polopt.models.layout import plan
from polopt.models.lora import LoraModel, check_applied, join, pairs, split
from polopt.models.quantise import dequantise, quantise
from polopt.models.score import score

from .toys import trajectories

CONFIG = DecoderConfig(
    vocab_size=40,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_size=24,
    max_length=32,
    tie_embeddings=False,
    qkv_bias=True,
)
BASE = LanguageModel(CONFIG)
MODEL = LoraModel.over(BASE, rank=3, alpha=6.0)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 40, (4, 9)).astype(np.int32)
LENGTH = np.array([9, 7, 8, 9], np.int32)


@functools.cache
def weights():
    """Of the base: far from uniform."""
    return jax.tree.map(
        lambda leaf: 6 * leaf if leaf.ndim == 2 else leaf, BASE.init(jax.random.key(0))
    )


def moved(model, base):
    """Parameters whose adapters have an effect."""
    fresh = model.init(jax.random.key(1), base)["adapters"]
    return join(jax.tree.map(lambda leaf: leaf + 0.2 * noise(leaf), fresh), base)


def noise(leaf):
    return np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(np.float32)


@functools.cache
def quantised_model(kind):
    base, packed = quantise(BASE, weights(), kind)
    return LoraModel.over(base, rank=3, alpha=6.0), packed


def batch():
    mask = np.zeros(TOKENS.shape, bool)
    mask[:, 4:] = np.arange(4, 9) < LENGTH[:, None]
    made = trajectories(TOKENS, mask, LENGTH)
    made.prompt_length[:] = 4
    TOKENS[1, :4], TOKENS[3, :4] = TOKENS[0, :4], TOKENS[2, :4]
    made.group[:] = [0, 0, 2, 2]
    return made


@pytest.mark.parametrize(("dtype", "kind"), [("float32", None), ("bfloat16", "nf4")])
def test_fresh_adapters_change_nothing_and_each_can(dtype, kind):
    base, params = LanguageModel(CONFIG, dtype), weights()
    if kind:
        base, params = quantise(base, params, kind)
    model = LoraModel.over(base, rank=2)
    params = model.init(jax.random.key(1), params)
    assert not any(np.any(b) for _, (_, b) in pairs(params["adapters"]))
    check_applied(model, params)
    dead = jax.tree.map(jnp.copy, params)
    mlp = dead["adapters"]["layers"]["1"]["mlp"]["up"]
    mlp["kernel_lora_a"] = jnp.zeros_like(mlp["kernel_lora_a"])
    with pytest.raises(PoloptError, match=r"without effect on the model: layers/1/mlp/up$"):
        check_applied(model, dead)


def test_parameters_come_apart_and_the_base_is_not_copied():
    fresh = MODEL.init(jax.random.key(1), weights())
    moving, fixed = split(fresh)
    assert fixed is weights()
    assert join(moving, fixed) == fresh
    assert len(jax.tree.leaves(moving)) == 2 * len(MODEL.adapted()) == 2 * 7 * 2
    _, packed = quantise(BASE, weights(), "int8")
    assert packed["embed"] is weights()["embed"]
    of, was = (tree["layers"]["0"]["attention"]["q"] for tree in (packed, fixed))
    assert of["bias"] is was["bias"]
    assert of["kernel"]["array"]["qvalue"].dtype == jnp.int8
    a = moving["layers"]["0"]["mlp"]["down"]["kernel_lora_a"]
    assert 0.8 * 24**-0.5 < np.abs(a).max() < 24**-0.5


@pytest.mark.slow
def test_everything_is_as_of_the_merged_model():
    params = moved(MODEL, weights())
    dense, merged = MODEL.merge(params)
    assert dense == BASE
    layout = jax.tree.map(lambda x: x[0], plan(batch(), np.arange(4)))

    @functools.partial(jax.jit, static_argnums=0)
    def everything(model, params):
        hidden = model.hidden(params, TOKENS)
        prompt, last = model.prefill(params, TOKENS[::2, :4], np.full(2, 4))
        cache = model.empty_cache(4, 5)
        _, after = model.decode(params, prompt, cache, TOKENS[:, 4], 0)
        return {
            "hidden": hidden,
            "logits": model.logits(params, hidden),
            "states": model.states(params, layout, remat=True),
            "prefill": last,
            "decode": after,
        }

    wanted, got = everything(dense, merged), everything(MODEL, params)
    for name in wanted:
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(got[name], wanted[name], atol=1e-5 * scale, err_msg=name)
    np.testing.assert_allclose(got["decode"], got["hidden"][:, 4], atol=1e-5)
    assert np.abs(BASE.hidden(weights(), TOKENS) - got["hidden"]).max() > 0.5


@pytest.mark.slow
def test_over_a_quantised_base_too():
    params = moved(*quantised_model("int8"))
    model, _ = quantised_model("int8")
    dense, merged = model.merge(params)
    assert dense == BASE
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, weights())
    run = jax.jit(lambda model, params: model.hidden(params, TOKENS), static_argnums=0)
    got, near = run(model, params), run(BASE, MODEL.merge(join(params["adapters"], weights()))[1])
    np.testing.assert_allclose(got, run(dense, merged), atol=1e-5)
    assert 1e-3 < np.linalg.norm(got - near) / np.linalg.norm(near) < 2e-2


def test_the_gradient_is_that_of_the_merged_matrices_projected():
    """`dA = s dW Bᵀ` and `dB = s Aᵀ dW`, in float64 from the gradient of the merged model."""
    params, made = moved(MODEL, weights()), batch()
    dense, merged = MODEL.merge(params)
    weight = RNG.normal(size=TOKENS.shape).astype(np.float32)

    def objective(params, model):
        return jnp.sum(score({"policy": (model, params)}, made).logp * weight)

    def gradient(model):
        return jax.jit(jax.grad(functools.partial(objective, model=model)))

    moving, base = split(gradient(MODEL)(params))
    assert not np.any(base["unembed"]["embedding"])
    of_dense = gradient(dense)(merged)
    assert np.any(of_dense["unembed"]["embedding"])
    adapters = dict(pairs(params["adapters"]))
    for path, got in pairs(moving):
        node = of_dense
        for part in path.split("/"):
            node = node[part]
        change = np.asarray(node["kernel"], np.float64) * MODEL.alpha / MODEL.rank
        a, b = (np.asarray(leaf, np.float64) for leaf in adapters[path])
        for mine, wanted in zip(got, (change @ b.T, a.T @ change), strict=True):
            np.testing.assert_allclose(mine, wanted, atol=2e-5 * np.abs(wanted).max())


# Half the widest step between two levels, as a share of the largest number of a block: 255 and 15
# steps from end to end, and the gap between NF4's two lowest levels (2305.14314, appendix E).
STEPS = {"int8": 1 / 255, "int4": 1 / 15, "nf4": (1 - 0.6961928) / 2}


@pytest.mark.parametrize("kind", STEPS)
def test_quantised_numbers_lie_within_half_a_step(kind):
    base, packed = quantise(BASE, weights(), kind)
    plain, back = dequantise(base, packed)
    assert plain == BASE
    block = 24 if kind == "int8" else 8  # the largest that divides 16 and 24, and at most 64
    for path in MODEL.adapted():
        of = functools.reduce(lambda node, part: node[part], path.split("/"), weights())
        got = functools.reduce(lambda node, part: node[part], path.split("/"), back)["kernel"]
        kernel = np.asarray(of["kernel"])
        rows = len(kernel) if kind == "int8" else block
        blocks = kernel.reshape(-1, rows, kernel.shape[1])
        room = np.abs(blocks).max(1, keepdims=True) * STEPS[kind] * (1 + 1e-4)
        assert np.all(np.abs(got.reshape(blocks.shape) - blocks) <= room)
        assert len(np.unique(got[:rows, 0])) <= 16 or kind == "int8"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoraModel.over(BASE, targets=("attn/q",)), r"'attn/q' is none of layers/\*/att"),
        (lambda: LoraModel.over(BASE, targets=("(q",)), "'\\(q' is no expression"),
        (lambda: LoraModel.over(BASE, rank=0), "rank is 0"),
        (lambda: LoraModel.over(BASE, alpha=0.0), "alpha 0.0"),
        (lambda: quantise(BASE, weights(), "int3"), "'int3': accepted are int8, int4, nf4"),
        (lambda: quantise(*quantise(BASE, weights(), "int8"), "nf4"), "are int8 already"),
        (
            lambda: quantise(LanguageModel(DecoderConfig(**ODD)), {}, "nf4"),
            "multiples of 8; this model has 16, 20",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make, message):
    with pytest.raises(PoloptError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


ODD = {
    "vocab_size": 8,
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "mlp_size": 20,
    "max_length": 8,
}


def test_targets_are_whole_paths_with_or_without_their_layer():
    def adapted(*targets):
        return LoraModel.over(BASE, targets=targets).adapted()

    assert adapted("attention/(q|v)") == tuple(
        f"layers/{i}/attention/{name}" for i in (0, 1) for name in "qv"
    )
    assert adapted("layers/1/mlp/up", "attention/k") == (
        "layers/0/attention/k",
        "layers/1/attention/k",
        "layers/1/mlp/up",
    )
    assert LoraModel.over(BASE) == LoraModel.over(BASE)
    assert hash(LoraModel.over(BASE)) == hash(LoraModel.over(BASE)) != hash(BASE)
