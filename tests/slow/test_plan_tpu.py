"""Plans for TPU slices, by the TPU's own compiler; no TPU is needed, but its package libtpu."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
        [sys.executable, "-m", "polopt", "plan", "--json", "--search", "0", *args],
        capture_output=True,
        text=True,
        env=env | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SMALL = ("--model", "base", "--prompt-length", "64", "--max-new-tokens", "64")


@pytest.mark.parametrize("slice_", ["v4-8", "v5e-4", "v5p-8", "v6e-4"])
def test_the_small_model_on_every_generation(slice_):
    made = plan(*SMALL, "--slice", slice_, "--mesh", "fsdp=2", "tensor=2")
    assert made["fits"]
    assert set(made["programs"]) == {"update", "scoring", "prefill", "decode"}
    sent = {one["kind"] for one in made["programs"]["update"]["collectives"]}
    assert "all-gather" in sent
    update = made["programs"]["update"]["bytes"]
    held = made["held"]["parameters"] + made["held"]["optimiser"]
    assert held <= update["arguments"]


def test_adapters_over_half_a_billion_weights_fit_one_chip():
    made = plan(
        "--model", "qwen2.5-0.5b", "--slice", "v5e-1", "--lora-rank", "16", "--remat",
        "--prompts", "4", "--group-size", "8", "--micro-batch", "2",
    )  # fmt: skip
    assert made["fits"]
    assert made["programs"]["update"]["needed"] < 16 * 2**30


def test_eight_billion_weights_fit_sixteen_chips_and_not_four():
    settings = ("--model", "llama3-8b", "--algorithm", "gspo", "--remat", "--micro-batch", "1")
    made = plan(*settings, "--slice", "v5e-16")
    assert made["programs"]["update"]["needed"] < 16 * 2**30
    refused = plan(*settings, "--slice", "v5e-4")
    assert not refused["fits"]
    assert "memory" in refused["programs"]["update"]["refusal"]
