"""What processes share and tell one another; two real ones are in tests/slow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polopt.errors import PoloptError
from polopt.processes import ALONE, Processes


@given(n=st.integers(0, 50), count=st.integers(1, 9))
def test_shares_are_neighbours_without_gap_and_as_even_as_can_be(n, count):
    shares = [range(n)[Processes(i, count).share(n)] for i in range(count)]
    assert [i for share in shares for i in share] == list(range(n))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_one_process_gathers_its_own_and_does_its_own():
    value = object()  # nothing is pickled
    assert ALONE.gather(value) == [value]
    assert ALONE.from_first(lambda: value) is value
    assert ALONE.first
    ALONE.check_same(value, "never")

    def fail():
        raise PoloptError("no room")

    with pytest.raises(PoloptError, match="no room"):
        ALONE.from_first(fail)


class Told(Processes):
    """Two processes of which the other one has said something already."""

    def gather(self, value):
        return [value, "other"] if self.first else ["other", value]


def test_what_differs_is_said_of_each():
    with pytest.raises(PoloptError, match=r"other steps: 3 in process 0, other in process 1"):
        Told(0, 2).check_same(3, "other steps")
    Told(1, 2).check_same("other", "equal")


def test_the_first_ones_word_counts_and_its_error_is_everyones():
    assert Told(0, 2).from_first(lambda: 5) == 5
    assert Told(1, 2).from_first(lambda: 5) == "other"
    heard = PoloptError("the folder is in use")
    other = Told(1, 2)
    object.__setattr__(other, "gather", lambda value: [heard, value])
    with pytest.raises(PoloptError, match="the folder is in use"):
        other.from_first(lambda: 5)
