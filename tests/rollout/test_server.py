"""The server sampler against a server: equal to the local sampler, and never waiting in vain."""

import copy
import dataclasses
import functools
import json
import random
import re
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from train import toy

import polopt
from polopt.algorithm import pieces
from polopt.errors import PoloptError
from polopt.models import huggingface
from polopt.rollout import Decoding, generate, wire
from polopt.rollout.dialects import SGLANG, VLLM, Ask, Reported
from polopt.rollout.draw import row_keys, uniform_at
from polopt.rollout.replies import check_reply
from polopt.rollout.server import Found, ServerSampler, corrected, probe, seed_for, seed_of
from polopt.rollout.wire import Server, ServerError
from polopt.train.config import TrainConfig
from polopt.train.setup import collector_of
from polopt.trajectory import Sampling
from polopt.types import Stop
from rollout import engine as e

KEY = jax.random.key(3)
EOS, STOPS = toy.Letters().eos_ids, (2, 9)
C, G, V = 5, 2, 32
PROMPTS = np.array([[2, 5, 7, 0], [2, 9, 0, 0], [0, 0, 0, 0], [2, 3, 4, 8]], np.int32)
LENGTHS = np.array([3, 2, 0, 4], np.int32)
IDS = np.arange(40, 48, dtype=np.int32).reshape(4, G)
OFFSET = np.array([[0, 0], [3, 1], [0, 0], [0, 7]], np.int32)
REAL = np.repeat(LENGTHS > 0, G)


@functools.cache
def uniforms():
    """{seed of a request: f32[C]}: the numbers that the local sampler draws with."""
    keys = row_keys(KEY, IDS.reshape(-1))
    ids, offset = IDS.reshape(-1).tolist(), OFFSET.reshape(-1)
    rows = np.stack([uniform_at(keys, offset + i) for i in range(C)], 1)
    run = seed_of(KEY)
    return {seed_for(run, i, int(o)): row for i, o, row in zip(ids, offset, rows, strict=True)}


@jax.jit
def last_logits(params, tokens, length):
    hidden = toy.MODEL.hidden(params, tokens[None])[0]
    return toy.MODEL.logits(params, hidden[length - 1])


def toy_draw(params, uniform):
    def logits(tokens):
        padded = np.zeros(16, np.int32)
        padded[: len(tokens)] = tokens
        return last_logits(params, padded, len(tokens))

    return e.numpy_model(logits, uniform)


def sampler(url, **changes):
    server = {"timeout": 5.0, "connect_timeout": 1.0, "attempts": 3}
    server |= {k: changes.pop(k) for k in list(changes) if k in (*server, "max_reply", "api_key")}
    settings = {
        "found": probe(Server(url=url, **server)),
        "decoding": Decoding(),
        "max_new_tokens": C,
        "vocab_size": V,
        "eos_ids": EOS,
        "stop_ids": STOPS,
        "seed": seed_of(KEY),
    }
    return ServerSampler(**{**settings, **changes})


TOKENS, LOGP = [5, 7, 9], [-0.5, -1.5, -0.25]  # 9 stops
ONE = (PROMPTS[:1], LENGTHS[:1], IDS[:1, :1])


@pytest.fixture(params=["vllm", "sglang"])
def owner(request):
    return request.param


@pytest.fixture
def canned(owner, monkeypatch):
    """An engine with one answer, and its URL; pauses between attempts are short."""
    monkeypatch.setattr(wire, "PAUSE", 0.02)
    engine = e.Engine(e.table(TOKENS, LOGP), owner)
    with engine.listening() as url:
        yield engine, url


# ---------------------------------------------------------------- equal to the local sampler

CASES = {
    "greedy, vLLM": (Decoding(greedy=True), "vllm", "raw"),
    "greedy, SGLang": (Decoding(greedy=True), "sglang", "tempered"),
    "raw": (Decoding(), "vllm", "raw"),
    "processed": (Decoding(temperature=0.7), "vllm", "processed"),
    "tempered": (Decoding(temperature=0.7), "sglang", "tempered"),
    "filtered": (Decoding(temperature=1.3, top_k=12, top_p=0.9, min_p=0.02), "sglang", "tempered"),
}


