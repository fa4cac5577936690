"""The engine draws what `generate` draws, whatever its lanes, and compiles nothing twice."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polopt.errors import PoloptError
from polopt.models import DecoderConfig, LanguageModel, MixedModel
from polopt.rollout import Decoding, generate
from polopt.rollout.engine import Engine, _fold
from polopt.rollout.lanes import Drawing
from polopt.types import Stop
from tests.train.toy import compilations

P, G, S, C = 5, 4, 6, 12
MODEL = LanguageModel(
    DecoderConfig(
        vocab_size=19,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        mlp_size=24,
        max_length=S + C,
        window=7,
        local_layers=(1,),
    )
)
RNG = np.random.default_rng(0)
PROMPTS = RNG.integers(3, 19, (P, S)).astype(np.int32)
LENGTHS = np.array([6, 3, 0, 1, 5], np.int32)  # one prompt is padding
IDS = RNG.permutation(1000)[: P * G].reshape(P, G).astype(np.int32)
OFFSET = np.arange(P * G, dtype=np.int32).reshape(P, G) % 3
KEY = jax.random.key(3)
DRAWING = Drawing(decoding=Decoding(temperature=1.3), eos_ids=(0,), stop_ids=(1,), allowed_vocab=18)


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    return jax.tree.map(lambda x: RNG.normal(size=x.shape, scale=0.3).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def expected(params):
    out = generate(
        MODEL,
        params,
        PROMPTS,
        LENGTHS,
        IDS.reshape(-1),
        key=KEY,
        group_size=G,
        max_new_tokens=C,
        decoding=DRAWING.decoding,
        eos_ids=DRAWING.eos_ids,
        stop_ids=DRAWING.stop_ids,
        allowed_vocab=DRAWING.allowed_vocab,
        offset=OFFSET.reshape(-1),
    )
    return jax.device_get(out)


def assert_same(found, expected):
    for field in dataclasses.fields(expected):
        left, right = getattr(found, field.name), getattr(expected, field.name)
        if left is None or left.dtype.kind == "i":
            np.testing.assert_array_equal(left, right, err_msg=field.name)
        else:
            np.testing.assert_allclose(left, right, atol=1e-5, err_msg=field.name)


def test_the_rows_are_worth_comparing(expected):
    lengths = expected.length[expected.stop > 0]
    assert len(set(lengths.tolist())) > 4
    assert len(set(expected.stop.tolist())) == 4  # padding, end, stop token, length


@pytest.mark.parametrize(
    "lanes", [None, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 8, 16))]
)
def test_any_number_of_lanes_draws_the_same(lanes, params, expected):
    engine = Engine(model=MODEL, drawing=DRAWING, max_new_tokens=C, lanes=lanes)
    assert_same(engine(params, KEY, PROMPTS, LENGTHS, IDS, OFFSET), expected)


@pytest.mark.slow
def test_without_moving_lanes_together(params, expected):
    engine = Engine(model=MODEL, drawing=DRAWING, max_new_tokens=C, compact=False)
    assert_same(engine(params, KEY, PROMPTS, LENGTHS, IDS, OFFSET), expected)


def test_a_second_call_compiles_nothing(params):
    engine = Engine(model=MODEL, drawing=DRAWING, max_new_tokens=C, lanes=3)
    engine(params, KEY, PROMPTS, LENGTHS, IDS, OFFSET)
    with compilations() as count:
        engine(params, jax.random.key(9), PROMPTS[::-1], LENGTHS[::-1], IDS + 1, OFFSET)
        assert count() == 0


def test_only_padding_is_nothing(params):
    engine = Engine(model=MODEL, drawing=DRAWING, max_new_tokens=C)
    found = engine(params, KEY, PROMPTS, 0 * LENGTHS, IDS)
    assert not found.length.any()


@pytest.mark.slow
def test_two_models_that_write_together(params):
    pair = MixedModel(MODEL, MODEL, 0.5)
    one = Engine(model=pair, drawing=DRAWING, max_new_tokens=C, lanes=3)
    other = dataclasses.replace(one, lanes=None)
    both = params, jax.tree.map(lambda x: 0.5 * x, params)
    found = [engine(both, KEY, PROMPTS, LENGTHS, IDS) for engine in (one, other)]
    assert_same(*found)


def test_rows_that_stop_earlier_than_others(params, expected):
    most = 1 + np.arange(P * G, dtype=np.int32).reshape(P, G) * 5 % C
    engine = Engine(model=MODEL, drawing=DRAWING, max_new_tokens=C, lanes=3)
    found = engine(params, KEY, PROMPTS, LENGTHS, IDS, OFFSET, most)
    cut = most.reshape(-1)
    np.testing.assert_array_equal(found.length, np.minimum(expected.length, cut))
    kept = np.arange(C) < cut[:, None]
    np.testing.assert_array_equal(found.tokens, np.where(kept, expected.tokens, 0))
    early = expected.length > cut
    assert early.any()
    assert (found.stop[early] == Stop.LENGTH).all()


def test_a_length_beyond_the_room_is_refused(params):
    engine = Engine(model=MODEL, drawing=DRAWING, max_new_tokens=C)
    with pytest.raises(PoloptError, match=f"most is {C + 1} to {C + 1} tokens: give 1 to {C}"):
        engine(params, KEY, PROMPTS, LENGTHS, IDS, most=np.full_like(IDS, C + 1))


def test_no_lanes_are_refused():
    with pytest.raises(PoloptError, match=r"Engine\.lanes is 0"):
        Engine(model=MODEL, drawing=DRAWING, max_new_tokens=C, lanes=0)


@given(
    rows=st.lists(st.integers(-1, 0), min_size=16, max_size=16),
    width=st.sampled_from([1, 2, 4, 8]),
)
@settings(max_examples=200)
def test_folding_keeps_every_running_lane_and_its_slot(rows, width):
    row_of = [i if row == 0 else -1 for i, row in enumerate(rows)]
    slots, chosen, narrow = _fold(row_of, width, 8)
    running = sum(row == 0 for row in rows)
    if not slots:
        assert running > 0 or not slots
        return
    assert len(chosen) == len(slots) * narrow == 8 or narrow * (8 // narrow) == len(chosen)
    kept = [lane for lane in chosen if lane >= 0]
    assert sorted(kept) == [i for i, row in enumerate(rows) if row == 0]
    for place, lane in enumerate(chosen):
        assert lane < 0 or slots[place // narrow] == lane // width
