import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.numerics import (
    SEQUENCE_LIMIT,
    centre,
    group_mean,
    group_std,
    label_ids,
    masked_sum,
    row_mean,
    running_sum,
    safe_exp,
    segment_max,
    segment_quotient,
    segment_total,
    suffix_sum,
    token_info,
    uniform_by_identity,
)

IDS = np.array([3, 0, 3, -1, 0, 2], np.int32)
ONES = np.ones(6, np.float32)


def near(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_safe_exp_is_exp_below_its_limit_and_flat_beyond():
    x = jnp.array([-80, -19, 0, 1, 19, 80], jnp.float32)
    near(safe_exp(x), np.exp(np.clip(np.asarray(x, np.float64), -20, 20)))
    slope = jax.vmap(jax.grad(safe_exp))(x)
    near(slope, [0, np.exp(-19), 1, np.e, np.exp(19), 0])
    near(safe_exp(jnp.float32(15.0), SEQUENCE_LIMIT), np.exp(10))


def test_masked_sums_never_read_outside():
    x = np.array([[1, np.nan, 2], [np.inf, -np.inf, np.nan]], np.float32)
    mask = np.array([[True, False, True], [False] * 3])
    assert masked_sum(x, mask, axis=1).tolist() == [3, 0]
    assert row_mean(x, mask).tolist() == [1.5, 0]
    info = token_info(x, mask)
    assert (float(info.sum), float(info.weight)) == (3, 2)


def test_a_yes_or_no_is_counted_and_not_saturated():
    mask = np.ones((2, 3), bool)
    info = token_info(mask & [[True, True, False]], mask)
    assert (float(info.sum), float(info.weight)) == (4, 6)
    assert float(info.value()) == pytest.approx(2 / 3)
    assert info.weight.dtype == jnp.float32


def test_segments_go_back_to_their_rows_and_ignore_padding():
    x = np.array([1, 2, 4, 100, 8, 16], np.float32)
    assert segment_total(x, IDS).tolist() == [5, 10, 5, 0, 10, 16]
    assert segment_max(x, IDS)[jnp.array([0, 1, 2, 4, 5])].tolist() == [4, 8, 4, 8, 16]


def test_group_statistics_are_weighted():
    x = np.array([1, 2, 4, 100, 8, 16], np.float32)
    weight = np.array([1, 1, 3, 1, 0, 0.5], np.float32)
    near(group_mean(x, IDS, weight)[jnp.array([0, 1, 2, 4, 5])], [13 / 4, 2, 13 / 4, 2, 16])
    near(centre(x, IDS, weight), [1 - 13 / 4, 0, 4 - 13 / 4, 0, 0, 0])
    near(group_std(x, IDS, ONES, 1)[jnp.array([0, 1, 5])], [np.sqrt(4.5), np.sqrt(18), 0])
    near(group_std(x, IDS, ONES, 0)[jnp.array([0, 1])], [1.5, 3])


def test_equal_members_are_centred_exactly():
    x = np.full(6, 0.8132702, np.float32)  # its float32 mean over three is another number
    same = np.array([0, 0, 0, -1, -1, -1], np.int32)
    for weight in (ONES, np.float32(1 / 3) * ONES):
        assert not np.any(centre(x, same, weight))
        assert not np.any(group_std(x, same, weight, 0))


def test_spread_of_huge_numbers_does_not_overflow():
    x = np.array([1e30, -1e30, 0, 0, 0, 0], np.float32)
    ids = np.array([0, 0, 1, 1, -1, -1], np.int32)
    near(group_std(x, ids, ONES, 0)[:2] / 1e30, [1, 1])


def test_suffix_sums_carry_over_what_is_masked_out():
    x = np.array([[1, 50, 2, 4, 70]], np.float32)
    mask = np.array([[True, False, True, True, False]])
    assert suffix_sum(x, 0.5, mask).tolist() == [[3, 4, 4, 4, 0]]


@pytest.mark.parametrize("width", [1, 64, 200])  # blocks have 64 tokens
def test_running_sums_are_numpys_cumsum_in_both_directions(width):
    x = np.random.default_rng(width).exponential(size=(3, width)).astype(np.float32)
    exact = x.astype(np.float64)
    near(running_sum(x), np.cumsum(exact, axis=1))
    near(running_sum(x, reverse=True), np.cumsum(exact[:, ::-1], axis=1)[:, ::-1])


def test_a_quotient_of_segments_reads_nothing_of_padding():
    x = np.array([1, 2, 3, np.nan, 4, 5], np.float32)
    y = np.array([2, 3, 2, np.inf, 5, 0], np.float32)
    near(segment_quotient(x, y, IDS, 0.5), [4 / 4.5, 6 / 8.5, 4 / 4.5, 0, 6 / 8.5, 10])


def test_uniforms_do_not_know_the_batch_around_them():
    key = jax.random.key(0)
    whole = np.asarray(uniform_by_identity(key, jnp.array([5, 9, 2]), 6))
    assert len(np.unique(whole)) == whole.size
    assert ((whole >= 0) & (whole < 1)).all()
    np.testing.assert_array_equal(uniform_by_identity(key, jnp.array([2, 5]), 4), whole[[2, 0], :4])


@pytest.mark.parametrize("kinds", [4, 2**31 - 1])
def test_label_ids_are_the_first_place_of_equal_labels(kinds):
    """Against a dictionary; many labels for few places, so that buckets of the hash are shared."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        group = rng.integers(-1, 5, 60)
        label = rng.choice(rng.integers(-1, kinds, 60), 60)
        first: dict[tuple[int, int], int] = {}
        pairs = list(zip(group.tolist(), label.tolist(), strict=True))
        expected = [-1 if min(p) < 0 else first.setdefault(p, i) for i, p in enumerate(pairs)]
        assert jax.jit(label_ids)(group, label).tolist() == expected
