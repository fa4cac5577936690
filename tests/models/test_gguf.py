"""GGUF files: against transformers' reading of the same ones, and damaged in every way."""

import dataclasses
import json
import pathlib
import struct
import subprocess
import sys

import gguf as library
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import tiny_gguf
from polopt.errors import PoloptError
from polopt.models import gguf, named
from polopt.models.config import RopeScaling
from polopt.models.gguf_config import decoder_config
from polopt.models.gguf_file import read_header
from polopt.models.gguf_tokenizer import tokenizer_of
from polopt.models.rotary import frequencies

FROZEN = pathlib.Path(__file__).parents[1] / "public" / "frozen" / "gguf.json"
PUBLIC = json.loads(FROZEN.read_text(encoding="utf-8"))
ARCHITECTURES = tuple(PUBLIC["logits"])
CHANGES = 300


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    return {a: tiny_gguf.write(folder / f"{a}.gguf", a) for a in ARCHITECTURES}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_that_transformers_reads(files, architecture):
    model, params, _ = gguf.load(files[architecture])
    tokens = np.array([PUBLIC["tokens"]], np.int32)
    logits = model.logits(params, model.hidden(params, tokens))[0]
    np.testing.assert_allclose(logits, PUBLIC["logits"][architecture], atol=2e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_parameters_are_the_models_own_tree(files, architecture):
    model, params, _ = gguf.load(files[architecture], dtype="bfloat16")
    asked = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(lambda leaf: (leaf.shape, jnp.dtype("bfloat16")), asked) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), params
    )
    assert model.compute_dtype == "bfloat16"


def test_a_header_is_what_the_librarys_own_reader_says(files):
    ours, theirs = read_header(files["gemma2"]), library.GGUFReader(files["gemma2"])
    fields = {k: v.contents() for k, v in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.values == fields
    assert {t.name for t in theirs.tensors} == set(ours.tensors)
    for tensor in theirs.tensors:
        own = ours.tensors[tensor.name]
        assert (own.offset, own.shape) == (tensor.data_offset, tuple(tensor.shape[::-1].tolist()))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0"])
def test_quantised_tensors_are_what_the_library_makes_of_them(tmp_path, kind):
    quantisation = library.GGMLQuantizationType[kind]
    tensors = tiny_gguf.tensors_of("llama")
    if kind == "TQ1_0":  # blocks of 256
        tensors = {"a.weight": np.random.default_rng(0).standard_normal((3, 512), np.float32)}
    path = tiny_gguf.write(tmp_path / "q.gguf", tensors=tensors, kind=quantisation)
    file = read_header(path)
    for tensor in library.GGUFReader(path).tensors:
        made = np.concatenate([rows for _, rows in file.chunks(file.tensors[tensor.name])])
        expected = library.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(made.reshape(expected.shape), expected)


def test_large_tensors_come_in_runs(files, monkeypatch):
    whole = {a: gguf.load(files[a])[1] for a in ("llama", "qwen3moe")}
    monkeypatch.setattr("polopt.models.gguf_file._CHUNK", 200)
    for architecture, params in whole.items():
        parts = gguf.load(files[architecture])[1]
        jax.tree.map(np.testing.assert_array_equal, params, parts)


def test_query_and_key_biases_of_llama_are_put_in_order_too(tmp_path):
    tensors = tiny_gguf.tensors_of("llama")
    d = tiny_gguf.D // tiny_gguf.H
    for i in range(tiny_gguf.LAYERS):
        for name, heads in (("q", tiny_gguf.H), ("k", tiny_gguf.K), ("v", tiny_gguf.K)):
            tensors[f"blk.{i}.attn_{name}.bias"] = np.arange(heads * d, dtype=np.float32)
    params = gguf.load(tiny_gguf.write(tmp_path / "b.gguf", tensors=tensors))[1]
    attention = params["layers"]["0"]["attention"]
    head = [0, 2, 4, 6, 1, 3, 5, 7]  # the file has the pairs (j, j + d/2) side by side
    np.testing.assert_array_equal(attention["q"]["bias"][:16], [*head, *(8 + i for i in head)])
    np.testing.assert_array_equal(attention["k"]["bias"][:8], head)
    np.testing.assert_array_equal(attention["v"]["bias"][:8], range(8))


def config_of(tmp_path, architecture="llama", **options):
    return decoder_config(
        read_header(tiny_gguf.write(tmp_path / "c.gguf", architecture, **options))
    )


def test_metadata_become_the_fields_of_the_decoder(tmp_path):
    config = config_of(tmp_path, "gemma3")
    assert (config.embed_scale, config.attention_scale) == (32**0.5, 8**-0.5)
    assert (config.local_layers, config.window) == ((0, 1, 2), 4)
    assert (config.local_rope_theta, config.norm_offset) == (10_000.0, 1.0)
    values = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    assert config_of(tmp_path, "gemma3", values=values).rope_scaling == RopeScaling(
        kind="linear", factor=8.0
    )
    values = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 16,
    }
    scaling = config_of(tmp_path, "qwen3", values=values).rope_scaling
    assert (scaling.kind, scaling.factor, scaling.original_length) == ("yarn", 4.0, 16)
    assert scaling.attention_factor == pytest.approx(0.1 * np.log(4) + 1)
    config = config_of(tmp_path, "qwen3moe")
    assert (config.experts.count, config.experts.chosen, config.experts.size) == (4, 2, 32)
    assert config.norm_eps == 1e-5  # and not the 32 bits of it


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_divisors_of_llama_3_are_read_as_its_rule(tmp_path, factor):
    tensors = tiny_gguf.tensors_of("llama")
    base = 500_000.0
    turns = 8192 * base ** (-np.arange(4) / 4) / (2 * np.pi)  # within the original length
    kept = np.clip((turns - 1) / 3, 0, 1)
    tensors["rope_freqs.weight"] = (1 / (kept + (1 - kept) / factor)).astype(np.float32)
    options = {"tensors": tensors, "values": {"rope.freq_base": base}}
    scaling = config_of(tmp_path, **options).rope_scaling
    assert scaling == RopeScaling(kind="llama3", factor=factor, original_length=8192)
    np.testing.assert_allclose(
        frequencies(8, base, scaling)[0],
        frequencies(8, base)[0] / tensors["rope_freqs.weight"],
        rtol=1e-6,
    )
    tensors["rope_freqs.weight"][1] = 3.3
    with pytest.raises(PoloptError, match=r"rope_freqs.weight is not of Llama 3.1's rule"):
        config_of(tmp_path, **options)


