"""Law 8: every method equals a slow loop written by someone who did not read it. In float64."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from oracles import methods
from oracles.batch import Batch, random_batch, random_logp

from polopt import Stop, Trajectories, algorithms
from polopt.algorithm import Algorithm, wants
from polopt.algorithms import grpo
from polopt.columns import name_of
from polopt.testing import Case, measure_lanes
from polopt.types import PolicyOutputs

from .pairs import LOSS_ONLY, PAIRS, ROWS, WIDTH

BATCHES = 24
COLUMNS = {
    "logp_old": np.nan,
    "logp_ref": np.nan,
    "logp_teacher": np.nan,
    "logp_prm": np.nan,
    "value": np.nan,
    "bootstrap_value": np.nan,
    "greedy_return": np.nan,
    "sum_prob_sq": np.nan,
    "optimal_value": np.nan,
    "drift": np.nan,
    "teacher_sorted_prob": np.nan,
    "answer": -1,
    "anchor": -1,
    "node": -1,
    "span": -1,
}  # and what stands on padding rows
SCALES = {"gspo": 1e-3, "gspo_token": 1e-3, "luspo": 3e-3}  # of the order of the clip
STEP = 1e-7  # of the finite differences: few tokens lie this near to the edge of a clip


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def padded(x: np.ndarray, fill: float) -> np.ndarray:
    extra = ROWS - len(x)
    return np.concatenate([x, np.full((extra, *x.shape[1:]), fill, x.dtype)])


def converted(batch: Batch) -> Trajectories:
    """The oracles' record as ours, with padding rows up to the fixed shape, NaN in them."""
    n, shape = len(batch.group), batch.mask.shape
    real = batch.group >= 0
    stop = np.where(batch.truncated, Stop.LENGTH, Stop.EOS) * real
    ids = np.arange(n)
    ints = {"length": batch.end, "prompt_length": batch.prompt_length, "stop": stop}
    return Trajectories(
        tokens=padded(np.zeros(shape, int), 0),
        action_mask=padded(batch.mask, False),
        turn=padded(batch.turn, -1),
        group=padded(batch.group, -1),
        id=np.arange(ROWS),
        prompt=padded(batch.prompt, -1),
        episode=padded(np.where(real, ids, -1), -1),
        reward_parts={name: padded(part, np.nan) for name, part in batch.parts.items()},
        scored=padded(batch.scored, False),
        logp_sampler=padded(batch.logp_sampler, np.nan),
        log_keep=np.zeros((ROWS, WIDTH)),
        temperature=np.ones(ROWS),
        version=np.zeros((ROWS, WIDTH), int),
        columns={name: padded(getattr(batch, name), fill) for name, fill in COLUMNS.items()},
        **{name: padded(x, 0) for name, x in ints.items()},
    )


@functools.cache
def batches() -> list[tuple[Batch, Trajectories]]:
    drawn = [random_batch(seed, width=WIDTH) for seed in range(BATCHES)]
    return [(batch, converted(batch)) for batch in drawn]


def outputs_of(alg, batch: Batch, seed: int) -> dict[str, np.ndarray]:
    """What the current models say, on the oracle's rows."""
    rng = np.random.default_rng(seed)
    shape = batch.mask.shape
    draws = {
        "value": batch.value + 0.3 * rng.normal(size=shape),
        "entropy": rng.exponential(size=shape),
        "jsd_teacher": rng.exponential(0.2, size=shape),
        "kl_teacher": rng.exponential(0.5, size=shape),
        "logp_prm": batch.logp_prm + 0.3 * rng.normal(size=shape),
        "log_z": rng.normal(size=shape[0]),
        "sorted_prob": -np.sort(-rng.dirichlet(np.ones(5), size=shape), axis=-1)[..., :3],
    }
    logp = random_logp(batch, seed=seed, scale=SCALES.get(alg.name, 0.3))
    return {
        "logp": np.minimum(logp, -1e-3),
        **{name: draws[name] for name in wanted(alg)},
    }


