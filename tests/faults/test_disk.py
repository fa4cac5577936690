"""A disk that is full or cannot be written: one line, and what was saved before stays."""

import resource

import numpy as np
import pytest
from train import toy

from polopt.errors import PoloptError
from polopt.train import checkpoint


def tree(seed, size=1 << 16):
    return {"w": np.random.default_rng(seed).normal(size=size).astype(np.float32)}


@pytest.fixture
def little_room():
    """No file may grow beyond 64 KiB in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_save_that_does_not_fit_is_one_line_and_leaves_nothing(tmp_path, little_room, caplog):
    checkpoint.save(tmp_path, 1, tree(1, size=64), {})
    for _ in range(2):
        with pytest.raises(PoloptError) as error:
            checkpoint.save(tmp_path, 2, tree(2), {})
        assert str(error.value) == (
            f"cannot write the checkpoint {tmp_path}/00000002: File too large"
        )
        assert caplog.records == []
        assert [p.name for p in tmp_path.iterdir()] == ["00000001"]
    step, found, _ = checkpoint.restore(tmp_path, tree(0, size=64))
    assert step == 1
    toy.assert_same_tree(found, tree(1, size=64))


def test_the_next_save_that_fits_is_made(tmp_path):
    (tmp_path / "00000002.partial").mkdir()
    checkpoint.save(tmp_path, 2, tree(2), {})
    toy.assert_same_tree(checkpoint.restore(tmp_path, tree(0))[1], tree(2))


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(PoloptError, match="cannot write the checkpoint") as error:
        checkpoint.save(tmp_path / "checkpoints", 1, tree(1), {})
    assert "\n" not in str(error.value)
