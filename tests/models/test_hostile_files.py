"""Damaged and hostile folders: one line that names the fault; nothing large is allocated or run."""

import contextlib
import json
import os
import pathlib
import re
import resource

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from models import chats, folders
from polopt.errors import PoloptError
from polopt.models.huggingface import load
from polopt.models.safetensors_files import find_tensors, read_header

CASE = "qwen2_plain"  # tied, with biases
NORM = "model.norm.weight"


@pytest.fixture
def folder(tmp_path):
    return folders.write(tmp_path / "model", CASE)


def refused(folder, message):
    with pytest.raises(PoloptError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def weights(folder):
    return folder / "model.safetensors"


def parts(folder):
    """The header of the weights, and the bytes after it."""
    content = weights(folder).read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_parts(folder, header, data):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    weights(folder).write_bytes(len(text).to_bytes(8, "little") + text + data)


def edit(folder, change):
    header, data = parts(folder)
    change(header)
    write_parts(folder, header, data)


def edit_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))


def with_tensors(folder, **changes):
    """Other tensors by name; None takes one away."""
    made = folders.stored(CASE)
    for name, value in changes.items():
        made[name] = value
    kept = {name: value for name, value in made.items() if value is not None}
    safetensors.numpy.save_file(kept, weights(folder))


def test_what_is_missing(tmp_path, folder):
    refused(tmp_path / "nowhere", "nowhere: no such folder")
    refused(folder / "config.json", "no such folder")
    weights(folder).rename(folder / "pytorch_model.bin")
    refused(folder, "weights only as pytorch_model.bin, a pickle, which may run code when read: co")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, "no weights: neither model.safetensors nor model.safetensors.index.json")
    (folder / "config.json").unlink()
    refused(folder, "config.json: no such file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "config.json: not JSON"),
        (b"{", "config.json: not JSON"),
        (b"\xff\xfe\x00", "config.json: not JSON"),
        (b"[1]", "config.json: a JSON object is expected, not a list"),
        (b"[" * 100_000, "config.json: not JSON"),
        (b'{"a": ' * 100_000, "config.json: not JSON"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "config.json: not JSON"),
        (b'{"model_type": "llama", "model_type": "qwen2"}', "'model_type' stands there twice"),
        (b" " * (2**25 + 1), "more than 33554432 bytes of JSON"),
    ],
    ids=["empty", "open", "bytes", "list", "deep", "deep object", "digits", "twice", "large"],
)
def test_configurations_that_are_none(folder, content, message):
    (folder / "config.json").write_bytes(content)
    refused(folder, message)


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
def test_truncated(folder, kept):
    content = weights(folder).read_bytes()
    weights(folder).write_bytes(content[:kept])
    refused(folder, "model.safetensors: truncated")


def test_longer_than_described(folder):
    weights(folder).write_bytes(weights(folder).read_bytes() + b"\0")
    refused(folder, "longer than its header says")


def test_headers_of_absurd_size(folder):
    weights(folder).write_bytes((2**63).to_bytes(8, "little") + b"{}")
    refused(folder, "truncated: 10 bytes, of which the header alone takes 9223372036854775808")
    with open(weights(folder), "wb") as file:  # sparse: a terabyte on paper
        file.write((2**39).to_bytes(8, "little"))
        file.truncate(2**40)
    refused(folder, "a header of 549755813888 bytes: at most 33554432")


def entry(**changes):
    def change(header):
        header[NORM] = {**header[NORM], **changes}

    return change