def wanted(alg: Algorithm) -> list[str]:
    return [name_of(want) for want in wants(alg)]


def directional(loss, inputs: dict[str, np.ndarray], name: str, v: np.ndarray) -> float:
    ends = [
        loss(**{**inputs, name: inputs[name] + sign * STEP * v}, detached_logp=inputs["logp"])
        for sign in (1, -1)
    ]
    return (ends[0] - ends[1]) / (2 * STEP)


def compare(alg, oracle, batch: Batch, out, inputs: dict[str, np.ndarray], seed: int) -> None:
    n = len(batch.group)
    expected = oracle(batch)
    # In a dropped group the credit may be anything: it has no weight.
    if alg.name not in LOSS_ONLY:
        np.testing.assert_allclose(
            (out.weight * out.credit)[:n], expected.weight * expected.credit, rtol=1e-9, atol=1e-12
        )
        np.testing.assert_allclose(out.weight[:n], expected.weight, rtol=1e-12)
    np.testing.assert_allclose(out.loss, expected.loss(**inputs), rtol=1e-9, atol=1e-12)
    rng = np.random.default_rng(seed)
    gradients = {"logp": out.gradient.logp, **out.gradient.columns}
    for name, gradient in gradients.items():
        v = rng.normal(size=gradient[:n].shape)
        got = float(np.sum(gradient[:n] * v))
        scale = float(np.sum(np.abs(gradient[:n] * v)))
        assert got == pytest.approx(
            directional(expected.loss, inputs, name, v), rel=0, abs=1e-6 * scale + 1e-9
        ), name


@pytest.mark.parametrize("key", PAIRS)
def test_the_method_is_its_oracle(key):
    alg, oracle = PAIRS[key]
    drawn = [outputs_of(alg, batch, 100 + seed) for seed, (batch, _) in enumerate(batches())]
    cases = [
        Case(
            alg=alg,
            trajectories=ours,
            outputs=PolicyOutputs(
                logp=padded(given["logp"], np.nan),
                columns={name: padded(given[name], np.nan) for name in wanted(alg)},
            ),
        )
        for (_, ours), given in zip(batches(), drawn, strict=True)
    ]
    outs = [out for i in range(0, BATCHES, 8) for out in measure_lanes(cases[i : i + 8])]
    for seed, ((batch, _), given, out) in enumerate(zip(batches(), drawn, outs, strict=True)):
        compare(alg, oracle, batch, out, given, seed)
    # The first batch of small groups may have nothing to learn from.
    size = [max(np.abs(x).max() for x in jax.tree.leaves(out.gradient)) for out in outs]
    first = next(i for i, x in enumerate(size) if x > 1e-3)
    batch, given, out = batches()[first][0], drawn[first], outs[first]
    every = methods.gradient(
        oracle(batch).loss, given["logp"], h=STEP, **{name: given[name] for name in wanted(alg)}
    )
    scale = max(1.0, float(np.abs(every).max()), abs(float(out.loss)))
    np.testing.assert_allclose(out.gradient.logp[: len(batch.group)], every, atol=1e-7 * scale)


def test_every_method_has_an_oracle():
    assert {alg.name for alg, _ in PAIRS.values()} == set(algorithms.__all__)


def test_the_single_step_form_reads_the_current_policy_as_the_old_one():
    batch, ours = batches()[0]
    columns = {name: x for name, x in ours.columns.items() if name != "logp_old"}
    given = outputs_of(grpo(), batch, 5)
    bare = Case(
        alg=grpo(),
        trajectories=dataclasses.replace(ours, columns=columns),
        outputs=PolicyOutputs(logp=padded(given["logp"], np.nan)),
    )
    out = measure_lanes([bare])[0]
    moved = dataclasses.replace(batch, logp_old=given["logp"])
    compare(grpo(), methods.grpo, moved, out, given, 0)
