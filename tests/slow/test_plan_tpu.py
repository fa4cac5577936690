"""Plans for TPU slices, by the TPU's own compiler; no TPU is needed, but its package libtpu."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from polopt.plan.shapes import SHAPES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason='the TPU\'s compiler is not installed: pip install "polopt[tpu]"',
    ),
]
ROOT = Path(__file__).parents[2]


def plan(*args):
    """What the command says, in a process without the settings of tests."""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "polopt", "plan", "--json", *args],
        capture_output=True,
        text=True,
        env=env | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


ONCE = ("--search", "0")
LENGTHS = ("--prompt-length", "64", "--max-new-tokens", "64")
SLICES = ["v4-8", "v5e-4", "v5p-8", "v6e-4"]


def shape_of(folder, name, **changes):
    """A folder that describes a model like a named one."""
    (folder / "config.json").write_text(json.dumps(SHAPES[name] | changes))
    return str(folder)


@pytest.fixture
def small(tmp_path):
    """One layer, whose parts fill the tiles of a TPU's memory."""
    shape = shape_of(
        tmp_path,
        "smollm2-135m",
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return ("--model", shape, *LENGTHS, *ONCE)


@pytest.mark.parametrize("slice_", SLICES)
def test_the_small_model_on_a_mesh_of_every_generation(slice_, small):
    made = plan(*small, "--slice", slice_, "--mesh", "fsdp=2", "tensor=2")
    assert made["fits"]
    assert set(made["programs"]) == {"update", "scoring", "prefill", "decode"}
    update = made["programs"]["update"]
    assert {"all-gather", "all-reduce"} <= {sent["kind"] for sent in update["collectives"]}
    held = made["held"]["parameters"] + made["held"]["optimiser"]
    assert held <= update["bytes"]["arguments"] < held + 3 * 2**20  # with its part of a batch
    assert update["bytes"]["reused"] == pytest.approx(held, rel=0.05)  # norms are padded to tiles


@pytest.mark.parametrize("slice_", SLICES)
def test_the_small_model_with_a_copy_on_each_chip(slice_, small):
    made = plan(*small, "--slice", slice_, "--parallel", "pmap", "--update-only")
    assert made["fits"]
    update = made["programs"]["update"]
    sums = {sent["kind"]: sent["bytes"] for sent in update["collectives"]}
    # Gradients once, in a ring of four: each part passes a chip twice but for its own.
    assert sums["all-reduce"] == pytest.approx(2 * made["held"]["parameters"] * 3 / 4, rel=0.05)


def test_adapters_over_half_a_billion_weights_fit_one_chip():
    made = plan(
        "--model", "qwen2.5-0.5b", "--slice", "v5e-1", "--lora-rank", "16", "--remat",
        "--prompts", "4", "--group-size", "8", "--micro-batch", "2", "--update-only", *ONCE,
    )  # fmt: skip
    assert made["fits"]
    assert made["programs"]["update"]["needed"] < 15.75 * 2**30


def test_layers_of_eight_billion_weights_on_sixteen_chips(tmp_path):
    """By fsdp alone no chip has a gradient of a whole vocabulary, nor recomputes ahead."""
    shape = shape_of(tmp_path, "llama3-8b", num_hidden_layers=4)
    made = plan(
        "--model", shape, "--slice", "v5e-16", "--mesh", "fsdp=16", "--remat",
        "--micro-batch", "1", "--update-only", *ONCE,
    )  # fmt: skip
    assert made["fits"]
    # 2.26 GiB; 2.50 where weights' gradients are put off, 11.4 with whole tables of [V,D].
    assert made["programs"]["update"]["bytes"]["temporary"] < 2.4 * 2**30
    # Weights and two moments in float32, a sixteenth of each; norms are whole on every chip.
    weights = 2 * 128_256 * 4096 + 4 * (2 * 4096 * (4096 + 1024) + 3 * 4096 * 14_336)
    bytes_ = made["programs"]["update"]["bytes"]
    assert bytes_["reused"] == pytest.approx(12 * weights / 16, rel=0.01)
    held = made["held"]["parameters"] + made["held"]["optimiser"]
    assert held == pytest.approx(12 * weights / 16, rel=0.01)


def test_what_does_not_fit_is_refused_in_the_compilers_words(tmp_path):
    shape = shape_of(tmp_path, "llama3-8b", num_hidden_layers=1)
    made = plan(
        "--model", shape, "--slice", "v5e-1", "--remat",
        "--micro-batch", "1", "--prompts", "1", "--update-only", "--search", "1",
    )  # fmt: skip
    assert not made["fits"]
    assert "available HBM (15.75G)" in made["programs"]["update"]["refusal"]
    assert made["slice"]["memory"] == 15.75 * 2**30
    # The weights and moments of this layer and its tables fill the chip: adapters are proposed,
    # and the compiler has made their update.
    advice = made["advice"][0]
    assert "--lora-rank" in advice["flags"]
    assert advice["compiled"]
