"""The frozen values can be read, are enough, and say how they were made."""

import json
import pathlib

import numpy as np
import pytest

from .batches import VOCAB, N, T

CASES = sorted((pathlib.Path(__file__).parent / "frozen").glob("*.npz"))
VERSIONS = {"verl": "0.9.1", "trl": "1.16.0", "tunix": "0.1.7"}
MEASURED = {"loss", "value_loss", "reward"}  # a case says one of these at least
SHAPES = {(), (N, T), (N, T, VOCAB)}


def test_there_are_cases_of_every_package():
    assert {path.stem.split("_")[0] for path in CASES} == set(VERSIONS)
    assert sum(path.stat().st_size for path in CASES) < 2_000_000


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_case_is_complete(path):
    with np.load(path) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta")))
    package = meta["package"]
    assert f"{package}_{meta['case']}" == path.stem
    assert meta["version"] == VERSIONS[package]
    assert "settings" in meta
    count = len(arrays["seed"])
    assert count >= 200
    assert len(set(arrays["seed"].tolist())) == count
    assert MEASURED & arrays.keys()
    for name, array in arrays.items():
        assert np.isfinite(array).all(), name
        if name.startswith("whole_"):
            assert array.shape[0] == 3
            assert array.shape[1:] in SHAPES, name
        else:
            assert array.shape in {(count,), (count, 2)}, name
