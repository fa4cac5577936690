"""Our compositions against what verl, TRL and tunix say on the same batches. In float64."""

import json
import pathlib

import jax
import numpy as np
import pytest

from polopt import PolicyOutputs, Stop, Trajectories
from polopt.algorithm import wants
from polopt.build import turns
from polopt.columns import name_of
from polopt.numerics import SEQUENCE_LIMIT
from polopt.testing.probe import Case, measure
from polopt.trajectory import LogMeanExp
from polopt.types import Array

from .batches import N, PublicBatch, T, project, public_batch
from .presets import TRL, TUNIX, VERL

FROZEN = pathlib.Path(__file__).parent / "frozen"
CASES = {
    f"{package}_{name}": alg
    for package, presets in (("verl", VERL), ("trl", TRL), ("tunix", TUNIX))
    for name, alg in presets.items()
}
COLUMNS = (
    "logp_old",
    "logp_ref",
    "logp_teacher",
    "sum_prob_sq",
    "greedy_return",
)


def tied_covariance(batch: PublicBatch, credit: np.ndarray, share: float = 0.2) -> bool:
    """Whether the last token chosen by covariance and the next one are equal."""
    a, logp = credit[batch.mask], batch.logp[batch.mask]
    ordered = np.sort(-(a - a.mean()) * (logp - logp.mean()))
    last = max(1, int(share * len(a)))
    return last < len(a) and ordered[last] - ordered[last - 1] < 1e-9


def has_empty_row(batch: PublicBatch, credit: np.ndarray) -> bool:
    """TRL and tunix pair an empty row and give it a constant loss; here it is no row."""
    return batch.has_empty_row


def beyond_limit(batch: PublicBatch, credit: np.ndarray) -> bool:
    """A row's log-ratio lies beyond ±10, where ours has no gradient by design and TRL's has."""
    total = np.where(batch.mask, batch.logp - batch.logp_old, 0).sum(axis=1)
    return bool(np.abs(total).max() > SEQUENCE_LIMIT)


def has_tie(batch: PublicBatch, credit: np.ndarray) -> bool:
    """Two rows of a pair earned the same: TRL takes the first for the better, here is no pair."""
    R = batch.outcome
    return batch.has_empty_row or any(np.ptp(R[batch.group == g]) == 0 for g in set(batch.group))


# Batches that are left out: choices are compared away from ties.
SELECTED = {
    "verl_kl_cov": tied_covariance,
    "trl_gmpo": has_empty_row,
    "trl_a2po": has_empty_row,
    "trl_dpo": has_empty_row,
    "trl_online_dpo": has_tie,
    "trl_online_ipo": has_tie,
    "trl_rloo": lambda batch, credit: has_empty_row(batch, credit) or beyond_limit(batch, credit),
    "tunix_dpo": has_empty_row,
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def load(case: str) -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(FROZEN / f"{case}.npz") as file:
        arrays = dict(file)
    return json.loads(str(arrays.pop("meta"))), arrays


def recorded(batch: PublicBatch, meta: dict) -> Trajectories:
    """The public record as ours: completions only, no prompt."""
    ids = np.arange(N)
    group = np.unique(batch.group, return_inverse=True)[1]
    parts = {"outcome": batch.reward}
    optimal = LogMeanExp(meta["settings"].get("beta1", 1.0))(batch.reference_rewards)
    if meta["settings"].get("rewards") == "parts":
        parts = {str(k): part for k, part in enumerate(batch.parts)}
    if "pairs" in meta["settings"]:
        first = (np.cumsum(batch.mask, axis=1) == 1) & batch.mask
        parts, group = {"outcome": first * (ids < 4)[:, None] * 1.0}, ids % 4
    return Trajectories(
        tokens=np.zeros((N, T), int),
        length=batch.completion.sum(axis=1),
        prompt_length=np.zeros(N, int),
        action_mask=batch.mask,
        turn=turns(batch.mask),
        group=group,
        id=ids,
        prompt=group,
        episode=ids,
        reward_parts=parts,
        scored=np.ones(N, bool),
        stop=np.full(N, Stop.EOS),
        logp_sampler=batch.logp_sampler,
        log_keep=np.zeros((N, T)),
        temperature=np.ones(N),
        version=np.zeros((N, T), int),
        columns={
            **{name: getattr(batch, name) for name in COLUMNS},
            "value": batch.value_old,
            "optimal_value": optimal,
        },
    )


def case_of(alg, batch: PublicBatch, meta: dict) -> Case:
    entropy = batch.entropy.astype(np.float32) if "entropies" in meta["settings"] else batch.entropy
    known = {"value": batch.value, "entropy": entropy.astype(np.float64)}
    columns = {name_of(want): known[name_of(want)] for want in wants(alg)}
    outputs = PolicyOutputs(logp=batch.logp, columns=columns)
    return Case(alg=alg, trajectories=recorded(batch, meta), outputs=outputs)


def near(got: Array, expected: Array, relative: float, what: str) -> None:
    scale = max(float(np.max(np.abs(expected), initial=0)), 1e-3)
    np.testing.assert_allclose(got, expected, rtol=0, atol=relative * scale, err_msg=what)


@pytest.mark.parametrize("name", CASES)
def test_the_composition_says_what_the_package_says(name):
    alg, (meta, frozen) = CASES[name], load(name)
    options = {k: v for k, v in meta.get("batches", {}).items() if k != "singletons"}
    batches = [public_batch(int(seed), **options) for seed in frozen["seed"]]
    assert len(batches) >= 200
    stacked = jax.tree.map(lambda *x: np.stack(x), *[case_of(alg, b, meta) for b in batches])
    out = jax.tree.map(np.asarray, jax.jit(jax.vmap(measure))(stacked))
    relative = 1e-5 if meta.get("precision") == "float32" else 1e-7
    compared = 0
    for i, batch in enumerate(batches):
        if name in SELECTED and SELECTED[name](batch, out.credit[i]):
            continue
        compared += 1
        gradient = {"gradient": out.gradient.logp[i], "advantage": out.credit[i]}
        if "value_gradient" in frozen:
            gradient["value_gradient"] = out.gradient.columns["value"][i]
        for key, got in gradient.items():
            if key in frozen:
                scale = np.abs(got).sum() + 1e-6
                np.testing.assert_allclose(
                    project(got, batch.mask),
                    frozen[key][i],
                    rtol=0,
                    atol=relative * scale,
                    err_msg=f"{key} of batch {batch.seed}",
                )
            if f"whole_{key}" in frozen and i < len(frozen[f"whole_{key}"]):
                near(got, frozen[f"whole_{key}"][i], relative, f"{key} of batch {batch.seed}")
        total = frozen["loss"][i] + (frozen["value_loss"][i] if "value_loss" in frozen else 0)
        mass = np.abs(out.gradient.logp[i]).sum() + abs(total) + 1e-6
        assert abs(out.loss[i] - total) <= relative * mass, f"loss of batch {batch.seed}"
    assert compared >= 80
