"""One token per row: what a piece makes of each (log-ratio, credit) pair, and its gradient."""

import dataclasses

import jax
import numpy as np

from polopt import Algorithm, PolicyOutputs, Trajectories, chain, loss, prepare
from polopt.aggregate import token_sum
from polopt.reward import outcome_return


def one_token_rows(credit, **columns) -> Trajectories:
    """N rows of one prompt token and one action, each worth its credit."""
    n = len(credit)
    return Trajectories.build(
        [[1]] * n,
        [[2]] * n,
        list(map(float, credit)),
        group=n,
        columns={
            k: np.stack([np.zeros(n), v], axis=1).astype(np.float32) for k, v in columns.items()
        },
    )


def objectives(*links, log_ratio, credit, columns=None, outputs=None):
    """({term: objective [N]}, {output: gradient of the loss [N]}, info).

    The loss is linear in the weights, so that minus its gradient by a weight is the objective.
    """
    alg = Algorithm(reward=chain(outcome_return()), trajectory=chain(*links), aggregate=token_sum())
    old = np.full(len(credit), -1.0)
    batch = one_token_rows(credit, logp_old=old, **(columns or {}))
    said = {
        name: np.stack([np.zeros_like(old), v], axis=1).astype(np.float32)
        for name, v in {"logp": old + log_ratio, **(outputs or {})}.items()
    }
    given = PolicyOutputs(logp=said.pop("logp"), columns=said)
    (by_output, by_weight), info = _gradients(alg, batch, given)
    gradients = {"logp": by_output.logp, **by_output.columns}
    return (
        {name: -np.asarray(x)[:, 1] for name, x in by_weight.items()},
        {name: np.asarray(x)[:, 1] for name, x in gradients.items()},
        info,
    )


@jax.jit
def _gradients(alg, batch, given):
    prepared, _ = prepare(alg, batch)

    def total(given, weights):
        rows = dataclasses.replace(prepared.rows, weights=weights)
        return loss(alg, given, dataclasses.replace(prepared, rows=rows))

    return jax.grad(total, argnums=(0, 1), has_aux=True)(given, prepared.rows.weights)
