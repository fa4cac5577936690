"""How evenly experts are used: counted by hand, and of real tokens only."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import toys

from polopt.models import LanguageModel
from polopt.models.config import Experts
from polopt.models.experts import Routing
from polopt.train.routers import balance, router_metrics
from train import toy


def test_balance_by_hand():
    first = Routing(chosen=jnp.array([[[0, 1], [0, 1], [2, 3]]]), entropy=jnp.array([[1.0, 2, 9]]))
    second = Routing(chosen=jnp.array([[[3, 0], [1, 2], [0, 0]]]), entropy=jnp.array([[3.0, 4, 9]]))
    found = balance((first, second), jnp.array([[True, True, False]]), 4)
    # Two real tokens: the first layer sends both to 0 and 1, the second one to each of four.
    assert float(found["entropy"]) == (1 + 2 + 3 + 4) / 4
    assert float(found["max_load"]) == 2 / (2 * 2 / 4)
    assert float(found["unused"]) == 2 / 8


def test_padding_is_no_token_():
    config = dataclasses.replace(toy.MODEL.config, experts=Experts(count=8, chosen=2, size=4))
    model = LanguageModel(config)
    params = model.init(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 32, (40, 6))
    mask, length = np.ones((40, 6), bool), np.arange(40) % 6 + 1
    rows = toys.trajectories(tokens, mask, length)
    padded = toys.trajectories(np.where(np.arange(6) < length[:, None], tokens, 0), mask, length)
    found = router_metrics(model, params, rows)
    assert found == pytest.approx(router_metrics(model, params, padded))
    assert set(found) == {"router/entropy", "router/max_load", "router/unused"}
    assert 0 < found["router/entropy"] < np.log(8)
    assert 1 <= found["router/max_load"] <= 4  # at most every token, which go to two of eight
