"""A law that cannot be broken proves nothing: each is, by a small piece of a user's own."""

import dataclasses

import jax
import pytest

from polopt.testing import LawBroken, check_laws

from . import toys


@pytest.mark.parametrize("name", toys.BROKEN)
def test_the_law_catches_it(name):
    law, make = toys.BROKEN[name]
    with pytest.raises(LawBroken) as caught:
        check_laws(make, laws=[law])
    assert (caught.value.law, caught.value.method) == (law, name)
    assert f"{name} breaks the law {law!r}: " in str(caught.value)
    assert caught.value.evidence


def test_a_number_in_python_control_flow_is_not_composable():
    alg = toys._algorithm("on_the_host", toys.token_ratio(), toys.on_the_host())
    with pytest.raises(jax.errors.ConcretizationTypeError):
        check_laws(alg, laws=["composition"])


def test_a_piece_that_forgets_its_mask_is_held_by_the_weights():
    """Outside the mask a term has no weight, whatever the piece says."""
    alg = toys._algorithm("reads", toys.token_ratio(), toys.reads_everything())
    check_laws(alg, laws=["masks"])


@pytest.mark.parametrize("make", [toys.regression, toys.covariance])
def test_a_users_own_method_keeps_the_laws(make):
    laws = ["partition", "masks", "degenerate", "extremes", "composition"]
    assert check_laws(make, laws=laws) == tuple(laws)
    if make is toys.covariance:  # in slices of its own it would not: hence its coupling
        with pytest.raises(LawBroken, match="the loss"):
            check_laws(uncoupled(make()), laws=["partition"])


def uncoupled(alg):
    link = alg.trajectory.links[-1]
    free = dataclasses.replace(link, card=dataclasses.replace(link.card, couples="none"))
    return alg.replace(near_the_mean=free)
