"""The main job as a newcomer runs it, and the notebook as it stands."""

import os
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

from polopt.train.record import read_metrics

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def plain_environment():
    """Without the eight virtual devices of the tests: a newcomer has none."""
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


def test_the_default_run_learns(tmp_path, plain_environment):
    subprocess.run(
        [sys.executable, "-m", "polopt", "train", "--run", str(tmp_path / "run")],
        check=True,
        env=plain_environment,
    )
    evaluations = [row for row in read_metrics(tmp_path / "run") if "eval/accuracy" in row]
    first, last = evaluations[0], evaluations[-1]
    assert first["eval/problems"] == last["eval/problems"] == 256
    assert 0.25 <= first["eval/accuracy"] <= 0.5
    assert last["eval/accuracy"] >= 0.8
    assert last["eval/accuracy"] - first["eval/accuracy"] >= 0.3
    for left in ("config.json", "plots/run.png", "checkpoints"):
        assert (tmp_path / "run" / left).exists()


def test_the_notebook_runs_as_it_stands(tmp_path, plain_environment, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    notebook = nbformat.read(ROOT / "colab/quickstart.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=1500,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    text = "".join(str(cell.get("outputs")) for cell in notebook.cells)
    assert "held-out accuracy" in text
    assert "image/png" in text
