import re

import pytest

import polopt.algorithms
from polopt.algorithm import Algorithm
from polopt.catalogue import METHODS
from polopt.cli.methods import methods
from polopt.cli.table import find_algorithm
from polopt.errors import PoloptError, UsageError


def test_methods_are_keys_with_a_purpose():
    assert methods() == {key: METHODS[key].purpose for key in METHODS}


@pytest.mark.parametrize("key", polopt.algorithms.__all__)
def test_every_key_finds_its_method(key):
    algorithm = find_algorithm(key)()
    assert isinstance(algorithm, Algorithm)
    assert algorithm.name == key


def test_an_unknown_method_is_told_the_nearest_one():
    with pytest.raises(UsageError, match="no method 'grop'; did you mean 'grpo'"):
        find_algorithm("grop")
    with pytest.raises(UsageError, match="polopt methods lists them"):
        find_algorithm("zzz")
    with pytest.raises(UsageError, match="your own is file"):
        find_algorithm("mine.py")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_neighbour_pieces.py").write_text("from polopt.algorithms import rloo\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "from my_neighbour_pieces import rloo\n"
        "ready = rloo(kl=0.5)\n"
        "def build():\n    return rloo(kl=0.25)\n"
        "number = 3\n"
    )
    return file


def test_your_own_file_gives_a_factory_or_a_composition(mine):
    from polopt.algorithms import rloo

    assert find_algorithm(f"{mine}:build")() == rloo(kl=0.25)
    assert find_algorithm("mine.py:ready") == rloo(kl=0.5)
    assert find_algorithm("polopt.algorithms:rloo") is rloo


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mine.py:biuld", "mine.py has no 'biuld'; did you mean 'build'?"),
        ("other.py:build", "no file other.py"),
        ("no_such_module_anywhere:f", "no_such_module_anywhere"),
        ("mine.py:", "module:name or path.py:name"),
        ("mine.py:number", "neither a polopt.Algorithm nor a function"),
    ],
)
def test_what_is_not_there_is_named(mine, spec, words):
    with pytest.raises(PoloptError, match=re.escape(words)):
        find_algorithm(spec)
