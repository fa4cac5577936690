"""The chunked head: what it computes, what it leaves alone, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.columns import Column, entropy, logp
from polopt.models.head import MIN_ROWS, default_chunk
from polopt.models.score import score

from .toys import Tape, trajectories

N, T, V, D = 3, 8, 33, 4
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, V, (N, T)).astype(np.int32)
PARAMS = {
    "states": RNG.normal(size=(N, T, D)).astype(np.float32),
    "out": RNG.normal(size=(V, D)).astype(np.float32),
}
MASK = np.zeros((N, T), bool)
MASK[0, 3:6] = MASK[2, [1, 4, 7]] = True


def total(params, mask, want=("logp", "entropy"), chunk=4):
    out = score({"policy": (Tape(), params)}, trajectories(TOKENS, mask), want, chunk=chunk)
    return out.logp.sum() + sum(column.sum() for column in out.columns.values())


@pytest.mark.parametrize("planted", [np.nan, np.inf])
def test_what_stands_at_positions_that_are_not_scored_is_never_read(planted):
    """The state that predicts a token stands one position before it."""
    read = np.roll(MASK, -1, axis=1)
    planted_params = {**PARAMS, "states": np.where(read[..., None], PARAMS["states"], planted)}
    value_and_grad = jax.jit(jax.value_and_grad(total))
    clean, gradient = value_and_grad(PARAMS, MASK)
    value, change = value_and_grad(planted_params, MASK)
    assert value == clean
    np.testing.assert_array_equal(change["out"], gradient["out"])
    np.testing.assert_array_equal(change["states"], gradient["states"])
    assert not np.any(change["states"][~read])
    assert np.all(np.any(change["states"][read] != 0, axis=-1))


def test_work_follows_the_number_of_scored_tokens():
    seen = []

    def spy(logits, targets):
        jax.debug.callback(lambda z: seen.append(z.shape), logits["policy"])
        return logits["policy"][:, 0]

    want = ("logp", Column("spy", spy))
    for scored, chunks in ((0, 0), (1, 1), (4, 1), (5, 2), (21, 6)):
        mask = np.zeros((N, T), bool)
        mask[:, 1:].flat[:scored] = True
        seen.clear()
        jax.block_until_ready(total(PARAMS, mask, want))
        jax.effects_barrier()
        assert seen == [(4, V)] * chunks


def test_memory_is_a_few_chunks_of_logits_whatever_the_batch():
    chunk, vocabulary = 16, 1024
    rows, width = 8, 32
    tokens = np.zeros((rows, width), np.int32)
    params = {
        "states": np.ones((rows, width, D), np.float32),
        "out": np.ones((vocabulary, D), np.float32),
    }

    def f(params):
        batch = trajectories(tokens, np.ones((rows, width), bool))
        models = {"policy": (Tape(), params)}
        return score(models, batch, (logp(), entropy()), chunk=chunk).logp.sum()

    program = jax.jit(jax.grad(f)).lower(params).compile()
    chunk_bytes, full_bytes = chunk * vocabulary * 4, rows * width * vocabulary * 4
    assert program.memory_analysis().temp_size_in_bytes < 8 * chunk_bytes < full_bytes


def test_default_chunk():
    """8 MiB of logits, but no fewer than 128 rows or a quarter of the hidden size."""
    assert default_chunk(8192, 256) * 8192 * 4 == 2**23
    assert default_chunk(8192, 256, models=2) * 2 * 8192 * 4 == 2**23
    assert default_chunk(10**6, 256) == MIN_ROWS == 128
    assert default_chunk(131_072, 4096) == 1024
    assert default_chunk(50_257, 770) % 8 == 0


def test_gradient_of_a_state_that_is_used_once_is_softmax_minus_target():
    """By hand: d logp / d h = out[y] - sum_v p_v out[v]."""
    gradient = jax.grad(lambda p: total(p, MASK, ("logp",)))(PARAMS)["states"]
    for n, t in np.argwhere(MASK):
        z = PARAMS["out"] @ PARAMS["states"][n, t - 1]
        p = np.exp(z) / np.exp(z).sum()
        expected = PARAMS["out"][TOKENS[n, t]] - p @ PARAMS["out"]
        np.testing.assert_allclose(gradient[n, t - 1], expected, rtol=1e-4, atol=1e-6)
    assert jnp.count_nonzero(gradient) == D * MASK.sum()


def test_a_column_without_a_slope_at_equal_logits_leaves_padding_out():
    """The last chunk is padded with rows of zero logits, where a deviation has slope 0 / 0."""
    spread = Column("spread", lambda logits, targets: jnp.std(logits["policy"], axis=-1))
    gradient = jax.grad(lambda p: total(p, MASK, ("logp", spread)))(PARAMS)
    whole = jax.grad(lambda p: total(p, MASK, ("logp", spread), chunk=int(MASK.sum())))(PARAMS)
    for name in PARAMS:
        np.testing.assert_allclose(gradient[name], whole[name], rtol=1e-4, atol=1e-5)


def test_an_unembedding_of_several_blocks_and_a_rest():
    """On CPU its gradient is added 4 MiB at a time: here 2,048 rows, then 52."""
    vocabulary, hidden = 2100, 512
    params = {
        "states": RNG.normal(size=(N, T, hidden)).astype(np.float32),
        "out": 0.1 * RNG.normal(size=(vocabulary, hidden)).astype(np.float32),
    }
    gradient = jax.jit(jax.grad(lambda p: total(p, MASK, ("logp",))))(params)["out"]
    expected = np.zeros((vocabulary, hidden))
    for n, t in np.argwhere(MASK):
        state = params["states"][n, t - 1]
        z = np.exp(params["out"] @ state)
        expected -= np.outer(z / z.sum(), state)
        expected[TOKENS[n, t]] += state
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_a_fixed_unembedding_has_no_gradient_and_takes_no_product():
    class Fixed(Tape):
        fixed_unembedding = True

    def objective(params, module):
        out = score({"policy": (module, params)}, trajectories(TOKENS, MASK), chunk=4)
        return out.logp.sum()

    wanted = jax.grad(objective)(PARAMS, Tape())
    got = jax.grad(objective)(PARAMS, Fixed())
    assert np.any(wanted["out"])
    assert not np.any(got["out"])
    np.testing.assert_array_equal(got["states"], wanted["states"])

    def products(module):
        return str(jax.make_jaxpr(jax.grad(lambda p: objective(p, module)))(PARAMS)).count("dot_g")

    # Forward, again backward, and into the states; into the unembedding per platform.
    assert products(Fixed()) == 3 < products(Tape())
