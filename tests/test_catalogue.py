"""The bibliography and the failures are data about the code: held against it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from polopt import algorithms
from polopt.catalogue import EVIDENCE, FAMILIES, METHODS
from polopt.describe import facts
from polopt.describe.pages import factories
from polopt.failures import FAILURES

ROOT = Path(__file__).parents[1]
PIECES = {f.__name__: f for side in ("reward", "trajectory", "aggregate") for f in factories(side)}


def test_the_catalogue_is_the_algorithms_package():
    assert sorted(METHODS) == sorted(algorithms.__all__)


@pytest.mark.parametrize("key", sorted(set(METHODS) & set(algorithms.__all__)))
def test_the_sides_are_those_of_the_composition(key):
    made = facts(getattr(algorithms, key)())
    assert made.key == key
    assert METHODS[key].sides == "".join(side[0].upper() for side in made.sides)


def test_every_line_of_descent_ends_at_a_root():
    for key in METHODS:
        line = [key]
        while (parent := METHODS[line[-1]].parent) is not None:
            assert parent not in line
            line.append(parent)
    assert {key for key, method in METHODS.items() if method.parent is None} == {
        "reinforce",
        "gkd",
        "dpo",
    }


def test_papers_families_and_purposes_are_filled_in():
    for key, method in METHODS.items():
        assert method.family in FAMILIES
        assert 1990 <= method.year <= 2030, key
        assert re.fullmatch(r"\d{4}\.\d{5}|[A-Z]\w+ \d{4}|blog \(.+ \d{4}\)", method.paper), key
        assert 10 < len(method.purpose) <= 52, key
        assert (method.link is None) == (not method.on_arxiv)


def test_a_method_names_its_own_paper():
    """Where a docstring cites an arXiv id, one of them is the catalogue's."""
    for key in sorted(set(METHODS) & set(algorithms.__all__)):
        cited = re.findall(r"\d{4}\.\d{5}", getattr(algorithms, key).__doc__ or "")
        if cited and METHODS[key].on_arxiv:
            assert METHODS[key].paper in cited, key


def test_evidence_is_of_methods_and_says_something():
    assert set(EVIDENCE) <= set(METHODS)
    assert all(lines and all(lines) for lines in EVIDENCE.values())


@pytest.mark.parametrize("name", sorted(PIECES))
def test_what_a_piece_repairs_is_a_known_failure(name):
    assert set(PIECES[name].card.repairs) <= set(FAILURES)


def test_failures_have_a_side_and_a_line():
    sides = {"trajectory", "reward", "aggregation", "sampling", "implementation", "both"}
    for failure in FAILURES.values():
        assert failure.side in sides
        assert 20 < len(failure.text) < 80


def test_the_data_is_read_without_jax():
    code = (
        "import sys, polopt.catalogue, polopt.failures, polopt.cli.methods as m; m.run([])\n"
        "assert not {'jax', 'numpy', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "dr_grpo" in done.stdout
