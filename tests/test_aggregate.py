import numpy as np
import pytest
from oracles import aggregate as oracle

from polopt import aggregate
from polopt.aggregate import Window

STEPPED = {
    "token_mean": {},
    "sequence_mean": {},
    "sequence_sum_mean": {},
    "sequence_mean_sum": {},
    "constant_length": {"length": 7.0},
    "turn_mean": {},
    "group_mean": {"ddof": 1},
    "token_sum": {},
}
N, T, BATCHES = 12, 8, 20


def drawn(seed: int):
    """Ragged masks with holes and empty rows, several turns, groups whole within a step."""
    rng = np.random.default_rng(seed)
    mask = rng.random((N, T)) < rng.random((N, 1))
    group = rng.integers(0, 5, N).astype(np.int32)
    step = rng.integers(0, 3, 5)[group].astype(np.int32)
    turn = np.where(mask, np.arange(T) // 3 % 2 + rng.integers(0, 2, (N, 1)), -1).astype(np.int32)
    return mask, Window(step=step, group=group, turn=turn)


def weights(name: str, mask, window, **hyper):
    made = getattr(aggregate, name)(**hyper)
    return np.asarray(made.fn(mask, window, **made.arguments()))


def expected(name: str, mask, window, **hyper):
    given = {"turn_mean": {"turn": window.turn}, "group_mean": {"group": window.group}}
    steps = {} if name == "token_sum" else {"step_of": window.step}
    return getattr(oracle, name)(mask, **given.get(name, {}), **hyper, **steps)


@pytest.mark.parametrize("name", STEPPED)
def test_weights_are_those_of_the_loops(name):
    for seed in range(BATCHES):
        mask, window = drawn(seed)
        got = weights(name, mask, window, **STEPPED[name])
        np.testing.assert_allclose(got, expected(name, mask, window, **STEPPED[name]), rtol=1e-6)


def test_group_mean_divides_by_members_less_ddof():
    """A group of three, a group of two, and one that is too small but counted among the groups."""
    mask = np.zeros((6, T), bool)
    mask[:, :2], mask[4, :4] = True, True
    group = np.array([0, 0, 0, 1, 1, 2], np.int32)
    window = Window(step=np.zeros(6, np.int32), group=group, turn=np.zeros((6, T), np.int32))
    rows = weights("group_mean", mask, window, ddof=1).sum(axis=1)
    np.testing.assert_allclose(rows, [1 / 6, 1 / 6, 1 / 6, 1 / 3, 1 / 3, 0], rtol=1e-6)


@pytest.mark.parametrize("name", STEPPED)
def test_a_row_of_no_step_weighs_nothing_but_in_a_plain_sum(name):
    mask, window = drawn(0)
    outside = np.where(np.arange(N) < 6, window.step, -1).astype(np.int32)
    # A row outside every step has an empty mask wherever weights are made; see `prepare`.
    inside = mask & (outside >= 0)[:, None]
    moved = Window(step=outside, group=window.group, turn=window.turn)
    assert not weights(name, inside, moved, **STEPPED[name])[6:].any()


def test_on_rows_of_equal_length_all_agree_up_to_a_factor():
    """Identity 18 of the catalogue."""
    mask = np.zeros((4, T), bool)
    mask[:, 2:6] = True
    window = Window(
        step=np.zeros(4, np.int32),
        group=np.array([0, 0, 1, 1], np.int32),
        turn=np.where(mask, 0, -1).astype(np.int32),
    )
    factor = {
        "token_mean": 1 / 16,
        "sequence_mean": 1 / 16,
        "sequence_sum_mean": 1 / 4,
        "sequence_mean_sum": 1 / 4,
        "constant_length": 1 / 28,
        "turn_mean": 1 / 16,
        "group_mean": 1 / 8,
        "token_sum": 1.0,
    }
    for name, hyper in STEPPED.items():
        np.testing.assert_allclose(
            weights(name, mask, window, **hyper), mask * factor[name], rtol=1e-6, err_msg=name
        )
