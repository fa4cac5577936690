"""Hugging Face folders: logits are transformers', weights go in and out bit by bit."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from public import checkpoints

from models import chats, folders, toys
from polopt.errors import PoloptError
from polopt.models import DecoderConfig, LanguageModel
from polopt.models.huggingface import load, save
from polopt.models.layout import plan
from polopt.models.tokenizer import Tokenizer

CLOSE = 2e-5  # of float32 logits up to 4
CONFIG = DecoderConfig(
    vocab_size=528,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_size=24,
    max_length=32,
)


@pytest.fixture(scope="module", params=folders.CASES)
def frozen(request, tmp_path_factory):
    """A model that was loaded, and what transformers says of its rows."""
    folder = folders.write(tmp_path_factory.mktemp("model"), request.param)
    model, params, tokenizer = load(folder)
    assert tokenizer is None
    return model, params, checkpoints.frozen(request.param)[1]


def params_of(config, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(LanguageModel(config).init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), shapes)


def assert_same(one, other):
    one, other = folders.flat(one), folders.flat(other)
    assert one.keys() == other.keys()
    for name, leaf in one.items():
        assert leaf.dtype == other[name].dtype, name
        np.testing.assert_array_equal(leaf, other[name], err_msg=name)


def test_every_family_is_frozen():
    families = {checkpoints.frozen(case)[0]["config"]["model_type"] for case in folders.CASES}
    assert families == {
        "llama",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "gemma2",
        "gemma3",
        "gemma3_text",
    }


def test_logits_of_rows_and_of_padded_rows(frozen):
    model, params, said = frozen
    T = said["tokens"].shape[1]
    real = np.arange(T)[None] < said["length"][:, None]
    assert said["length"][0] == said["length"][3] == T  # rows without padding
    logits = model.logits(params, model.hidden(params, np.where(real, said["tokens"], 7)))
    np.testing.assert_allclose(logits[real], said["logits"][real], rtol=0, atol=CLOSE)


@pytest.mark.slow
def test_logits_of_packed_rows(frozen):
    model, params, said = frozen
    N, T = said["tokens"].shape
    at = np.arange(T)[None]
    own = (at >= said["prompt_length"][:, None]) & (at < said["length"][:, None])
    rows = toys.trajectories(said["tokens"], own, said["length"])
    rows = jax.tree.map(np.asarray, rows)
    rows = type(rows)(**{**vars(rows), "prompt_length": said["prompt_length"]})
    layout = jax.tree.map(lambda leaf: leaf[0], plan(rows, np.arange(N)))
    assert layout.prompt.shape[0] == 2  # each prompt is computed once
    assert layout.segment.max() >= 1  # some bins hold several rows
    states = model.states(params, layout)
    logits = model.logits(params, states[layout.source])
    predicted = np.roll(said["logits"], 1, axis=1)
    np.testing.assert_allclose(logits[own], predicted[own], rtol=0, atol=CLOSE)


@pytest.mark.slow
def test_logits_of_cached_decoding(frozen):
    model, params, said = frozen
    tokens, length, start = said["tokens"], said["length"], said["prompt_length"]
    N, C = len(tokens), int((length - start).max())
    prompt, last = model.prefill(params, tokens[::3, : start.max()], start[::3])
    states, cache = [np.repeat(last, 3, axis=0)], model.empty_cache(N, C)
    for step in range(C - 1):
        read = tokens[np.arange(N), np.minimum(start + step, tokens.shape[1] - 1)]
        cache, state = model.decode(params, prompt, cache, read, step)
        states.append(state)
    logits = np.asarray(model.logits(params, jnp.stack(states, axis=1)))
    for n in range(N):
        own = length[n] - start[n]
        expected = said["logits"][n, start[n] - 1 : length[n] - 1]
        np.testing.assert_allclose(logits[n, :own], expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("case", ["llama_biases", "qwen3_moe_plain", "gemma3_text"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_round_trip_is_exact(case, dtype, tmp_path):
    model, params, _ = load(folders.write(tmp_path / "in", case))
    params = jax.tree.map(lambda leaf: (np.asarray(leaf) * 1.2345).astype(jnp.dtype(dtype)), params)
    save(tmp_path / "out", model, params)
    again, got, _ = load(tmp_path / "out", dtype=dtype, compute_dtype="float32")
    assert again == model
    assert_same(params, got)
    wide = load(tmp_path / "out")[1]  # float32 has room for all of them
    save(tmp_path / "again", model, wide, dtype=dtype)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize("case", folders.CASES)
def test_what_is_written_has_the_tensors_that_were_read(case, tmp_path):
    folder = folders.write(tmp_path / "in", case)
    meta, _ = checkpoints.frozen(case)
    model, params, _ = load(folder)
    save(tmp_path / "out", model, params, dtype=meta["dtype"])
    got = safetensors.flax.load_file(tmp_path / "out" / "model.safetensors")
    there = {
        k.replace("language_model.model.", "model."): v for k, v in folders.stored(case).items()
    }
    there = {k: v for k, v in there.items() if not k.startswith(("vision_", "multi_modal"))}
    assert got.keys() == there.keys()
    for name, tensor in there.items():
        assert got[name].dtype == tensor.dtype
        np.testing.assert_array_equal(got[name], tensor, err_msg=name)


def test_shards_are_one_model(tmp_path):
    params = params_of(CONFIG)
    save(tmp_path / "one", LanguageModel(CONFIG), params)
    save(tmp_path / "many", LanguageModel(CONFIG), params, max_shard_bytes=5000)
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert len(files) > 3
    assert set(index["weight_map"].values()) == set(files)
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert_same(load(tmp_path / "one")[1], load(tmp_path / "many")[1])
    assert_same(params, load(tmp_path / "many")[1])


def test_compute_follows_the_parameters(tmp_path):
    save(tmp_path / "m", LanguageModel(CONFIG), params_of(CONFIG))
    assert load(tmp_path / "m", dtype="bfloat16")[0].compute_dtype == "bfloat16"
    assert load(tmp_path / "m", dtype="float16")[0].compute_dtype == "float32"
    assert load(tmp_path / "m", compute_dtype="bfloat16")[0].compute_dtype == "bfloat16"
    with pytest.raises(PoloptError, match="dtype is 'int8': accepted are float32, bfloat16, float"):
        load(tmp_path / "m", dtype="int8")


def test_parameters_are_put_where_they_are_wanted(tmp_path):
    params = params_of(CONFIG)
    save(tmp_path / "m", LanguageModel(CONFIG), params)
    mesh = Mesh(np.array(jax.devices()[:8]), ("x",))
    whole, cut = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("x",)))

    def of(path):
        return cut if path.endswith(("embedding", "kernel")) else whole

    _, got, _ = load(tmp_path / "m", shardings=of)
    assert got["layers"]["1"]["attention"]["q"]["kernel"].sharding == cut
    assert got["norm"]["scale"].sharding == whole
    assert_same(params, got)
    tree = jax.tree.map(lambda leaf: leaf.sharding, got)
    again = load(tmp_path / "m", shardings=tree)[1]
    assert jax.tree.map(lambda leaf: leaf.sharding, again) == tree
    save(tmp_path / "from_shards", LanguageModel(CONFIG), got)
    assert_same(params, load(tmp_path / "from_shards")[1])
    one = load(tmp_path / "m", shardings=SingleDeviceSharding(jax.devices()[3]))[1]
    assert one["norm"]["scale"].devices() == {jax.devices()[3]}
    del tree["norm"]
    with pytest.raises(PoloptError, match="shardings and parameters differ at norm/scale"):
        load(tmp_path / "m", shardings=tree)
    with pytest.raises(PoloptError, match=r"/scale of shape \(16,\) does not fit"):
        load(tmp_path / "m", shardings=lambda path: NamedSharding(mesh, PartitionSpec(None, "x")))


def test_loaded_parameters_may_be_donated(tmp_path):
    params = params_of(CONFIG)
    save(tmp_path / "m", LanguageModel(CONFIG), params)
    _, got, _ = load(tmp_path / "m")
    step = jax.jit(lambda p: jax.tree.map(lambda leaf: leaf + 1, p), donate_argnums=0)
    got = step(step(got))
    assert_same(jax.tree.map(lambda leaf: leaf + 1 + 1, params), got)


def test_a_tokenizer_travels_with_its_model(tmp_path):
    tokenizer = Tokenizer(
        chats.source(),
        eos=("<|im_end|>", "<eos>"),
        chat_template="{{ messages[0].content }}<|im_end|>",
    )
    save(tmp_path / "m", LanguageModel(CONFIG), params_of(CONFIG), tokenizer)
    _, _, got = load(tmp_path / "m")
    assert got == tokenizer
    generation = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == list(tokenizer.eos_ids)
    assert len(tokenizer.eos_ids) == 2


@pytest.mark.parametrize("bos", [None, "<bos>"])
def test_a_tokenizer_opens_a_text_or_not(bos, tmp_path):
    tokenizer = Tokenizer(chats.source(), bos=bos, pad="<eos>")
    save(tmp_path / "m", LanguageModel(CONFIG), params_of(CONFIG), tokenizer)
    assert load(tmp_path / "m")[2] == tokenizer


def test_ids_beyond_the_vocabulary(tmp_path):
    tokenizer = Tokenizer(chats.source())
    size = tokenizer.vocab_size
    unused = tokenizer.control_tokens[-1]  # has the last id
    assert tokenizer.token_id(unused) == size - 1
    for V, given in ((size - 1, tokenizer), (size, tokenizer)):
        model = LanguageModel(DecoderConfig(**{**vars(CONFIG), "vocab_size": V}))
        save(tmp_path / str(V), model, params_of(model.config), given)
        assert load(tmp_path / str(V))[2] == given  # a control token that nobody writes
    used = Tokenizer(chats.source(), eos=(unused,))
    model = LanguageModel(DecoderConfig(**{**vars(CONFIG), "vocab_size": size - 1}))
    with pytest.raises(PoloptError, match=f"the tokenizer has id {size - 1}, the model's vocab"):
        save(tmp_path / "used", model, params_of(model.config), used)
    (tmp_path / str(size - 1) / "generation_config.json").write_text(
        json.dumps({"eos_token_id": size - 1})
    )
    with pytest.raises(PoloptError, match=f"the tokenizer has id {size - 1}, the model's vocab"):
        load(tmp_path / str(size - 1))


def test_save_leaves_nothing_half_written(tmp_path):
    model, params = LanguageModel(CONFIG), params_of(CONFIG)
    save(tmp_path / "m", model, params)
    with pytest.raises(PoloptError, match="is there already: name a new folder"):
        save(tmp_path / "m", model, params)
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", model, params)
    params["norm"]["scale"][3] = np.nan
    with pytest.raises(PoloptError, match="weight has values that are not finite"):
        save(tmp_path / "bad", model, params)
    params["norm"]["scale"][:] = 1e5
    with pytest.raises(PoloptError, match="has values that are not finite in float16"):
        save(tmp_path / "bad", model, params, dtype="float16")
    with pytest.raises(PoloptError, match=r"norm/scale is \(3,\): the model has \(16,\)"):
        save(tmp_path / "bad", model, {**params, "norm": {"scale": np.ones(3)}})
    untied = LanguageModel(DecoderConfig(**{**vars(CONFIG), "tie_embeddings": False}))
    with pytest.raises(PoloptError, match="params: unembed/embedding is not there"):
        save(tmp_path / "bad", untied, params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "m"]


_PEAK = """
import pathlib, re, sys
import jax
from polopt.models.huggingface import load
def status(key):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(key + r":\\s*(\\d+) kB", text).group(1)) * 1024
load(sys.argv[1])  # so that what JAX itself needs is not counted
for dtype in ("bfloat16", "float32"):  # the smaller first: a process knows its highest peak only
    before = status("VmRSS")
    params = load(sys.argv[2], dtype=dtype)[1]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print((status("VmHWM") - before) / size)
    del params
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_of_memory_is_the_model(tmp_path):
    sizes = {"vocab_size": 8192, "hidden_size": 512, "num_layers": 3, "mlp_size": 2048}
    config = DecoderConfig(**{**vars(CONFIG), **sizes})
    shapes = jax.eval_shape(LanguageModel(config).init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes)
    save(tmp_path / "m", LanguageModel(config), params)
    save(tmp_path / "tiny", LanguageModel(CONFIG), params_of(CONFIG))
    command = [sys.executable, "-c", _PEAK, str(tmp_path / "tiny"), str(tmp_path / "m")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ratios = [float(line) for line in out.split()]
    assert len(ratios) == 2
    assert max(ratios) <= 1.3, ratios
