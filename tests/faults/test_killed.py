"""A process that is killed while it saves leaves the checkpoint before, whole."""

import subprocess
import sys

from train import toy

from faults.killed_saver import content
from polopt.train import checkpoint

DELAYS = ["0", "5", "15", "40"]  # milliseconds; a save takes some 50


def test_a_save_that_is_killed_leaves_the_newest_committed_step(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "faults.killed_saver", str(tmp_path), *DELAYS],
        check=True,
        timeout=200,
        cwd="tests",
    )
    partial = 0
    for i in range(len(DELAYS)):
        folder = tmp_path / str(i)
        left = sorted(p.name for p in folder.iterdir())
        committed = [int(name) for name in left if name.isdecimal()]
        partial += any(name.endswith(".partial") for name in left)
        step, found, counters = checkpoint.restore(folder, content(0))
        assert (step, counters) == (max(committed), {"step": step})
        assert step >= 2
        toy.assert_same_tree(found, content(step))
        checkpoint.save(folder, step + 1, content(step + 1), {})
        names = sorted(p.name for p in folder.iterdir())
        assert names == [f"{step:08d}", f"{step + 1:08d}"]
    assert partial  # at least one was killed inside a save
