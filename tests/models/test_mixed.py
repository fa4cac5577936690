"""Two decoders that write together: against their distributions, mixed by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.errors import PoloptError
from polopt.models import DecoderConfig, LanguageModel, MixedModel
from polopt.rollout import Decoding
from polopt.rollout.sampler import generate

SHAPE = {"vocab_size": 24, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4}
FIRST = LanguageModel(
    DecoderConfig(**SHAPE, hidden_size=8, num_layers=1, mlp_size=8, max_length=24)
)
SECOND = LanguageModel(
    DecoderConfig(**SHAPE, hidden_size=12, num_layers=2, mlp_size=8, max_length=16)
)
LENGTHS = np.array([3, 5], np.int32)
PROMPTS = np.random.default_rng(0).integers(0, 24, (2, 5)).astype(np.int32)
IDS = np.arange(6, dtype=np.int32)


@functools.cache
def params(model):
    made = model.init(jax.random.key(model.config.num_layers))
    return jax.tree.map(lambda leaf: leaf * 10 if leaf.ndim == 2 else leaf, made)


def drawn(model, weights, temperature):
    return generate(
        model,
        weights,
        PROMPTS,
        LENGTHS,
        IDS,
        key=jax.random.key(9),
        group_size=3,
        max_new_tokens=4,
        decoding=Decoding(temperature=temperature),
        eos_ids=(),
    )


def log_probs(model, out, temperature):
    """f64[6,4,V] of every completion token, from whole rows without a cache."""
    found = []
    for n in range(6):
        start = LENGTHS[n // 3]
        row = np.concatenate([PROMPTS[n // 3, :start], out.tokens[n]])[None]
        logits = model.logits(params(model), model.hidden(params(model), row))[0]
        logits = np.asarray(logits[start - 1 : -1], np.float64) / temperature
        found.append(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    return np.stack(found)


@pytest.mark.slow
def test_what_is_recorded_is_the_mixture_that_was_sampled():
    temperature, alpha = 0.6, 0.2
    mixed = MixedModel(FIRST, SECOND, alpha, temperature)
    assert mixed.config.max_length == 16
    out = drawn(mixed, (params(FIRST), params(SECOND)), temperature)
    own, other = (log_probs(model, out, temperature) for model in (FIRST, SECOND))
    mixture = np.log((1 - alpha) * np.exp(own) + alpha * np.exp(other))
    np.testing.assert_allclose(np.exp(mixture).sum(-1), 1, rtol=1e-6)
    expected = np.take_along_axis(mixture, np.asarray(out.tokens)[..., None], 2)[..., 0]
    np.testing.assert_allclose(out.logp_sampler, expected, atol=2e-5)
    assert not np.asarray(out.log_keep).any()
    apart = np.take_along_axis(own, np.asarray(out.tokens)[..., None], 2)[..., 0]
    assert np.abs(apart - expected).max() > 0.1


@pytest.mark.parametrize(("alpha", "who"), [(0.0, FIRST), (1.0, SECOND)])
def test_a_share_of_nothing_or_all_is_one_of_the_two(alpha, who):
    mixed = drawn(MixedModel(FIRST, SECOND, alpha), (params(FIRST), params(SECOND)), 1.0)
    alone = drawn(who, params(who), 1.0)
    np.testing.assert_array_equal(mixed.tokens, alone.tokens)
    np.testing.assert_allclose(mixed.logp_sampler, alone.logp_sampler, atol=1e-5)


def test_vocabularies_must_agree():
    other = LanguageModel(
        DecoderConfig(
            **{**SHAPE, "vocab_size": 25}, hidden_size=8, num_layers=1, mlp_size=8, max_length=24
        )
    )
    with pytest.raises(PoloptError, match=r"must share a vocabulary; sizes are \(24, 25\)"):
        MixedModel(FIRST, other, 0.5)
    assert MixedModel(FIRST, SECOND, 0.5) == MixedModel(FIRST, SECOND, 0.5)
    states = jnp.ones((2, 8)), jnp.ones((2, 12))
    logits = MixedModel(FIRST, SECOND, 0.5).logits((params(FIRST), params(SECOND)), states)
    np.testing.assert_allclose(jnp.exp(logits).sum(-1), 1, rtol=1e-5)
