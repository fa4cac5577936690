"""``polopt explain`` and ``polopt map``."""

import json
import sys

import pytest

from polopt import algorithms
from polopt.cli import main
from polopt.cli.show import show


def out_of(capsys, *args):
    assert main(args) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_a_method_is_explained_and_compared(capsys):
    assert "Differs from grpo\n" in out_of(capsys, "explain", "dapo")
    text = out_of(capsys, "explain", "dapo", "--versus", "dr_grpo")
    assert "Differs from dr_grpo\n" in text
    assert "    ~ clip.high 0.2 -> 0.28" in text
    assert "\x1b" not in text  # not a terminal


def test_a_method_of_ones_own_is_explained(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from polopt import algorithms\n"
        "def method():\n"
        '    """Twice as careful."""\n'
        "    return algorithms.grpo(kl=0.08)\n"
    )
    text = out_of(capsys, "explain", "mine.py:method")
    assert "Twice as careful." in text
    assert "    ~ kl_penalty.coefficient 0.04 -> 0.08" in text


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["explain", "grop"], "no method 'grop'; did you mean 'grpo'?"),
        (["explain", "grpo", "--versus", "gsop"], "no method 'gsop'; did you mean 'gspo'?"),
        (["explain"], "which method? polopt methods lists them"),
        (["explain", "grpo", "dapo"], "unexpected argument 'dapo' (polopt explain --help)"),
        (["map", "grpo"], "unexpected argument 'grpo' (polopt map --help)"),
    ],
)
def test_what_is_not_understood_is_one_line(capsys, args, line):
    assert main(args) == 2
    assert capsys.readouterr().err == f"polopt: {line}\n"


def test_values_that_are_not_accepted_are_named(capsys):
    assert main(["map", "--format", "html"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "'html'" in err
    assert "markdown" in err
    assert main(["map", "--out", "map.gif"]) == 1
    assert "map.gif: the map is drawn as .png, .svg or .pdf" in capsys.readouterr().err


def test_the_map_in_every_format(capsys, tmp_path):
    assert "group_mean_baseline" in out_of(capsys, "map")
    assert out_of(capsys, "map", "--format", "markdown").startswith("## REINFORCE")
    entries = json.loads(out_of(capsys, "map", "--format", "json"))
    assert sorted(entry["key"] for entry in entries) == sorted(algorithms.__all__)
    assert out_of(capsys, "methods", "--json") == out_of(capsys, "map", "--format", "json")
    file = tmp_path / "map.svg"
    assert out_of(capsys, "map", "--out", str(file)) == f"drawn into {file}\n"
    first = file.read_bytes()
    out_of(capsys, "map", "--out", str(file))
    assert file.read_bytes() == first  # the same map, the same file


def test_a_terminal_gets_colours_where_rich_is_installed(capsys, monkeypatch):
    styles = [("bold", r"^A.*"), ("red", r"b{2,}")]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    show("A line\nwith bbb [and] brackets", styles)
    coloured = capsys.readouterr().out
    assert "\x1b[31mbbb\x1b[0m [and] brackets" in coloured
    monkeypatch.setitem(sys.modules, "rich.console", None)
    show("A line", styles)
    assert capsys.readouterr().out == "A line\n"
