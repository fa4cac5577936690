"""What docs/ shows is run."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import polopt
from polopt.cli.explain import run as run_explain
from polopt.cli.train import read_arguments
from polopt.train.setup import scale

TEXT = (Path(__file__).parents[1] / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = re.findall(r"^polopt .*$", TEXT, re.MULTILINE)


@pytest.fixture(scope="module")
def names():
    names: dict = {}
    for block in BLOCKS:
        exec(block, names)
    return names


def test_the_pieces_do_what_the_page_says(names):
    credit = np.asarray(names["prepared"].credit)[:, 2]  # the first action of each row
    reward = np.array([1.0, 1.0 - 0.3, -0.1, 1.0])
    centred = reward - reward.mean()
    np.testing.assert_allclose(credit, centred / (reward.std(ddof=1) + 1e-6), rtol=1e-5)
    memory = names["state"]["rollout"]["reward/running_baseline"]
    np.testing.assert_allclose(memory, 0.1 * 0.75, rtol=1e-6)


def test_replaced_links_leave_the_original_alone(names):
    changed, shipped = names["damped"], polopt.algorithms.grpo()
    assert "clip(low=0.2, high=0.28)" in polopt.explain(changed)
    assert [piece.name for piece in polopt.describe.facts(changed).reward][-1] == "damp_negatives"
    assert names["algorithms"].grpo() == shipped
    assert "kl_penalty" not in repr(names["without_kl"].trajectory)


def test_a_missing_column_is_told(names):
    bare = polopt.Trajectories.build(
        [[1]] * 2, [[2], [3]], [0.0, 1.0], group=2, columns={"logp_ref": np.zeros((2, 2))}
    )
    with pytest.raises(polopt.PoloptError, match="tool_price needs the column 'tool_calls'"):
        polopt.prepare(names["frugal"], bare)


def test_the_commands_are_understood(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("\n".join(BLOCKS[:3]), encoding="utf-8")
    explain, train = (shlex.split(command)[1:] for command in COMMANDS)
    assert run_explain(explain[1:]) == 0
    assert "Differs from grpo" in capsys.readouterr().out
    config = read_arguments(train[1:])
    from polopt.cli.table import find_algorithm

    made = scale(find_algorithm(config.algorithm), config)
    assert "soft_clip(width=0.5)" in polopt.explain(made)
    assert "damp_negatives(factor=1)" in polopt.explain(made)


def test_the_page_on_placement_shows_a_program_and_sizes_that_are_understood(capsys):
    page = (Path(__file__).parents[1] / "docs" / "placement.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(block, {})
    assert int(capsys.readouterr().out) > 4 * 64 * 16
    commands = re.findall(r"^polopt train.*?(?=\s{2,}#|$)", page, re.MULTILINE)
    asked = [read_arguments(shlex.split(command)[2:]) for command in commands]
    meshes = [config.mesh for config in asked]
    assert meshes == [(), ("fsdp=4", "tensor=2"), ("data=2", "fsdp=-1"), ("fsdp=8",), ("fsdp=6",)]
    assert asked[3].sample_mesh == ("tensor=4", "data=2")
    assert asked[4].sample_devices == 2


def test_the_commands_of_the_launch_page_are_understood(monkeypatch):
    from polopt.cli.app import COMMANDS
    from polopt.cli.processes import read_topology

    page = (Path(__file__).parents[1] / "docs" / "launch.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).replace("\\\n", " ")
    found = re.findall(r"(?<![\w-])polopt ((?:train|doctor)\b[^'\"#&\n]*)", blocks)
    assert len(found) >= 12
    for command in found:
        name, *argv = shlex.split(command)
        assert name in COMMANDS
        if name == "train":
            _, rest = read_topology(argv)
            read_arguments(rest)
    told = re.findall(r"^\| `(--[a-z-]+) ?[A-Z:]*` \| `(\w+)`", page, re.MULTILINE)
    from polopt.launch.topology import FLAGS

    assert dict(told) == FLAGS
