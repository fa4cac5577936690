"""A layout computes what the padded rows compute: states, log-probabilities, gradients, values."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polopt import score
from polopt.errors import PoloptError
from polopt.models import DecoderConfig, LanguageModel, ValueModel
from polopt.models.config import RopeScaling
from polopt.models.layout import OUTSIDE, Room, plan, round_up_steps
from polopt.types import Stop, Trajectories

CONFIG = DecoderConfig(
    vocab_size=29,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=24,
    max_length=64,
)
LOCAL = dataclasses.replace(
    CONFIG,
    window=5,
    local_layers=(0,),
    attention_softcap=3.0,
    logit_softcap=4.0,
    local_rope_theta=100.0,
    rope_scaling=RopeScaling(kind="linear", factor=2.0),
    post_norms=True,
    norm_offset=1.0,
)
T = 24


def batch(prompts, rows, seed=0):
    """Rows `(prompt number, completion length, observed tokens in it)` of given prompt lengths."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(1, 29, n) for n in prompts]
    N = len(rows)
    tokens = rng.integers(0, 29, (N, T)).astype(np.int32)  # garbage in the padding
    turn = np.full((N, T), -1, np.int32)
    length = np.zeros(N, np.int32)
    for n, (p, own, observed) in enumerate(rows):
        at = len(texts[p])
        tokens[n, :at] = texts[p]
        length[n] = at + own
        turn[n, at : at + own] = 0
        turn[n, at + 1 : at + 1 + min(observed, own - 1)] = -1
    numbers = np.arange(N, dtype=np.int32)
    group = np.array([p for p, _, _ in rows], np.int32)
    return Trajectories(
        tokens=tokens,
        length=length,
        prompt_length=np.array([prompts[p] for p, _, _ in rows], np.int32),
        action_mask=turn >= 0,
        turn=turn,
        group=group,
        id=numbers,
        prompt=group,
        episode=numbers,
        reward_parts={"outcome": np.zeros((N, T), np.float32)},
        scored=np.ones(N, bool),
        stop=np.full(N, Stop.EOS, np.int32),
        logp_sampler=np.zeros((N, T), np.float32),
        log_keep=np.zeros((N, T), np.float32),
        temperature=np.linspace(0.7, 1.3, N).astype(np.float32),
        version=np.zeros((N, T), np.int32),
        columns={},
    )


BATCH = batch(
    (7, 3, 1),
    [(0, 9, 2), (0, 1, 0), (0, 14, 0), (1, 4, 0), (1, 6, 3), (1, 3, 0), (2, 12, 0), (2, 0, 0)],
)
WANT = ("logp", "entropy", "value")


def one_split(layout):
    return jax.tree.map(lambda x: x[0], layout)


@pytest.fixture(scope="module", params=[CONFIG, LOCAL], ids=["plain", "local"])
def models(request):
    policy, critic = LanguageModel(request.param), ValueModel(request.param)
    params = {"policy": policy.init(jax.random.key(0)), "critic": critic.init(jax.random.key(1))}
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: (x + 0.2 * rng.normal(size=x.shape)).astype(np.float32), params)
    return {"policy": policy, "critic": critic}, params


def test_the_same_numbers_and_gradients(models):
    modules, params = models
    layout = one_split(plan(BATCH, np.arange(8)))
    rng = np.random.default_rng(1)
    cotangent = {name: rng.normal(size=(8, T)).astype(np.float32) for name in WANT}

    def total(params, layout):
        out = score(
            {name: (modules[name], params[name]) for name in modules}, BATCH, WANT, layout=layout
        )
        made = {"logp": out.logp, **out.columns}
        return sum((made[name] * cotangent[name]).sum() for name in WANT), made

    def both(params):
        (_, made), grad = jax.value_and_grad(lambda p: total(p, layout), has_aux=True)(params)
        (_, plain), expected = jax.value_and_grad(lambda p: total(p, None), has_aux=True)(params)
        return made, plain, grad, expected

    made, plain, grad, expected = jax.jit(both)(params)
    chex.assert_trees_all_close(made, plain, atol=1e-5)
    scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected))
    chex.assert_trees_all_close(grad, expected, atol=1e-5 * scale)
    assert scale > 1