WRONG_VALUES = {
    "block_count": (0, "block_count is 0: an integer"),
    "context_length": (None, "context_length is missing: an integer"),
    "embedding_length": ("much", "embedding_length is 'much'"),
    "attention.head_count": (3, "w.gguf: DecoderConfig.num_heads is 3: give a multiple"),
    "attention.head_count_kv": ([2, 1, 2], r"head_count_kv is \[2, 1, 2\]"),
    "attention.layer_norm_rms_epsilon": (float("nan"), "epsilon is nan: a number above 0"),
    "rope.dimension_count": (4, "rope.dimension_count is 4, not the head size 8"),
    "rope.scaling.type": ("longrope", "rope.scaling.type is 'longrope'"),
    "expert_count": (8, "llama with 8 experts is not read"),
    "feed_forward_length": (2**31, r"ffn_\w+.weight has shape \(\d+, \d+\), the metadata ask"),
}


@pytest.mark.parametrize("key", WRONG_VALUES)
def test_values_that_make_no_decoder_are_refused_by_name(tmp_path, key):
    value, told = WRONG_VALUES[key]
    path = tiny_gguf.write(tmp_path / "w.gguf", values={key: value})
    with pytest.raises(PoloptError, match=told) as error:
        gguf.load(path)
    assert "\n" not in str(error.value)


def test_layers_beyond_the_tensors_are_refused_before_they_are_listed(tmp_path):
    path = tiny_gguf.write(tmp_path / "w.gguf", values={"block_count": 2**31})
    with pytest.raises(PoloptError, match="2147483648 layers in 30 tensors"):
        gguf.load(path)


def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path):
    tensors = tiny_gguf.tensors_of("llama")
    cases = {
        r"blk.1.ffn_up.weight has shape none": {"blk.1.ffn_up.weight": None},
        r"tensor blk.0.more has no place": {"blk.0.more": np.zeros(3, np.float32)},
        r"blk.2.attn_norm.weight has shape \(31,\)": {
            "blk.2.attn_norm.weight": np.ones(31, np.float32)
        },
        "has the type I32, which cannot be": {"output_norm.weight": np.ones(32, np.int32)},
        "output_norm.weight holds a number that is not finite": {
            "output_norm.weight": np.full(32, np.inf, np.float32)
        },
        "no tensor token_embd.weight": {"token_embd.weight": None},
    }
    for told, change in cases.items():
        changed = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        with pytest.raises(PoloptError, match=told):
            gguf.load(tiny_gguf.write(tmp_path / "t.gguf", tensors=changed))


