"""`polopt export`: what is written is read back bit by bit, whatever it came from."""

import shutil

import jax
import numpy as np
import pytest
from models import tiny_gguf

from polopt.cli import main
from polopt.models import base, gguf, huggingface
from polopt.models.lora import pairs, split
from polopt.models.peft import load_peft
from polopt.train import checkpoint
from polopt.train.config import TrainConfig, to_json
from polopt.train.policy import adapted, load_policy
from polopt.train.sft_config import SftConfig


def complaint(capsys, *args):
    code = main(["export", *map(str, args)])
    return code, capsys.readouterr().err.removeprefix("polopt: ").rstrip("\n")


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
    """A run over the base with one adapter that moved, and what it trained."""
    folder = tmp_path_factory.mktemp("run")
    settings = TrainConfig(lora_rank=2, lora_targets=("layers/0/attention/q",))
    moving, _ = split(adapted(load_policy("base"), settings).params)
    moving = jax.tree.map(lambda leaf: leaf + 0.5, moving)
    (folder / "config.json").write_text(to_json(settings))
    checkpoint.save(folder / "checkpoints", 1, {"params": {"policy": moving}}, {})
    return folder, moving


def test_a_model_goes_out_and_in_unchanged(tmp_path, capsys):
    one, two, small = (str(tmp_path / name) for name in ("one", "two", "small"))
    assert main(["export", "base", one]) == 0
    size = sum(path.stat().st_size for path in (tmp_path / "one").iterdir())
    assert capsys.readouterr().out == f"model  {one}  {size / 1e6:.1f} MB\n"
    model, params, tokenizer = base.load()
    again, got, read = huggingface.load(one)
    assert (again, read) == (model, tokenizer)
    jax.tree.map(np.testing.assert_array_equal, params, got)
    assert main(["export", one, two]) == 0
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes(), path.name
    assert main(["export", one, small, "--dtype", "bfloat16"]) == 0  # the type it is shipped in
    jax.tree.map(np.testing.assert_array_equal, params, huggingface.load(small)[1])
    assert (tmp_path / "small/model.safetensors").stat().st_size < 0.6 * size


def test_a_gguf_file_becomes_the_folder_of_the_same_model(tmp_path):
    path = tiny_gguf.write(tmp_path / "tiny.gguf")
    assert main(["export", str(path), str(tmp_path / "out")]) == 0
    model, params, tokenizer = gguf.load(path)
    again, got, read = huggingface.load(tmp_path / "out")
    assert again.config == model.config
    assert read.encode("abba") == tokenizer.encode("abba")
    jax.tree.map(np.testing.assert_array_equal, params, got)


def test_a_run_with_adapters_is_merged_or_its_adapters_alone(lora_run, tmp_path, capsys):
    folder, moving = lora_run
    out, adapter = tmp_path / "out", tmp_path / "adapter"
    assert main(["export", str(folder), str(out)]) == 0
    model, params, _ = base.load()
    got = huggingface.load(out)[1]
    ((_, (a, b)),) = pairs(moving)
    kernel = params["layers"]["0"]["attention"]["q"].pop("kernel")
    merged = got["layers"]["0"]["attention"]["q"].pop("kernel")
    np.testing.assert_allclose(merged, kernel + 16 * np.asarray(a) @ np.asarray(b), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, params, got)
    capsys.readouterr()
    assert main(["export", str(folder), str(adapter), "--adapter"]) == 0
    assert capsys.readouterr().out == f"adapter  {adapter}  0.0 MB, over base\n"
    read, adapters = load_peft(adapter, model)
    assert (read.rank, read.alpha) == (2, 32.0)
    jax.tree.map(np.testing.assert_array_equal, adapters, moving)


def test_adapters_of_a_supervised_run_go_out_too(lora_run, tmp_path, capsys):
    folder, adapter = tmp_path / "run", tmp_path / "adapter"
    shutil.copytree(lora_run[0], folder)
    settings = SftConfig(lora_rank=2, lora_targets=("layers/0/attention/q",))
    (folder / "config.json").write_text(to_json(settings))
    assert main(["export", str(folder), str(adapter), "--adapter"]) == 0
    assert capsys.readouterr().out == f"adapter  {adapter}  0.0 MB, over base\n"


def test_what_cannot_be_exported_is_one_line(lora_run, tmp_path, capsys):
    new = tmp_path / "new"
    assert complaint(capsys, "base", tmp_path) == (
        1,
        f"{tmp_path} exists already: choose another folder",
    )
    assert complaint(capsys, "base", new, "--adapter") == (
        1,
        "base has no adapters: only a run with --lora-rank has",
    )
    code, line = complaint(capsys, lora_run[0], new, "--adapter", "--dtype", "float16")
    assert (code, line) == (2, "--dtype is of whole models: adapters are written in float32")
    assert complaint(capsys, "base")[0] == 2
    assert complaint(capsys, "nobody", new)[1].startswith("no model 'nobody'")
    assert not new.exists()
