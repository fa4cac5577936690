"""Every method is held against what the catalogue says that it was held against."""

import pytest
from algorithms.test_relations import RELATIONS
from laws.pairs import PAIRS
from public.presets import KEYS, LOGITS, TRL, TUNIX, VERL

from polopt import algorithms
from polopt.catalogue import EVIDENCE

PACKAGES = {"verl 0.9.1": VERL, "trl 1.16.0": TRL, "tunix 0.1.7": TUNIX}


def key_of(case: str) -> str:
    """The method that a frozen case speaks for."""
    return KEYS.get(case, case if case in EVIDENCE else case.split("_")[0])


@pytest.mark.parametrize("key", algorithms.__all__)
def test_the_table_says_what_the_tests_do(key):
    made = ["oracle"] if any(alg.name == key for alg, _ in PAIRS.values()) else []
    made += [name for name, cases in PACKAGES.items() if key in map(key_of, cases)]
    made += [LOGITS[key]] if key in LOGITS else []
    made += ["identities"] if any(key in r.keys for r in RELATIONS.values()) else []
    assert EVIDENCE[key] == tuple(made)
    assert {"oracle", "identities"} <= set(made)


def test_the_table_names_no_other_method():
    assert set(EVIDENCE) == set(algorithms.__all__)