def test_an_architecture_that_is_not_read_is_named(tmp_path):
    path = tiny_gguf.write(tmp_path / "m.gguf", "mamba", tensors=tiny_gguf.tensors_of("llama"))
    with pytest.raises(PoloptError, match="architecture 'mamba': read are llama, qwen2"):
        gguf.load(path)
    with pytest.raises(PoloptError, match="dtype is 'float16'"):
        gguf.load(path, dtype="float16")
    with pytest.raises(PoloptError, match=r"none.gguf: cannot read the file"):
        gguf.load(tmp_path / "none.gguf")
    with pytest.raises(PoloptError, match=r"cannot read the file"):
        gguf.load(tmp_path)


def test_a_missing_package_is_named(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(PoloptError, match="reading a GGUF file needs the package 'gguf'"):
        gguf.load(files["llama"])


def test_a_file_that_is_cut_short_anywhere_is_refused(files, tmp_path):
    whole = files["llama"].read_bytes()
    path = tmp_path / "cut.gguf"
    for size in sorted({0, 3, 4, 8, 23, 24, *range(25, len(whole) - 1, len(whole) // 60)}):
        path.write_bytes(whole[:size])
        with pytest.raises(PoloptError, match=r"cut\.gguf: not a usable GGUF file: it ") as error:
            gguf.load(path)
        assert "\n" not in str(error.value)


COUNTS = {
    "tensors": (8, "descriptions of 1152921504606846976 tensors"),
    "values": (16, "the 1152921504606846976 values"),
}


@pytest.mark.parametrize("field", COUNTS)
def test_counts_that_no_file_has_are_refused_at_once(files, tmp_path, field):
    offset, told = COUNTS[field]
    content = bytearray(files["llama"].read_bytes())
    content[offset : offset + 8] = struct.pack("<Q", 2**60)
    path = tmp_path / "many.gguf"
    path.write_bytes(content)
    with pytest.raises(PoloptError, match=told):
        gguf.load(path)


@pytest.mark.parametrize("kind", [0, 8])  # bytes, texts
def test_an_array_that_no_file_has_is_refused_at_once(tmp_path, kind):
    key = b"general.name"
    array = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, kind, 2**60)
    path = tmp_path / "array.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + array + bytes(64))
    with pytest.raises(PoloptError, match=r"it ends within general\.name"):
        gguf.load(path)


def test_another_magic_and_another_version_are_refused(files, tmp_path):
    content = files["llama"].read_bytes()
    path = tmp_path / "other.gguf"
    path.write_bytes(b"GGML" + content[4:])
    with pytest.raises(PoloptError, match="it does not begin with GGUF"):
        gguf.load(path)
    path.write_bytes(content[:4] + struct.pack(">I", 3) + content[8:])  # of a big-endian machine
    with pytest.raises(PoloptError, match="version 50331648: read are 2 and 3, little-endian"):
        gguf.load(path)


def test_tensors_that_share_their_data_are_refused(files, tmp_path):
    # Else a small file could ask for any amount of memory.
    content = bytearray(files["llama"].read_bytes())
    name = b"blk.1.ffn_up.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8 + 4
    content[place : place + 8] = struct.pack("<Q", 0)
    path = tmp_path / "shared.gguf"
    path.write_bytes(content)
    with pytest.raises(PoloptError, match="lies at the wrong place"):
        gguf.load(path)


@settings(max_examples=CHANGES, deadline=None)
@given(data=st.data())
def test_changed_bytes_are_refused_in_one_line_or_make_a_model(files, tmp_path_factory, data):
    content = bytearray(files["qwen3"].read_bytes())
    head = min(t.offset for t in read_header(files["qwen3"]).tensors.values())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, head - 1))
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    path.write_bytes(content)
    try:
        file = read_header(path)
        gguf.check_tensors(file, decoder_config(file))
        tokenizer_of(file)
    except PoloptError as error:
        told = str(error)
    else:
        told = ""
    assert "\n" not in told


@pytest.mark.parametrize("name", PUBLIC["ids"])
def test_ids_are_those_of_transformers(tmp_path, name):
    vocabularies = {
        "llama": tiny_gguf.sentencepiece(),
        "gemma": tiny_gguf.sentencepiece("  "),
    }
    vocabulary = vocabularies.get(name) or tiny_gguf.byte_level(name)
    architecture = "gemma2" if name == "gemma" else "llama"
    path = tiny_gguf.write(tmp_path / "v.gguf", architecture, vocabulary=vocabulary, tensors={})
    tokenizer = tokenizer_of(read_header(path))
    assert tokenizer.vocab_size == len(vocabulary.tokens)
    made = [tokenizer.encode(text) for text in PUBLIC["texts"]]
    assert made == PUBLIC["ids"][name]
    lossless = [text for text in PUBLIC["texts"] if name != "llama" or text[:1] != " "]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in lossless] == lossless


