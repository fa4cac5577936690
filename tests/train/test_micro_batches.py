"""Rows cut into micro-batches: none is lost, and each is as large as its bounds allow."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models.test_layout import batch

from polopt.models.layout import plan
from polopt.train.micro_batches import MicroBatches, room_of
from polopt.train.rows import pad_rows, round_up

PROMPTS, GROUP, LONGEST = (7, 5, 6), 4, 9
GROUPS = batch(PROMPTS, [(p, LONGEST, 0) for p in range(3) for _ in range(GROUP)])
RULE = MicroBatches(12, group_size=GROUP, completion=GROUPS.tokens.shape[1] - max(PROMPTS))


def cut(rule, trajectories, rows, layouts=True):
    """The splits, and the positions that a micro-batch computes."""
    splits, layout = rule.cut(trajectories, rows, rooms=[] if layouts else None)
    if layout is None:
        return splits, splits.shape[1] * trajectories.tokens.shape[1]
    assert layout.source.shape[:2] == splits.shape
    return splits, (layout.prompt.size + layout.tokens.size) // len(splits)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 15), min_size=12, max_size=12),
    parts=st.sampled_from([1, 2, 4]),
    most_rows=st.none() | st.integers(1, 16),
    most_tokens=st.none() | st.integers(1, 200),
    packed=st.booleans(),
    layouts=st.booleans(),
)
def test_every_row_is_in_one_micro_batch_within_its_bounds(
    lengths, parts, most_rows, most_tokens, packed, layouts
):
    made = batch(PROMPTS, [(n // GROUP, length, 0) for n, length in enumerate(lengths)])
    rule = dataclasses.replace(
        RULE, parts=parts, most_rows=most_rows, most_tokens=most_tokens, packed=packed
    )
    splits, positions = cut(rule, made, np.arange(12), layouts)
    flat = splits.reshape(-1)
    np.testing.assert_array_equal(flat[:12], np.arange(12))
    assert (flat[12:] == 12).all()
    assert len(splits) % parts == 0
    assert splits.shape[1] <= min(most_rows or 12, -(-12 // parts))
    assert splits.shape[1] == 1 or positions <= (most_tokens or np.inf)
    # No bound asks for smaller ones: twice as many rows would break it.
    looser = dataclasses.replace(rule, most_tokens=None)
    most, whole = cut(looser, made, np.arange(12), layouts)
    if whole <= (most_tokens or np.inf):
        assert splits.shape == most.shape


def test_long_batches_take_more_passes_than_short_ones():
    short, long = (batch((4,), [(0, own, 0)] * 8) for own in (4, 20))
    rule = MicroBatches(8, group_size=8, packed=True, most_tokens=64)
    passes = [len(cut(rule, made, np.arange(8))[0]) for made in (short, long)]
    # 8 rows of 3 tokens after 4 fit; of 19, four or more would need 4 x 19.
    assert passes == [1, 4]


def test_steps_with_fewer_rows_have_the_shape_of_the_others():
    splits, _ = cut(RULE, GROUPS, np.arange(8))
    assert splits.shape == (1, 12)


def test_a_known_room_beyond_the_bound_is_not_taken():
    rule = MicroBatches(4, group_size=4, packed=True)
    rooms = []
    rule.cut(GROUPS, np.arange(4), rooms=rooms)
    (known,) = rooms
    bound = dataclasses.replace(rule, most_tokens=known.positions - 1)
    splits, positions = cut(bound, GROUPS, np.arange(4))
    assert positions < known.positions
    assert len(splits) == 2


# ---------------------------------------------------------------- room without packing


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 5, 8, 12])
def test_there_is_room_for_every_micro_batch_of_whole_groups(micro_batch):
    rows = pad_rows(np.arange(12), round_up(12, micro_batch), 12)
    room = room_of(micro_batch, GROUP, max(PROMPTS), LONGEST)
    layout = plan(GROUPS, rows.reshape(-1, micro_batch), room=room)
    held = (np.asarray(layout.segment) >= 0).sum()
    assert held == 12 * (LONGEST - 1)  # what the last token is followed by, nobody asks


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 8])
def test_where_groups_and_micro_batches_divide_none_is_computed_twice(micro_batch):
    room = room_of(micro_batch, GROUP, max(PROMPTS), LONGEST)
    assert room.prompts * room.bins == micro_batch
    assert room.prompts == max(micro_batch // GROUP, 1)
