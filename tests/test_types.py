import dataclasses

import jax
import numpy as np
import pytest

from polopt import Stop, Trajectories
from polopt.types import (
    Count,
    Credit,
    Max,
    Mean,
    PolicyOutputs,
    info_values,
    merge_info,
    truncated,
)


def test_records_are_frozen_keyword_only_pytrees():
    outputs = PolicyOutputs(logp=np.zeros((1, 2)), columns={"value": np.ones((1, 2))})
    with pytest.raises(dataclasses.FrozenInstanceError):
        outputs.logp = None
    with pytest.raises(TypeError):
        PolicyOutputs(np.zeros((1, 2)))
    doubled = jax.tree.map(lambda x: 2 * x, outputs)
    assert doubled.columns["value"].tolist() == [[2, 2]]
    assert not outputs.logp.any()


def test_every_field_of_trajectories_is_a_leaf_with_rows():
    made = Trajectories.build(
        [[1], [1]], [[2], [3, 4]], [1.0, 0.0], group=2, columns={"greedy_return": np.zeros(2)}
    )
    leaves = jax.tree.leaves(made)
    assert len(leaves) == len(dataclasses.fields(Trajectories))
    assert {leaf.shape[0] for leaf in leaves} == {2}


def test_terminated_and_truncated_are_different_things():
    stops = np.array(list(Stop))
    assert [Stop(s).name for s in stops[np.asarray(truncated(stops))]] == ["LENGTH", "TURN_LIMIT"]


def test_info_merges_over_any_split():
    def info(total, weight, largest, count):
        return {
            "m": Mean(sum=np.float32(total), weight=np.float32(weight)),
            "x": Max(max=np.float32(largest)),
            "n": Count(count=np.int32(count)),
        }

    parts = [info(1, 1, 5, 2), info(6, 2, -1, 0), info(0, 0, 0, 1)]
    for a, b, c in (parts, parts[::-1]):
        merged = info_values(merge_info(merge_info(a, b), c))
        numbers = {k: float(v) for k, v in merged.items()}
        assert numbers == {"m": pytest.approx(7 / 3), "x": 5, "n": 3}
    with pytest.raises(ValueError, match=r"[Kk]ey"):
        merge_info(parts[0], {"m": parts[1]["m"]})


def test_a_mean_of_nothing_is_zero():
    assert Mean(sum=np.float32(0), weight=np.float32(0)).value() == 0


def test_credit_of_every_token():
    reward, keep = np.zeros((2, 3)), np.ones((2, 3), bool)
    broadcast = Credit(reward=reward, keep=keep, sequence=np.array([1.0, 2.0])).per_token()
    assert broadcast.tolist() == [[1, 1, 1], [2, 2, 2]]
    value = np.arange(6.0).reshape(2, 3)
    assert Credit(reward=reward, keep=keep, sequence=np.zeros(2), value=value).per_token() is value