@pytest.mark.parametrize(("decoding", "owner", "reports"), CASES.values(), ids=CASES)
def test_a_server_draws_what_the_local_sampler_draws(decoding, owner, reports):
    params = toy.params()
    local = generate(
        toy.MODEL,
        params,
        PROMPTS,
        LENGTHS,
        IDS.reshape(-1),
        key=KEY,
        group_size=G,
        max_new_tokens=C,
        decoding=decoding,
        eos_ids=EOS,
        stop_ids=STOPS,
        offset=OFFSET.reshape(-1),
    )
    draw = toy_draw(params, lambda seed, position: uniforms()[seed][position])
    with e.Engine(draw, owner, reports).listening() as url:
        served = sampler(url, decoding=decoding, reports=Reported(reports))(
            PROMPTS, LENGTHS, IDS, OFFSET
        )
    for name in ("tokens", "length", "stop"):
        np.testing.assert_array_equal(getattr(served, name), getattr(local, name), err_msg=name)
        assert getattr(served, name).dtype == np.int32
    for name in ("logp_sampler", "log_keep"):
        np.testing.assert_allclose(getattr(served, name), getattr(local, name), atol=2e-5)
    assert set(np.asarray(served.stop)[~REAL]) == {Stop.NONE}
    assert len(set(map(tuple, served.tokens[REAL]))) > (2 if decoding.greedy else 3)


def test_a_rollout_from_a_server_has_no_gap_to_the_trainer():
    """Through the collector: what the server said of its tokens is what the policy says of them."""
    collector = collector_of(toy.policy(), toy.task(), Sampling(group_size=4), 6, 0.8)
    examples = [toy.example(i, i) for i in range(3)]
    ids = np.arange(12, dtype=np.int32).reshape(3, 4)
    rng = np.random.default_rng(0)
    draw = toy_draw(toy.params(), lambda seed, position: rng.random())
    with e.Engine(draw, "sglang").listening() as url:
        served = sampler(
            url, decoding=Decoding(temperature=0.8), max_new_tokens=6, stop_ids=(), concurrency=3
        )
        batch, _ = collector.write(collector.draw(served, examples, ids))
    said = all_logp(toy.params(), batch.tokens)
    own = np.asarray(batch.action_mask)
    gap = np.abs(said - (batch.logp_sampler + batch.log_keep))[own]
    assert gap.max() < 2e-5
    assert own.sum() > 12
    assert {Stop.EOS, Stop.LENGTH} == set(batch.stop.tolist())


@jax.jit
def all_logp(params, tokens):
    logits = toy.MODEL.logits(params, toy.MODEL.hidden(params, tokens)) / 0.8
    logp = jax.nn.log_softmax(logits)[:, :-1]
    found = jax.numpy.take_along_axis(logp, tokens[:, 1:, None], 2)[:, :, 0]
    return jax.numpy.pad(found, ((0, 0), (1, 0)))


# ---------------------------------------------------------------- what is asked


