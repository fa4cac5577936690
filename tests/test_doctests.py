"""The examples in docstrings are run."""

import doctest
import importlib
import pkgutil

import pytest

import polopt

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(polopt.__path__, "polopt.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [importlib.import_module(name) for name in MODULES]
    examples = [test for module in modules for test in finder.find(module) if test.examples]
    assert len(examples) >= 10
