"""Names of slices: what Google's pages list."""

import pytest

from polopt.errors import UsageError
from polopt.plan.slices import GENERATIONS, read_slice

# docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e: accelerator type, topology, chips.
LISTED = [
    ("v4-8", "v4:2x2x1", 4),
    ("v4-32", "v4:2x2x4", 16),
    ("v4-512", "v4:4x8x8", 256),
    ("v5litepod-1", "v5e:1x1", 1),
    ("v5e-16", "v5e:4x4", 16),
    ("v5e-256", "v5e:16x16", 256),
    ("v5p-8", "v5p:2x2x1", 4),
    ("v5p-64", "v5p:2x4x4", 32),
    ("v5p-2048", "v5p:8x8x16", 1024),
    ("v6e-8", "v6e:2x4", 8),
    ("V6E-64", "v6e:8x8", 64),
]


@pytest.mark.parametrize(("name", "topology", "chips"), LISTED)
def test_names_mean_what_the_pages_list(name, topology, chips):
    found = read_slice(name)
    assert (found.topology, found.chips) == (topology, chips)
    # 32, 16, 95 and 32 GiB by the pages, of which a compiler may keep some.
    listed = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}[found.generation]
    assert found.memory / 2**30 == pytest.approx(listed, rel=0.05)
    assert read_slice(topology).shape == found.shape


@pytest.mark.parametrize(
    ("name", "links"),
    # In a corner of a mesh there is one link to each side; whole cubes and pods are closed.
    [("v5e-1", 0), ("v5e-4", 2), ("v5e-16", 2), ("v5e-128", 3), ("v6e-256", 4),
     ("v4-8", 2), ("v4-16", 3), ("v5p-64", 3), ("v4-128", 6), ("v5p-2048", 6)],
)  # fmt: skip
def test_links_lead_to_neighbours_that_are_there(name, links):
    assert read_slice(name).links == links


def test_a_link_is_its_share_of_what_a_chip_has_in_both_directions():
    both = {"v5e": 400e9, "v5p": 1200e9, "v6e": 800e9}  # bytes per second, as the pages have it
    dimensions = {"v5e": 2, "v5p": 3, "v6e": 2}
    for name, total in both.items():
        assert GENERATIONS[name].link * 2 * 2 * dimensions[name] == total


def test_the_cpu_has_an_equal_share_of_the_machine_for_each_device():
    one, four = read_slice("cpu"), read_slice("cpu-4")
    assert (one.chips, four.chips, one.chip) == (1, 4, None)
    assert one.memory // 4 == four.memory > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5x-8", "no generation 'v5x'; did you mean 'v5"),
        ("h100-8", r"no generation 'h100'.*accepted are v4, v5e, v5p, v6e, and cpu"),
        ("v5e-12", "v5e has no 12: numbers of chips are 1, 4, 8, 16, 32, 64, 128, 256"),
        ("v4-4", "numbers of TensorCores are 8, 16, 32"),
        ("v5e", "v5e has no slice without a number"),
        ("v5e:4x4x4", "v5e has 2 dimensions, as 16x16"),
        ("v5p:4x4", "v5p has 3 dimensions"),
        ("v5e:0x4", "is no shape"),
        ("cpu-0", "not of the form cpu or cpu-8"),
        ("cpu:2", "not of the form cpu or cpu-8"),
        ("cpu-two", "not of the form cpu or cpu-8"),
    ],
)
def test_other_names_are_refused_in_one_line(name, message):
    with pytest.raises(UsageError, match=message) as error:
        read_slice(name)
    assert "\n" not in str(error.value)