def test_every_decoding_parameter_is_sent(canned, owner):
    engine, url = canned
    decoding = Decoding(temperature=0.9, top_p=0.8, top_k=7, min_p=0.1)
    if owner == "vllm":
        sampler(url)(*ONE)
        (path, body), how = engine.seen[0], engine.seen[0][1]
        wanted = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
        assert (path, body["prompt"], body["max_tokens"]) == ("/v1/completions", [2, 5, 7], C)
        assert body["return_token_ids"]
        assert body["ignore_eos"]
    else:
        engine.draw = lambda asked: e.Drawn(TOKENS, LOGP, LOGP, [x / 2 for x in LOGP])
        out = sampler(url, decoding=decoding)(*ONE)
        (path, body), how = engine.seen[0], engine.seen[0][1]["sampling_params"]
        wanted = {"temperature": 0.9, "top_p": 0.8, "top_k": 7, "min_p": 0.1}
        assert (path, body["input_ids"], how["max_new_tokens"]) == ("/generate", [2, 5, 7], C)
        np.testing.assert_allclose(out.log_keep[0, :3], np.array(LOGP) / 2, rtol=1e-6)
    fixed = {"repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
    assert {k: how[k] for k in (*wanted, *fixed)} == wanted | fixed
    assert how["stop_token_ids"] == [*EOS, *STOPS]


def test_seeds_belong_to_rows(canned, owner):
    engine, url = canned
    sample = sampler(url)

    def seeds(*call):
        engine.seen.clear()
        sample(*call)
        bodies = [body for _, body in engine.seen]
        if owner == "sglang":
            bodies = [{**b["sampling_params"], "prompt": b["input_ids"]} for b in bodies]
        return sorted((b["prompt"], b.get("seed", b.get("sampling_seed"))) for b in bodies)

    whole = seeds(PROMPTS, LENGTHS, IDS, OFFSET)
    order = [3, 1, 0]
    again = seeds(PROMPTS[order], LENGTHS[order], IDS[order], OFFSET[order])
    assert whole == again
    assert len({seed for _, seed in whole}) == 6
    assert all(0 <= seed < 2**63 for _, seed in whole)
    assert seeds(PROMPTS, LENGTHS, IDS) != whole  # other offsets
    assert seed_of(jax.random.key(4)) != seed_of(KEY)


def test_connections_are_kept_and_bounded(canned, monkeypatch):
    engine, url = canned
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there
    engine.pace = 0.01
    sample = sampler(url, concurrency=2, api_key="secret")
    engine.connections = 0
    ids = np.arange(12, dtype=np.int32).reshape(1, 12)
    assert sample(PROMPTS[:1], LENGTHS[:1], ids).length.tolist() == [3] * 12
    assert (engine.connections, engine.peak) == (2, 2)
    assert {headers["Authorization"] for headers in engine.headers} == {"Bearer secret"}
    assert "secret" not in repr(sample)


def test_ids_are_read_from_an_older_server():
    engine = e.Engine(e.table(TOKENS, LOGP), "vllm")
    engine.script = [None, e.edited(lambda a: a["choices"][0].pop("token_ids") and None)]
    with engine.listening() as url:
        out = sampler(url)(*ONE)
    assert out.tokens[0, :3].tolist() == TOKENS
    assert out.stop.tolist() == [Stop.STOP_TOKEN]


# ---------------------------------------------------------------- faults of the way


def test_a_busy_or_broken_server_is_asked_again(canned):
    engine, url = canned
    sample = sampler(url, attempts=4)
    for faults in (
        [e.status(503, "loading"), e.status(429, "slow down", **{"Retry-After": "0"})],
        [e.reset, e.truncated],
    ):
        engine.script = list(faults)
        assert sample(*ONE).tokens[0, :3].tolist() == TOKENS
        assert not engine.script


@pytest.mark.parametrize("fault", [e.hang, e.drip, e.drip_headers])
def test_nobody_waits_longer_than_said(canned, fault):
    engine, url = canned
    sample = sampler(url, timeout=0.15)
    engine.script = [None, fault]
    began = time.monotonic()
    with pytest.raises(ServerError, match=r"http://127.*, row 4\d: no whole reply within 0.15 s"):
        sample(PROMPTS[:2], LENGTHS[:2], IDS[:2])
    assert time.monotonic() - began < 2


def test_a_server_that_dies_ends_the_call(canned):
    engine, url = canned
    sample = sampler(url, concurrency=1)
    engine.script = [None, None, e.die]
    began = time.monotonic()
    match = r"row 42: .* \(attempt 3 of 3\); 2 of 4 answers had arrived"
    with pytest.raises(ServerError, match=match):
        sample(PROMPTS[:2], LENGTHS[:2], IDS[:2])
    assert time.monotonic() - began < 5


def test_a_server_that_is_not_there():
    engine = e.Engine(e.table(TOKENS, LOGP))
    with engine.listening() as url:
        pass
    with pytest.raises(ServerError, match=r"/v1/models: connection refused \(attempt 2 of 2\)"):
        probe(Server(url=url, attempts=2))


REPLIES = {
    "500": (e.status(500, "CUDA error:\n out of memory"), "HTTP 500: CUDA error: out of memory"),
    "400": (e.status(400, '{"error": {"message": "too long"}}'), 'HTTP 400: {"error": .*too long'),
    "busy": (e.status(503, "loading", **{"Retry-After": "60"}), "HTTP 503: loading .attempt 1 of"),
    "garbage": (e.text(b"<html>no</html>"), "the reply is not JSON: <html>no</html>"),
    "deep": (e.text(b"[" * 4096), r"the reply is not JSON: \[\[\["),
    "large": (e.text(b" " * 5000), "larger than max_reply=4096 bytes"),
    "nothing": (e.text(b""), "is missing"),
    "a list": (e.text(b"[]"), "is missing"),
}


@pytest.mark.parametrize(("fault", "told"), REPLIES.values(), ids=REPLIES)
def test_a_bad_answer_is_told_in_one_line(canned, fault, told):
    engine, url = canned
    sample = sampler(url, max_reply=4096)
    engine.script = [fault]
    with pytest.raises(ServerError, match=rf"http://127.*, row 40: .*{told}") as caught:
        sample(*ONE)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- replies that cannot be true


def put(*path, value):
    """Replace (or with value KeyError remove) an entry of the answer."""

    def change(answer):
        *way, last = path
        for key in way:
            answer = answer[key]
        if value is KeyError:
            del answer[last]
        else:
            answer[last] = value

    return change


def vllm(*path, value):
    return put("choices", 0, *path, value=value)


def both(tokens, logp=None, reason="stop"):
    """The answers of both dialects to the same false completion."""
    logp = [-1.0] * len(tokens) if logp is None else logp

    def change(answer):
        if "choices" in answer:
            choice = answer["choices"][0]
            choice["token_ids"], choice["finish_reason"] = tokens, reason
            choice["logprobs"] = {"token_logprobs": logp}
        else:
            meta = answer["meta_info"]
            answer["output_ids"], meta["finish_reason"]["type"] = tokens, reason
            meta["output_token_logprobs"] = [[x, t] for x, t in zip(logp, tokens, strict=True)]

    return change


FALSE = {
    "outside": (both([5, 32, 9]), "token id 32 is outside the vocabulary of 32"),
    "negative id": (both([-1, 9]), "token id -1 is outside"),
    "huge id": (both([10**30, 9]), "not a list of whole numbers"),
    "text": (both(["5", 9]), "not a list of whole numbers"),
    "fraction": (both([5.5, 9]), "not a list of whole numbers"),
    "NaN": (both([5, 9], [-1, e.NAN]), "log-probability of token 1 is nan"),
    "positive": (both([5, 9], [0.5, -1]), "log-probability of token 0 is 0.5"),
    "minus infinity": (both([5, 9], [-9999.0, -1]), "log-probability of token 0 is -9999"),
    "null": (both([5, 9], [None, -1]), "not a list of numbers"),
    "empty": (both([]), "has 0 tokens, where 1 to 5"),
    "too many": (both([5] * 6, reason="length"), "has 6 tokens, where 1 to 5"),
    "cut": (both([5, 5], reason="length"), "cut at 2 tokens of 5: the server's context"),
    "another stop": (both([5, 7]), "stopped at token id 7, which is none of eos_ids"),
    "beyond a stop": (both([1, 9]), "goes on after token 0, the stop id 1"),
    "aborted": (both([5, 9], reason="abort"), "finish_reason is 'abort'"),
}
FALSE_VLLM = {
    "choices": (put("choices", value=[]), "choices has 0 entries for 1"),
    "no choices": (put("choices", value=None), "choices is missing"),
    "no reason": (vllm("finish_reason", value=None), "finish_reason is missing"),
    "no log-probs": (vllm("logprobs", value=None), "logprobs is missing"),
    "short": (vllm("logprobs", "token_logprobs", value=[-1.0]), "are 1 log-probabilities for 3"),
    "prompt": (vllm("prompt_token_ids", value=[1, 2, 5, 7]), "not the prompt that was sent"),
    "ids": (vllm("token_ids", value=[5, 8, 9]), "name different tokens"),
}
FALSE_SGLANG = {
    "no meta": (put("meta_info", value=KeyError), "meta_info is missing"),
    "no log-probs": (put("meta_info", "output_token_logprobs", value=KeyError), "return_logprob"),
    "odd": (put("meta_info", "output_token_logprobs", value=[3]), "an entry that is no"),
    "ids": (put("output_ids", value=[5, 7, 1]), "name different tokens"),
    "prompt": (put("meta_info", "prompt_tokens", value=4), "prompt_tokens is 4 and the prompt has"),
    "version": (put("meta_info", "weight_version", value="3"), "weight_version is 3, and .* are 0"),
}


def refused(canned, change, told):
    engine, url = canned
    sample = sampler(url)
    engine.script = [e.edited(change)]
    with pytest.raises(ServerError, match=rf"row 40: in the reply .*{told}") as caught:
        sample(*ONE)
    assert "\n" not in str(caught.value)
    assert len(engine.seen) == 1  # not asked again


@pytest.mark.parametrize(("change", "told"), FALSE.values(), ids=FALSE)
def test_false_completions_are_refused(canned, change, told):
    refused(canned, change, told)


@pytest.mark.parametrize("owner", ["vllm"], indirect=True)
@pytest.mark.parametrize(("change", "told"), FALSE_VLLM.values(), ids=FALSE_VLLM)
def test_false_replies_of_vllm_are_refused(canned, change, told):
    refused(canned, change, told)


@pytest.mark.parametrize("owner", ["sglang"], indirect=True)
@pytest.mark.parametrize(("change", "told"), FALSE_SGLANG.values(), ids=FALSE_SGLANG)
def test_false_replies_of_sglang_are_refused(canned, change, told):
    refused(canned, change, told)


@pytest.mark.parametrize("dialect", [VLLM, SGLANG])
def test_whatever_is_changed_in_a_reply_it_is_read_or_refused(dialect):
    engine = e.Engine(e.table(TOKENS, LOGP), dialect.owner)
    ask = Ask(e.MODEL, [2, 5], 0, Decoding(), C, (*EOS, *STOPS))
    whole, rng = json.dumps(engine.answer(dialect.path, dialect.body(ask))), random.Random(0)
    odd = [None, 0, -1, 10**30, 1e400, "x", "", [], {}, [1], [None], [[1]], True, {"a": 1}, [-1.0]]
    read, told = 0, []
    for _ in range(2000):
        answer = {"whole": json.loads(whole)}
        for _ in range(rng.randint(1, 3)):
            place, key = rng.choice(list(places_in(answer)))
            place[key] = copy.deepcopy(rng.choice(odd))
        try:
            check_reply(dialect.read(answer["whole"], ask), ask, V, 0)
            read += 1
        except PoloptError as error:
            told.append(str(error))
    assert 0 < read < 1000
    assert all(0 < len(line) < 250 and line.isprintable() for line in told)


def places_in(data):
    """(container, key) of every entry below `data`."""
    entries = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in list(entries):
        yield data, key
        if isinstance(value, dict | list):
            yield from places_in(value)


def test_a_server_without_ids_is_told_which_option_to_switch_on():
    engine = e.Engine(e.table(TOKENS, LOGP), "vllm")

    def as_text(answer):
        choice = answer["choices"][0]
        del choice["token_ids"]
        choice["logprobs"]["tokens"] = ["a", "b", "c"]

    engine.script = [None, e.edited(as_text)]
    with (
        engine.listening() as url,
        pytest.raises(ServerError, match=r"token_ids is missing: .*return-tokens-as-token-ids"),
    ):
        sampler(url)(*ONE)


# ---------------------------------------------------------------- before anything is sampled


@pytest.mark.parametrize(
    ("dialect", "reports", "decoding", "told"),
    [
        (VLLM, None, Decoding(temperature=0.7), "--logprobs-mode processed_logprobs"),
        (VLLM, Reported.PROCESSED, Decoding(top_p=0.9), "the mass that they keep stays unknown"),
        (VLLM, None, Decoding(top_k=5), "the mass that they keep stays unknown"),
        (SGLANG, Reported.RAW, Decoding(temperature=0.7), "before temperature"),
        (SGLANG, Reported.PROCESSED, Decoding(min_p=0.1), "the mass that they keep"),
        (SGLANG, None, Decoding(temperature=0.001), "at least 0.01"),
        (SGLANG, None, Decoding(temperature=np.ones(2)), "one number"),
        (SGLANG, None, Decoding(greedy=True, temperature=0.5), "at temperature 1"),
    ],
)
def test_decodings_whose_log_probs_cannot_be_told_are_refused(dialect, reports, decoding, told):
    server = Found(Server(url="http://127.0.0.1:1"), dialect, "x", None)
    with pytest.raises(PoloptError, match=told):
        ServerSampler(
            found=server,
            decoding=decoding,
            max_new_tokens=C,
            vocab_size=V,
            eos_ids=EOS,
            reports=reports,
        )


def test_a_probe_tells_what_it_found(canned, owner):
    engine, url = canned
    found = probe(Server(url=f"{url}/v1/"))
    name = {"vllm": "vLLM", "sglang": "SGLang"}[owner]
    assert str(found) == f"{name} at {url} serves {e.MODEL}, at most 32 tokens"
    with pytest.raises(ServerError, match=r"no model 'toy/modle'; did you mean 'toy/model'"):
        probe(found.server, "toy/modle")
    engine.models = ["a", "b"]
    with pytest.raises(ServerError, match="name the model, one of a, b"):
        probe(found.server)
    engine.models, engine.owner = ["a"], "llamacpp"
    with pytest.raises(ServerError, match="owned by 'llamacpp', which is neither of vllm, sglang"):
        probe(found.server)
    assert probe(found.server, dialect=VLLM).dialect is VLLM


@pytest.mark.parametrize(
    "url", ["127.0.0.1:80", "ftp://x", "http://", "http://a:b@c", "http://x:y"]
)
def test_urls_are_checked(url):
    with pytest.raises(PoloptError, match="server URL"):
        Server(url=url)


@pytest.mark.parametrize("said", [Reported.RAW, Reported.PROCESSED])
@pytest.mark.parametrize("true", ["raw", "processed"])
def test_what_log_probs_are_of_is_seen_by_asking(said, true):
    rng = np.random.default_rng(0)
    draw = toy_draw(toy.params(), lambda seed, position: rng.random())
    with e.Engine(draw, "vllm", true).listening() as url:
        sample = sampler(url, reports=said)
        if said.value == true:
            sample.verify()
        else:
            side = "before" if true == "raw" else "after"
            with pytest.raises(ServerError, match=rf"those {side} temperature .* '{said.value}'"):
                sample.verify()


# ---------------------------------------------------------------- weights and corrections


def test_pushed_weights_are_those_that_are_sampled():
    engine = e.Engine(e.table(TOKENS, LOGP), "sglang")
    with engine.listening() as url:

        def push(params, version):
            sample.found.server.post("/update_weights_from_disk", {"model_path": params})
            engine.version = str(version)

        sample = sampler(url, push=push)
        after = sample.pushed("/weights/7", 7)
        assert engine.seen == [("/update_weights_from_disk", {"model_path": "/weights/7"})]
        assert (after.version, after(*ONE).length.tolist()) == (7, [3])
        with pytest.raises(ServerError, match=r"weight_version is 7, and .* last are 0"):
            sample(*ONE)
        kept = sampler(url, version=7)
        assert kept.pushed("/weights/8", 8) is kept


def test_every_method_is_corrected_once_where_it_can_be():
    names = {}
    for key in polopt.methods():
        alg = getattr(polopt.algorithms, key)()
        made = corrected(alg)
        assert corrected(made) == made
        added = [p.name for _, p in pieces(made)][len(pieces(alg)) :]
        assert added in ([], ["truncated_is"])
        names.setdefault(bool(added), set()).add(key)
    assert {"grpo", "reinforce", "gspo", "cispo", "ppo", "opsm"} <= names[True]
    already = {"tis", "mis", "icepop", "decoupled_ppo", "dppo_tv", "topr", "opd"}
    anywhere = {"dpo", "ipo", "rebel", "gvpo", "dro", "flowrl", "gkd", "gold", "sdpo"}
    assert already | anywhere <= names[False]


def test_the_page_does_what_it_shows(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "external_sampler.md").read_text(encoding="utf-8")
    rng = np.random.default_rng(0)
    draw = toy_draw(toy.params(), lambda seed, position: rng.random())
    known = {"tokenizer": toy.Letters(), "prompts": PROMPTS, "lengths": LENGTHS, "ids": IDS}
    known["model"] = toy.MODEL
    monkeypatch.setattr(huggingface, "save", lambda folder, *_, **how: folder.mkdir())
    engine = e.Engine(draw, "vllm", "processed")
    with engine.listening() as url:
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            block = block.replace("http://127.0.0.1:8000", url).replace("512", "5")
            exec(block.replace("/shared", str(tmp_path)), known)
        engine.seen.clear()
        assert known["sample"].pushed("new", 4).version == 4
    assert known["generated"].length[REAL].min() > 0
    assert [path for path, _ in engine.seen] == ["/collective_rpc", "/reset_prefix_cache"]
    assert (tmp_path / "policy").is_dir()
    assert "truncated_is" in repr(known["method"].trajectory)


def test_the_page_names_flags_that_there_are():
    page = (Path(__file__).parents[2] / "docs" / "external_sampler.md").read_text(encoding="utf-8")
    flags = set(re.findall(r"--(?:no-)?(server[\w-]*)", page))
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert {flag.replace("-", "_") for flag in flags} == {f for f in fields if f[:6] == "server"}