def test_smollm_takes_digits_apart_before_it_looks_at_spaces(tmp_path):
    path = tiny_gguf.write(
        tmp_path / "v.gguf", vocabulary=tiny_gguf.byte_level("smollm"), tensors={}
    )
    tokenizer = tokenizer_of(read_header(path))
    ids = tokenizer.encode("a   12")
    assert [tokenizer.decode([i]) for i in ids][-2:] == ["1", "2"]


def test_special_tokens_of_a_file(tmp_path):
    more = {"eot_token_id": 4, "padding_token_id": 0, "add_bos_token": False}
    spare = tiny_gguf.byte_level("qwen2", more=more)
    padded = dataclasses.replace(
        spare,
        tokens=[*spare.tokens, "[PAD1]", "[PAD2]"],
        kinds=[*spare.kinds, tiny_gguf.UNUSED, tiny_gguf.UNUSED],
        template="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
    )
    path = tiny_gguf.write(tmp_path / "v.gguf", vocabulary=padded, tensors={})
    tokenizer = tokenizer_of(read_header(path))
    assert tokenizer.vocab_size == 512  # rows of the embedding beyond them are never drawn
    assert (tokenizer.eos, tokenizer.bos, tokenizer.pad) == (
        ("<eos>", "</answer>"),
        "<bos>",
        "<pad>",
    )
    assert tokenizer.encode("<eos>") != [2]
    assert tokenizer.encode("<eos>", control=True) == [2]
    assert tokenizer.prompt("12") == [1, *tokenizer.encode("12"), 2]
    path = tiny_gguf.write(tmp_path / "p.gguf", vocabulary=spare, tensors={})
    assert tokenizer_of(read_header(path)).bos is None  # nothing opens a text
    llama = tiny_gguf.byte_level("llama-bpe")
    path = tiny_gguf.write(tmp_path / "l.gguf", vocabulary=llama, tensors={})
    tokenizer = tokenizer_of(read_header(path))
    assert tokenizer.prompt("12") == [1, *tokenizer.encode("12\n")]


WRONG_VOCABULARIES = {
    "tokenizer.ggml.pre is 'poro-chat': read are": {"pre": "poro-chat"},
    "tokenizer.ggml.model is 'bert': read are gpt2 and llama": {"model": "bert"},
    "eos_token_id is 512: ids end at 511": {"eos": 512},
    "the merge 'a zz' is not of two known tokens": {"merges": ["a zz"]},
    "names a token twice": {"tokens": ["a"] * 512},
    "do not belong together": {"kinds": [1] * 511},
    "tokenizer.ggml.merges is missing": {"merges": None},
}


@pytest.mark.parametrize("told", WRONG_VOCABULARIES)
def test_vocabularies_that_make_no_tokenizer_are_refused(tmp_path, told):
    wrong = dataclasses.replace(tiny_gguf.byte_level("qwen2"), **WRONG_VOCABULARIES[told])
    path = tiny_gguf.write(tmp_path / "w.gguf", vocabulary=wrong, tensors={})
    with pytest.raises(PoloptError, match=told):
        tokenizer_of(read_header(path))


MEASURE = """
import resource, sys
import jax
from polopt.models import gguf, gguf_file, tokenizer

def peak():
    lines = open("/proc/self/status").read().split("\\n")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(sys.argv[2]))

gguf_file.library(), tokenizer.library(), jax.numpy.zeros(1).block_until_ready()
sys.argv[2] = "VmRSS"; before = peak()
params = gguf.load(sys.argv[1])[1]
sys.argv[2] = "VmHWM"
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print((peak() - before) / size)
"""


@pytest.mark.slow
def test_smollm2_is_read_in_little_more_memory_than_it_has():
    try:
        path = named.fetch("smollm2-135m", say=lambda text: None)
    except PoloptError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-c", MEASURE, str(path), ""]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.3
