"""What layers keep for the backward pass, against a compiler's own account."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from plan import jobs
from polopt.algorithms import grpo
from polopt.compiler import kept_barriers
from polopt.plan.activations import activation_bytes

ONE = dict.fromkeys(("data", "fsdp", "tensor", "sequence"), 1)
ROWS = 32


def compiled_and_counted(layers, folder, monkeypatch, **how):
    """Bytes of temporaries of a gradient of the states, and those that are counted."""
    folder.mkdir()
    monkeypatch.setattr(jobs, "SHAPE", dataclasses.replace(jobs.SHAPE, num_layers=layers))
    job = jobs.job_of(grpo(), folder, compute_dtype="float32", **how)
    layout = job.layout(ROWS, ROWS, ("policy",))
    layout = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), layout)

    def loss(params, layout):
        return jnp.sum(job.policy.states(params, layout, remat=job.config.remat) ** 2)

    options = kept_barriers("cpu")
    step = jax.jit(jax.grad(loss), compiler_options=options).lower(job.params, layout).compile()
    return step.memory_analysis().temp_size_in_bytes, activation_bytes(job, ONE, ROWS)


@pytest.mark.parametrize(("remat", "most"), [(True, 1.1), (False, 1.7)])
def test_layers_keep_what_is_counted(remat, most, tmp_path, monkeypatch):
    """The difference that four more layers make: what else there is does not grow with them."""
    few = compiled_and_counted(2, tmp_path / "2", monkeypatch, remat=remat)
    many = compiled_and_counted(6, tmp_path / "6", monkeypatch, remat=remat)
    really, counted = (b - a for a, b in zip(few, many, strict=True))
    # Where it is not computed again XLA's CPU keeps float32 copies of what its products read.
    assert 0.85 < really / counted < most
