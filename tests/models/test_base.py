"""The embedded model: whole, small, as advertised, and refused when it is not what was saved."""

import shutil

import jax
import numpy as np
import pytest

from polopt.errors import PoloptError
from polopt.models import DecoderConfig, LanguageModel, base
from polopt.models.tokenizer import train_tokenizer
from polopt.rollout.draw import Decoding
from polopt.rollout.sampler import generate
from polopt.tasks import load_task

FILES = ("weights.safetensors", "tokenizer.json", "config.json")


@pytest.fixture
def folder(tmp_path):
    for name in (*FILES, "manifest.json"):
        shutil.copy(base.EMBEDDED / name, tmp_path / name)
    return tmp_path


def test_it_is_small_and_says_where_it_comes_from():
    files = [file for file in base.EMBEDDED.iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 4 * 2**20
    readme = (base.EMBEDDED / "README.md").read_text(encoding="utf-8")
    for said in ("polopt pretrain", "Apache-2.0", "held-out", "seed"):
        assert said in readme


def test_it_answers_as_advertised():
    """25 to 50 % right, worked steps nearly always, in the room that the documents name."""
    model, params, tokenizer = base.load()
    problems = load_task(held_out=128).held_out
    reward = load_task(held_out=1).reward
    prompts = [tokenizer.prompt(problem.prompt) for problem in problems]
    assert max(map(len, prompts)) <= 16
    tokens = np.zeros((len(prompts), 16), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    generated = jax.device_get(
        generate(
            model,
            params,
            tokens,
            lengths,
            np.arange(len(prompts), dtype=np.int32),
            key=jax.random.key(3),
            group_size=1,
            max_new_tokens=32,
            decoding=Decoding(),
            eos_ids=tokenizer.eos_ids,
        )
    )
    assert generated.length.max() < 32
    rows = zip(generated.tokens, generated.length, strict=True)
    texts = [tokenizer.decode(tokens[:length]) for tokens, length in rows]
    right = np.array([reward(t, p)["score"] == 1 for t, p in zip(texts, problems, strict=True)])
    worked = np.array([not text.startswith("<answer>") for text in texts])
    assert 0.25 <= right.mean() <= 0.5
    assert 0.2 <= worked.mean() <= 0.45
    assert right[worked].mean() >= 0.85
    assert right[~worked].mean() <= 0.25


def test_loading_is_repeatable_and_in_float32():
    (model, params, tokenizer), (model2, params2, tokenizer2) = base.load(), base.load()
    assert (model, tokenizer) == (model2, tokenizer2)
    assert model.config.vocab_size == tokenizer.vocab_size
    jax.tree.map(np.testing.assert_array_equal, params, params2)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    assert 0.8e6 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 0.95e6


def test_saving_and_loading_is_exact_up_to_bfloat16(tmp_path):
    config = DecoderConfig(
        vocab_size=300,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        mlp_size=8,
        max_length=16,
        tie_embeddings=False,
    )
    model, tokenizer = LanguageModel(config), train_tokenizer(["a b", "a c"], 270)
    params = model.init(jax.random.key(0))
    base.save(tmp_path / "new", model, params, tokenizer)
    again, loaded, same = base.load(tmp_path / "new")
    assert (again, same) == (model, tokenizer)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), loaded, params)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found_and_its_file_named(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(PoloptError, match=rf"{name}: damaged or replaced"):
        base.load(folder)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(PoloptError, match=rf"no model in .*cannot read .*{name}"):
        base.load(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_manifest_that_knows_nothing_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(PoloptError, match=r"manifest.json"):
        base.load(folder)


def test_weights_of_another_shape_are_refused_by_name(folder):
    model, params, tokenizer = base.load(folder)
    wider = DecoderConfig(**{**model.config.to_dict(), "mlp_size": 385})
    base.save(folder, LanguageModel(wider), params, tokenizer)
    with pytest.raises(PoloptError, match=r"layers.0.mlp.down.kernel has shape .384, 128."):
        base.load(folder)
