"""Draws: distribution, filters and log-probabilities against NumPy; random numbers by identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from polopt.errors import PoloptError
from polopt.rollout.draw import Decoding, draw, inverse_cdf, row_keys, uniform_at

V = 37  # no multiple of a block
LOGITS = np.random.default_rng(0).normal(0, 2, (8, V)).astype(np.float32)
UNIFORM = np.random.default_rng(1).uniform(size=8).astype(np.float32)

DECODINGS = [
    Decoding(),
    Decoding(temperature=0.6),
    Decoding(top_k=5),
    Decoding(top_k=100, top_p=0.7),
    Decoding(top_p=0.4),
    Decoding(top_p=0.95, temperature=1.7),
    Decoding(min_p=0.2),
    Decoding(top_k=12, top_p=0.8, min_p=0.05, temperature=1.3),
]


def numpy_kept(logits, decoding, allowed):
    """bool[V] by sorting one row, each filter on what the one before it kept."""
    p = np.exp(logits.astype(np.float64) / decoding.temperature)
    p[allowed:] = 0
    order = np.argsort(-p)[:allowed]
    if decoding.top_k:
        order = order[: decoding.top_k]
    share = p[order] / p[order].sum()
    order = order[np.cumsum(share) - share < decoding.top_p]
    order = order[p[order] >= decoding.min_p * p.max()]
    kept = np.zeros(len(p), bool)
    kept[order] = True
    return kept


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("allowed", [None, 30])
def test_filters_and_log_probs_equal_a_numpy_sort(decoding, allowed):
    run = jax.jit(lambda uniform: draw(LOGITS, uniform, decoding, allowed_vocab=allowed))
    for uniform in (UNIFORM, np.zeros(8, np.float32), np.full(8, 1 - 2**-24, np.float32)):
        drawn = run(uniform)
        for n, row in enumerate(LOGITS):
            kept = numpy_kept(row, decoding, allowed or V)
            tempered = row.astype(np.float64) / decoding.temperature
            p = np.exp(tempered) / np.exp(tempered).sum()
            cdf = np.cumsum(np.where(kept, p, 0)) / p[kept].sum()
            token = int(drawn.token[n])
            assert kept[token]
            assert cdf[token] - p[token] / p[kept].sum() - 1e-6 <= uniform[n] <= cdf[token] + 1e-6
            np.testing.assert_allclose(
                drawn.logp_sampler[n], np.log(p[token] / p[kept].sum()), atol=1e-5
            )
            np.testing.assert_allclose(drawn.log_keep[n], np.log(p[kept].sum()), atol=1e-5)


def test_draws_follow_the_distribution():
    rows = 40_000
    logits = np.random.default_rng(2).normal(size=V).astype(np.float32)

    @jax.jit
    def sample(key):
        uniform = uniform_at(row_keys(key, jnp.arange(rows)), jnp.int32(3))
        return draw(jnp.broadcast_to(logits[None], (rows, V)), uniform, Decoding(top_p=0.9)).token

    counts = np.bincount(sample(jax.random.key(0)), minlength=V)
    p = np.where(numpy_kept(logits, Decoding(top_p=0.9), V), np.exp(logits.astype(np.float64)), 0)
    expected = rows * p / p.sum()
    assert (counts[expected == 0] == 0).all()
    assert stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3


def test_consecutive_positions_and_ids_are_independent():
    keys = row_keys(jax.random.key(0), jnp.arange(64))
    table = np.asarray(jax.jit(jax.vmap(uniform_at, (None, 0)))(keys, jnp.arange(64)))
    assert stats.kstest(table.ravel(), "uniform").pvalue > 1e-3
    for axis in (0, 1):
        a, b = np.moveaxis(table, axis, 0)[:-1], np.moveaxis(table, axis, 0)[1:]
        assert stats.pearsonr(a.ravel(), b.ravel()).pvalue > 1e-3


def test_random_numbers_belong_to_ids():
    ids = np.array([7, 3, 900, 0, 41])
    at = jax.jit(lambda ids: uniform_at(row_keys(jax.random.key(5), ids), jnp.int32(11)))
    whole = np.asarray(at(ids))
    np.testing.assert_array_equal(at(ids[::-1]), whole[::-1])
    np.testing.assert_array_equal(at(ids[1:3]), whole[1:3])
    assert len(set(whole.tolist())) == 5


def test_an_index_of_weight_zero_is_never_drawn():
    """Random weights of all magnitudes, most of them zero, at the edges of the unit interval."""
    rng = np.random.default_rng(3)
    weights = np.exp(rng.uniform(-30, 0, (4000, 70))) * (rng.uniform(size=(4000, 70)) < 0.1)
    weights[:, 0] += weights.sum(-1) == 0
    weights = weights.astype(np.float32)
    for edge in (0.0, 1 - 2**-24):
        index, total = jax.jit(inverse_cdf)(weights, np.full(4000, edge, np.float32))
        assert (np.take_along_axis(weights, np.asarray(index)[:, None], 1) > 0).all()
        np.testing.assert_allclose(total, weights.sum(-1), rtol=1e-5)


def test_greedy_is_certain_of_the_most_likely_allowed_token():
    decoding = Decoding(greedy=True, temperature=0.5)
    drawn = draw(LOGITS, UNIFORM, decoding, allowed_vocab=20)
    np.testing.assert_array_equal(drawn.token, LOGITS[:, :20].argmax(-1))
    np.testing.assert_array_equal(drawn.logp_sampler, 0)
    p = np.exp(2 * LOGITS.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_allclose(drawn.log_keep, np.log(p[:, :20].max(-1)), atol=1e-5)


def test_temperature_is_traced_and_may_differ_by_row():
    traces = []

    @jax.jit
    def run(decoding):
        traces.append(decoding)
        return draw(LOGITS, UNIFORM, decoding)

    cold, hot = run(Decoding(temperature=0.5)), run(Decoding(temperature=2.0))
    assert len(traces) == 1
    mixed = run(Decoding(temperature=jnp.array([0.5, 2.0] * 4)))
    for n in range(8):
        assert mixed.token[n] == (cold, hot)[n % 2].token[n]
        np.testing.assert_allclose(
            mixed.logp_sampler[n], (cold, hot)[n % 2].logp_sampler[n], atol=1e-6
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0: give a number above 0 .or greedy=True"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": 1.0}, "min_p is 1.0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(PoloptError, match=message):
        Decoding(**settings)