def test_shared_prompts_and_packed_rows_save_positions():
    layout = plan(BATCH, np.arange(8))
    assert layout.prompt.shape == (1, 3, 8)
    assert layout.room.positions < 0.6 * 8 * T
    # 9, 1 and 14 tokens continue the first prompt, the last of each unread: one bin of 24, for
    # two of 14 would be two for every prompt.
    segments = layout.segment[0].reshape(3, -1, 24)
    held = [(bins != OUTSIDE).sum() for bins in segments]
    assert held == [8 + 0 + 13, 3 + 5 + 2, 11]
    assert segments.shape[1] == 1


def test_bins_are_as_long_as_leaves_fewest_places_empty():
    # Five tokens of each are read: three bins of 8 would hold them, or one of 16.
    assert plan(batch((7,), [(0, 6, 0)] * 3), np.arange(3)).room == Room(1, 1, 8, 16)
    # Twice 14: one bin of 28 would have as many places, and more scores.
    assert plan(batch((7,), [(0, 15, 0)] * 2), np.arange(2)).room == Room(1, 2, 8, 14)


def test_a_known_room_is_taken_unless_a_new_one_is_much_smaller():
    made = batch((7,), [(0, 6, 0)] * 3)
    near, far, small = Room(1, 1, 8, 20), Room(2, 2, 20, 20), Room(1, 2, 8, 5)
    assert plan(made, np.arange(3), known={near, far, small}).room == near
    assert plan(made, np.arange(3), known={far, small}).room == Room(1, 1, 8, 16)


def test_splits_have_one_shape_and_rows_of_their_own():
    layout = plan(BATCH, np.array([[6, 7, 8, 0], [1, 2, 3, 4]]))
    assert layout.prompt_length.tolist() == [[1, 7], [7, 3]]
    assert layout.source.shape == (2, 4, T)
    assert not layout.source[0, 2].any()  # row 8 is beyond the batch


def test_a_row_without_room_is_refused():
    full = dataclasses.replace(
        BATCH, prompt_length=np.full(8, T, np.int32), action_mask=BATCH.turn > 9
    )
    with pytest.raises(PoloptError, match="row 0 is all prompt"):
        plan(full, np.arange(8))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 14), st.integers(0, 5)), min_size=1, max_size=9
    ),
    order=st.randoms(use_true_random=False),
)
def test_every_token_that_predicts_stands_at_its_source(rows, order):
    """What the flat state at `source` has read is the row up to the token, and nothing else."""
    made = batch((7, 3, 1), rows)
    chosen = np.arange(len(rows))
    order.shuffle(chosen)
    layout = one_split(plan(made, chosen))
    P, C = layout.prompt.shape[0], layout.tokens.shape[1]
    per_prompt = layout.tokens.shape[0] // P
    for place, n in enumerate(chosen):
        for t in np.flatnonzero(made.action_mask[n]):
            at = layout.source[place, t]
            if at < P:
                read = layout.prompt[at, : layout.prompt_length[at]]
            else:
                b, c = divmod(at - P, C)
                own = (layout.segment[b] == layout.segment[b, c]) & (np.arange(C) <= c)
                assert (layout.place[b][own] == np.arange(own.sum())).all()
                p = b // per_prompt
                prompt = layout.prompt[p, : layout.prompt_length[p]]
                read = np.concatenate([prompt, layout.tokens[b][own]])
            np.testing.assert_array_equal(read, made.tokens[n, :t])


def test_sizes_round_up_by_at_most_a_quarter():
    for size in range(1, 3000):
        assert size <= round_up_steps(size) <= max(8, size * 5 / 4 + 1)
