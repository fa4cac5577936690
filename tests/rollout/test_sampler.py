"""The sampler against the uncached forward pass, and its draws against the shape of the batch."""

import jax
import numpy as np
import pytest

from polopt.errors import PoloptError
from polopt.models import DecoderConfig, LanguageModel
from polopt.rollout import Decoding, generate
from polopt.types import Stop

MODEL = LanguageModel(
    DecoderConfig(
        vocab_size=23,
        hidden_size=16,
        num_layers=1,  # cached layers on top of each other are tested with the decoder
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        mlp_size=24,
        max_length=32,
    )
)
P, G, S, C = 3, 4, 5, 7
N = P * G
PROMPTS = np.random.default_rng(0).integers(0, 23, (P, S)).astype(np.int32)
LENGTHS = np.array([5, 1, 3], np.int32)
IDS = np.arange(100, 100 + N, dtype=np.int32)
KEY = jax.random.key(7)
EOS, STOPS = (1,), (2, 3)


@pytest.fixture(scope="module")
def params():
    params = MODEL.init(jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf * 12 if leaf.ndim == 2 else leaf, params)


@pytest.fixture(scope="module")
def uncached(params):
    """f64[N,C,V]: logits from the full forward pass, at the positions that drew each completion."""

    @jax.jit
    def logits(tokens):
        return MODEL.logits(params, MODEL.hidden(params, tokens))

    def run(completions):
        rows = np.zeros((N, S + C), np.int32)
        for n, completion in enumerate(np.asarray(completions)):
            length = LENGTHS[n // G]
            rows[n, :length] = PROMPTS[n // G, :length]
            rows[n, length : length + C] = completion
        out = np.asarray(logits(rows), np.float64)
        return np.stack([out[n, LENGTHS[n // G] - 1 :][:C] for n in range(N)])

    return run


def sample(params, prompts=PROMPTS, lengths=LENGTHS, ids=IDS, **changes):
    options = {
        "key": KEY,
        "decoding": Decoding(temperature=0.8),
        "group_size": G,
        "max_new_tokens": C,
        "eos_ids": EOS,
        "stop_ids": STOPS,
    }
    return generate(MODEL, params, prompts, lengths, ids, **{**options, **changes})


@pytest.fixture(scope="module")
def plain(params):
    return jax.tree.map(np.asarray, sample(params))


def unfiltered(logits, tokens, temperature):
    """f64[N,C]: log-softmax of the tempered logits at the tokens."""
    logits = logits / temperature
    logits = logits - logits.max(-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(logp, tokens[:, :, None], -1)[:, :, 0]


def written(generated):
    return np.arange(C)[None] < generated.length[:, None]


def test_logp_is_that_of_the_uncached_forward_pass(plain, uncached):
    expected = unfiltered(uncached(plain.tokens), plain.tokens, 0.8)
    real = written(plain)
    np.testing.assert_allclose(plain.logp_sampler[real], expected[real], atol=1e-5)
    np.testing.assert_array_equal(plain.log_keep, 0)


def test_rows_end_at_their_stop_and_are_padded_with_zeros(plain):
    for n in range(N):
        length, tokens = plain.length[n], plain.tokens[n]
        ends = [t for t in range(C) if tokens[t] in EOS + STOPS]
        assert length == (ends[0] + 1 if ends else C)
        last = tokens[length - 1]
        reason = Stop.EOS if last in EOS else Stop.STOP_TOKEN if last in STOPS else Stop.LENGTH
        assert plain.stop[n] == reason
        for column in (plain.tokens, plain.logp_sampler, plain.log_keep):
            assert (column[n, length:] == 0).all()
    assert {Stop.EOS, Stop.STOP_TOKEN, Stop.LENGTH} == set(plain.stop.tolist())


def test_draws_depend_on_ids_not_on_the_batch(params, plain):
    """Prompts reversed, wider and one of them padding; half the group; a cache that grows."""
    order = np.array([2, 1, 0])
    prompts = np.full((4, S + 3), 9, np.int32)
    prompts[:3, :S] = PROMPTS[order]
    lengths = np.array([*LENGTHS[order], 0], np.int32)
    rows = np.concatenate([[p * G + 3, p * G + 1] for p in order])
    ids = np.concatenate([IDS[rows], [5000, 5001]]).astype(np.int32)
    other = sample(params, prompts, lengths, ids, group_size=2, grow_at=(3,))
    for name in ("tokens", "length", "stop"):
        np.testing.assert_array_equal(getattr(other, name)[:6], getattr(plain, name)[rows])
    np.testing.assert_allclose(other.logp_sampler[:6], plain.logp_sampler[rows], atol=1e-5)
    assert (other.length[6:] == 0).all()
    assert (other.tokens[6:] == 0).all()
    assert (other.stop[6:] == Stop.NONE).all()


def test_a_ragged_prompt_of_one_token_equals_it_alone_on_a_device(params, plain):
    rows = slice(G, 2 * G)
    run = jax.pmap(
        sample,
        in_axes=(None, 0, 0, 0),
        devices=jax.devices()[:1],
    )
    alone = run(params, PROMPTS[None, 1:2, :1], LENGTHS[None, 1:2], IDS[None, rows])
    np.testing.assert_array_equal(alone.tokens[0], plain.tokens[rows])
    np.testing.assert_array_equal(alone.stop[0], plain.stop[rows])
    np.testing.assert_allclose(alone.logp_sampler[0], plain.logp_sampler[rows], atol=1e-5)


def test_a_group_is_diverse_and_the_key_matters(params, plain):
    assert len({tuple(row) for row in plain.tokens[:G]}) > 1
    other = sample(params, key=jax.random.key(8))
    assert not np.array_equal(other.tokens, plain.tokens)


def test_filtered_draws_sum_to_the_unfiltered_log_prob(params, uncached):
    decoding = Decoding(temperature=1.5, top_k=9, top_p=0.9, min_p=0.02)
    out = jax.tree.map(np.asarray, sample(params, decoding=decoding, allowed_vocab=17))
    assert out.tokens.max() < 17
    real = written(out)
    logits = uncached(out.tokens)
    expected = unfiltered(logits, out.tokens, 1.5)
    np.testing.assert_allclose((out.logp_sampler + out.log_keep)[real], expected[real], atol=1e-5)
    assert (out.log_keep[real] < -1e-3).any()
    better = (logits[..., :17] > np.take_along_axis(logits, out.tokens[:, :, None], -1)).sum(-1)
    assert better[real].max() < 9


def test_greedy_is_the_argmax_of_the_uncached_forward_pass(params, uncached):
    out = jax.tree.map(np.asarray, sample(params, decoding=Decoding(greedy=True)))
    real = written(out)
    np.testing.assert_array_equal(out.tokens[real], uncached(out.tokens).argmax(-1)[real])
    assert all((out.tokens[p * G] == out.tokens[p * G : (p + 1) * G]).all() for p in range(P))
    assert (out.logp_sampler == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": LENGTHS[:2]}, r"prompt_lengths \(2,\): give \[P,S\] and \[P\]"),
        ({"ids": IDS[:5]}, r"ids have shape \(5,\)"),
        ({"max_new_tokens": 28}, "at most 32 together"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"allowed_vocab": 24}, "give 1 to 23"),
        ({"grow_at": (4, 2)}, "rising lengths"),
        ({"grow_at": (7,)}, "below max_new_tokens"),
    ],
)
def test_bad_calls_are_refused_in_one_line(params, options, message):
    with pytest.raises(PoloptError, match=message) as error:
        sample(params, **options)
    assert "\n" not in str(error.value)
