"""The generalised Jensen-Shannon divergence against TRL's, value and gradient, on logits."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.columns import jsd

from .batches import project, public_logits

FROZEN = pathlib.Path(__file__).parent / "frozen"


@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 0.9, 1])
def test_the_divergence_is_trls(beta):
    with np.load(FROZEN / f"trl_gkd_{beta}.npz") as file:
        frozen = dict(file)
    assert json.loads(str(frozen["meta"]))["settings"]["beta"] == beta
    column = jsd(float(beta), "teacher")

    def loss(student, teacher, mask):
        V = student.shape[-1]
        logits = {"policy": student.reshape(-1, V), "teacher": teacher.reshape(-1, V)}
        targets = jnp.zeros(logits["policy"].shape[0], int)
        distance = column.fn(logits, targets, *column.settings).reshape(mask.shape)
        return jnp.sum(jnp.where(mask, distance, 0)) / jnp.sum(mask)

    with jax.enable_x64(True):
        of = jax.jit(jax.value_and_grad(loss))
        for i, seed in enumerate(frozen["seed"]):
            batch = public_logits(int(seed))
            value, gradient = of(batch.student, batch.teacher, batch.mask)
            assert value == pytest.approx(frozen["loss"][i], rel=1e-7, abs=1e-9)
            got = project(np.asarray(gradient), batch.mask)
            np.testing.assert_allclose(got, frozen["gradient"][i], rtol=0, atol=1e-7)
    assert len(frozen["seed"]) >= 200
