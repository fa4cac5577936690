import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import polopt
from polopt.cli import main
from polopt.cli.app import COMMANDS

ROOT = Path(__file__).parents[2]


def fresh(*args, code=None):
    """Run ``python -m polopt`` (or `code`) in a process of its own."""
    command = ["-m", "polopt", *args] if code is None else ["-c", code, *args]
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"},
    )


def complaint(capsys, *args):
    """Run in this process; return the exit code and the one line on standard error."""
    code = main(args)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("polopt: ")
    assert err.count("\n") == 1
    return code, err.removeprefix("polopt: ").rstrip("\n")


@pytest.mark.parametrize("args", [[], ["--help"], *([c, "--help"] for c in COMMANDS)])
def test_help_answers_in_a_second_and_imports_no_jax(args):
    code = (
        "import sys, time\n"
        "from polopt.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as e: assert e.code == 0, e.code\n"
        "heavy = {'jax', 'numpy', 'flax', 'rich', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(time.process_time(), file=sys.stderr)"  # of the processor: the machine may be busy
    )
    result = fresh(*args, code=code)
    assert result.returncode == 0, result.stderr
    assert float(result.stderr) < 1.0
    assert result.stdout.startswith("usage: polopt")
    assert "example" in result.stdout


def test_help_teaches_by_examples_at_the_bottom():
    text = fresh("train", "--help").stdout
    assert text.index("--learning-rate") < text.index("examples:")
    assert "polopt train --config runs/grpo-chain_sum-0 --resume" in text
    assert all(f"\n  {name} " in fresh("--help").stdout for name in COMMANDS)


def test_help_fits_80_columns():
    for args in (["--help"], *([command, "--help"] for command in COMMANDS)):
        lines = fresh(*args).stdout.splitlines()
        assert max(map(len, lines)) <= 81, max(lines, key=len)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["trian"], "no command 'trian'; did you mean 'train'?"),
        (["xyz"], "no command 'xyz'; polopt --help lists the commands"),
        (["train", "--stpes", "3"], "no option '--stpes'; did you mean '--steps'?"),
        (["train", "--group_sze=3"], "no option '--group_sze'; did you mean '--group-size'?"),
        (["train", "grpo"], "unexpected argument 'grpo' (polopt train --help)"),
        (["train", "--steps", "0"], "steps must be at least 1, not 0"),
        (["train", "--config"], "--config takes a value"),
        (["methods", "--jsn"], "unexpected argument '--jsn' (polopt methods --help)"),
    ],
)
def test_what_is_not_understood_is_one_line_and_exit_code_2(capsys, args, line):
    assert complaint(capsys, *args) == (2, line)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "--steps", "x"], ["--steps", "'x'"]),
        (["train", "--parallel", "grid"], ["'grid'", "--parallel", "'pmap', 'mesh'"]),
        (["train", "--steps"], ["--steps"]),
    ],
)
def test_values_that_do_not_fit_are_one_line_and_exit_code_2(capsys, args, words):
    code, line = complaint(capsys, *args)
    assert code == 2
    assert all(word in line for word in words)


def test_a_failure_is_one_line_and_exit_code_1(capsys, tmp_path):
    code, line = complaint(capsys, "train", "--config", str(tmp_path / "none.json"))
    assert code == 1
    assert "none.json: No such file" in line


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"polopt {polopt.__version__}\n"


def test_every_command_has_its_module():
    for module, purpose in COMMANDS.values():
        assert callable(importlib.import_module(module).run)
        assert purpose


def test_a_reader_that_leaves_is_no_error():
    process = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m polopt methods --json | head -1"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout == "[\n"
    assert process.stderr == ""


def test_methods_are_listed_for_people_and_programs(capsys):
    assert main(["methods"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert main(["methods", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    listed = [row.split()[0] for row in rows if row.startswith("  ")]
    assert [key for key in listed if key in polopt.algorithms.__all__] == [m["key"] for m in table]
    grpo = next(entry for entry in table if entry["key"] == "grpo")
    assert (grpo["paper"], grpo["models"]) == ("2402.03300", ["reference"])
    assert "  grpo                  2024  2402.03300  RT  credit relative to" in "\n".join(rows)
    assert all(len(row) <= 100 for row in rows)


@pytest.mark.parametrize(
    ("package", "args"),
    [("tyro", ["train"]), ("matplotlib.figure", ["train", "--quiet"])],
)
def test_a_missing_package_is_one_line_that_names_the_extra(capsys, monkeypatch, package, args):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    code, line = complaint(capsys, *args)
    assert code == 1
    assert package.partition(".")[0] in line
    assert line.endswith('pip install "polopt[run]"')