HEADERS = {
    "overlap": (entry(data_offsets=[0, 64]), "overlaps what comes before it"),
    "beyond": (entry(data_offsets=[10**9, 10**9 + 64]), f"{NORM} leaves a hole, at byte"),
    "backwards": (entry(data_offsets=[64, 0]), "has -64 bytes, but BF16 of shape"),
    "negative": (entry(data_offsets=[-64, 0]), "dtype, shape and data_offsets are expected"),
    "fraction": (entry(data_offsets=[0.0, 64.0]), "dtype, shape and data_offsets are expected"),
    "truth": (entry(shape=[True]), "dtype, shape and data_offsets are expected"),
    "three": (entry(data_offsets=[0, 1, 2]), "dtype, shape and data_offsets are expected"),
    "no shape": (entry(shape=None), "dtype, shape and data_offsets are expected"),
    "astronomic": (entry(shape=[2**62, 2**62]), "has 64 bytes, but BF16 of shape"),
    "no object": (lambda h: h.update({NORM: 3}), "dtype, shape and data_offsets are expected"),
    "integers": (entry(dtype="I16"), "has type 'I16': accepted are F32, BF16, F16"),
    "no type": (entry(dtype=16), "dtype, shape and data_offsets are expected"),
    "shape": (entry(shape=[16, 2]), rf"{NORM} has shape \[16, 2\]: config.json asks for \[32\]"),
    "gone": (lambda h: h.pop(NORM), "leaves a hole|longer than its header says"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie(folder, name):
    change, message = HEADERS[name]
    edit(folder, change)
    refused(folder, message)


def test_headers_that_are_none(folder):
    _, data = parts(folder)
    for header, message in [
        ("[]", "header: a JSON object is expected"),
        ("{", "header: not JSON"),
        ('{"a": 1, "a": 2}', "header: 'a' stands there twice"),
    ]:
        write_parts(folder, header, data)
        refused(folder, message)


@given(st.integers(0, 400), st.integers(0, 255))
def test_any_byte_of_a_header_may_be_wrong(tmp_path_factory, place, value):
    path = tmp_path_factory.getbasetemp() / "one.safetensors"
    tensors = {name: np.ones((2, 3), np.float16) for name in ("a", "b", "c")}
    content = bytearray(safetensors.numpy.save(tensors))
    content[place % len(content)] = value
    path.write_bytes(content)
    with contextlib.suppress(PoloptError):
        assert sum(stored.size for stored in read_header(path).values()) == 36


def test_missing_and_extra_tensors(folder):
    with_tensors(folder, **{NORM: None})
    refused(folder, f"config.json asks for tensors that are missing: {NORM}$")
    biases = [f"model.layers.{layer}.mlp.up_proj.bias" for layer in range(7)]
    with_tensors(folder, **dict.fromkeys(biases, folders.stored(CASE)[NORM]))
    refused(folder, "tensors without a place in the model: .*mlp.up_proj.bias.* and 2 more$")
    edit_config(folder, num_hidden_layers=2, layer_types=None)
    with_tensors(folder)
    refused(folder, r"tensors without a place in the model: model\.layers\.2\.")
    edit_config(folder, num_hidden_layers=10_000)
    refused(folder, "the 10000 layers of config.json have at least 90002, so that some are missing")


def test_what_follows_from_the_rest_may_be_there(folder):
    made = folders.stored(CASE)
    embedding = made["model.embed_tokens.weight"]
    frequencies = np.ones(4, np.float32)
    with_tensors(
        folder,
        **{
            "lm_head.weight": embedding,
            "model.layers.0.self_attn.rotary_emb.inv_freq": frequencies,
            "model.rotary_emb.inv_freq": frequencies,
        },
    )
    load(folder)
    other = embedding.copy()
    other[3, 4] += 1
    for head in (other, embedding[:-1], embedding.astype(np.float32)):
        with_tensors(folder, **{"lm_head.weight": head})
        refused(folder, "lm_head.weight is not the embedding, though config.json ties them")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(folder, value):
    name = "model.layers.2.mlp.down_proj.weight"
    wrong = folders.stored(CASE)[name]
    wrong[-1, -1] = value
    with_tensors(folder, **{name: wrong})
    refused(folder, f"{name} has values that are not finite in float32")


def test_values_beyond_the_wanted_type(folder):
    with_tensors(folder, **{NORM: np.full(32, 1e6, np.float32)})
    load(folder)
    with pytest.raises(PoloptError, match=f"{NORM} has values that are not finite in float16"):
        load(folder, dtype="float16")


def shard(folder, names=lambda name: "b" if name < "model.layers.1" else "a", index=None):
    """The weights in two files, a.safetensors and b.safetensors, and their index."""
    made, weight_map = folders.stored(CASE), {}
    weights(folder).unlink(missing_ok=True)
    for file in "ab":
        part = {name: value for name, value in made.items() if file in names(name)}
        safetensors.numpy.save_file(part, folder / f"{file}.safetensors")
        weight_map |= dict.fromkeys(part, f"{file}.safetensors")
    text = json.dumps({"weight_map": weight_map | (index or {})})
    (folder / "model.safetensors.index.json").write_text(text)


def test_shards(folder):
    whole = load(folder)[1]
    shard(folder)
    got = load(folder)[1]
    for name, leaf in folders.flat(whole).items():
        np.testing.assert_array_equal(leaf, folders.flat(got)[name])
    (folder / "a.safetensors").unlink()
    refused(folder, "the file a.safetensors is not there")


def test_shards_and_index_that_disagree(folder):
    shard(folder, names=lambda name: "ab" if name == NORM else "a")
    refused(folder, f"a.safetensors: {NORM} is there, but model.safetensors.index.json says other")
    shard(folder, names=lambda name: "ab" if name == NORM else "b", index={NORM: "a.safetensors"})
    refused(folder, f"{NORM} is in both a.safetensors and b.safetensors")
    shard(folder, index={NORM: "b.safetensors"})
    refused(folder, f"{NORM} is there, but model.safetensors.index.json says otherwise")
    shard(folder, index={"other": "b.safetensors"})
    refused(folder, "other is not in it")
    for content in ("{}", '{"weight_map": []}', '{"weight_map": {}}'):
        (folder / "model.safetensors.index.json").write_text(content)
        refused(folder, "no 'weight_map' from tensors to files")


@pytest.mark.parametrize(
    "file",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/../../outside.safetensors",
        "..\\outside.safetensors",
        "..",
        "",
        "a\0.safetensors",
        "a" * 300 + ".safetensors",
        "a.bin",
        3,
        None,
        ["a.safetensors"],
    ],
    ids=repr,
)
def test_an_index_names_files_of_its_folder_only(folder, file):
    shard(folder, index={NORM: file})
    safetensors.numpy.save_file({NORM: np.ones(32, np.float16)}, folder / "../outside.safetensors")
    message = re.escape(repr(file)) + ": accepted are names of safetensors files of the folder"
    refused(folder, message)


def test_links_are_followed_as_caches_are_made_of_them(folder, tmp_path):
    blob = tmp_path / "blob"
    weights(folder).rename(blob)
    weights(folder).symlink_to(blob)
    load(folder)
    blob.unlink()
    refused(folder, "no weights")
    weights(folder).unlink()
    weights(folder).symlink_to(weights(folder))
    refused(folder, "no weights|cannot read it")


def test_no_regular_file(folder):
    weights(folder).unlink()
    weights(folder).mkdir()
    refused(folder, "no weights")
    weights(folder).rmdir()
    os.mkfifo(weights(folder))  # to open it would wait for ever
    refused(folder, "no weights")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    refused(folder, "config.json: no such file")


def test_a_pickle_is_not_opened(folder):
    trap = folder / "trap"
    code = f"cos\nsystem\n(S'touch {trap}'\ntR.".encode()
    (folder / "pytorch_model.bin").write_bytes(code)
    load(folder)  # beside safetensors it is not looked at
    weights(folder).write_bytes(code)
    refused(folder, "truncated")
    weights(folder).unlink()
    refused(folder, "a pickle, which may run code")
    assert not trap.exists()


def test_a_tokenizer_of_another_model(folder):
    (folder / "tokenizer.json").write_text(chats.source())
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    refused(folder, "the tokenizer has id 48, the model's vocabulary ends before 48")


def test_nothing_large_is_allocated(folder):
    """Configurations and headers of a few bytes that ask for much, refused in little memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    huge = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 2**24)
    edit_config(folder, **huge, num_attention_heads=10_000, head_dim=2**24)
    refused(folder, r"has shape \[.*\]: config.json asks for \[")
    edit(folder, entry(shape=[2**40], data_offsets=[0, 2**41]))
    refused(folder, "overlaps what comes before it|truncated|leaves a hole")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 200_000  # kB
    assert find_tensors(folders.write(pathlib.Path(folder) / "whole", CASE))
