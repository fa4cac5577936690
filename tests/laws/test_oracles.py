"""Law 8: every method equals a slow loop written by someone who did not read it. In float64."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from oracles import methods
from oracles.batch import Batch, random_batch, random_logp

from polopt import Stop, Trajectories, algorithms, chain
from polopt.algorithm import wants
from polopt.reward import drop_truncated, gae
from polopt.testing import Case, measure_lanes
from polopt.trajectory import clip, detach_weight, dual_clip, value_loss
from polopt.types import PolicyOutputs

ROWS, WIDTH, BATCHES = 25, 10, 24
STEP = 1e-7  # of the finite differences: few tokens lie this near to the edge of a clip


def bootstrapped(alg, gamma=1.0, lam=0.95):
    """The oracles know the value of a truncated row's last state."""
    return alg.replace(gae=gae(gamma, lam, bootstrap="bootstrap_value"))


A = algorithms
METHODS = {
    "reinforce": (A.reinforce(), methods.reinforce),
    "a2c": (bootstrapped(A.a2c(), 0.9, 0.8), functools.partial(methods.a2c, gamma=0.9, lam=0.8)),
    "ppo": (
        bootstrapped(A.ppo(kl=0.1)),
        functools.partial(methods.ppo, beta=0.1, value_coefficient=1.0),
    ),
    "ppo, dual clip, critic free to move": (
        bootstrapped(A.ppo(kl=0.0), 0.9, 0.5).replace(
            clip=chain(clip(0.1, 0.3), dual_clip(1.4)), value_loss=value_loss(0.5, None)
        ),
        functools.partial(
            methods.ppo,
            beta=0.0,
            gamma=0.9,
            lam=0.5,
            clip=(0.1, 0.3),
            dual_clip=1.4,
            value_clip=None,
            value_coefficient=0.5,
        ),
    ),
    "rloo": (A.rloo(kl=0.05), functools.partial(methods.rloo, beta=0.05)),
    "remax": (A.remax(kl=0.1), functools.partial(methods.remax, beta=0.1)),
    "reinforce_pp": (A.reinforce_pp(kl=0.1), functools.partial(methods.reinforce_pp, beta=0.1)),
    "grpo": (A.grpo(kl=0.04), functools.partial(methods.grpo, beta=0.04)),
    "dr_grpo": (A.dr_grpo(max_length=30), functools.partial(methods.dr_grpo, length=30)),
    "dapo": (A.dapo(max_length=6, cache=4), functools.partial(methods.dapo, overlong=(6, 4))),
    "dapo, truncated rows dropped": (
        A.dapo(max_length=6, cache=4).replace(
            reward=chain(A.dapo(max_length=6, cache=4).reward, drop_truncated())
        ),
        functools.partial(methods.dapo, overlong=(6, 4), drop_truncated=True),
    ),
    "gspo": (A.gspo(), methods.gspo),
    "cispo": (A.cispo(high=0.2), functools.partial(methods.cispo, low=math.inf, high=0.2)),
    "cispo, bounded below": (
        A.cispo().replace(detach_weight=detach_weight(low=0.1, high=0.2)),
        functools.partial(methods.cispo, low=0.1, high=0.2),
    ),
}


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
    names = ("logp_old", "logp_ref", "value", "bootstrap_value", "greedy_return")
    return Trajectories(
        tokens=padded(np.zeros(shape, int), 0),
        action_mask=padded(batch.mask, False),
        turn=padded(batch.turn, -1),
        group=padded(batch.group, -1),
        id=np.arange(ROWS),
        prompt=padded(batch.group, -1),
        episode=padded(np.where(real, ids, -1), -1),
        reward_parts={"outcome": padded(batch.reward, np.nan)},
        scored=padded(batch.scored, False),
        logp_sampler=padded(batch.logp_sampler, np.nan),
        log_keep=np.zeros((ROWS, WIDTH)),
        temperature=np.ones(ROWS),
        version=np.zeros((ROWS, WIDTH), int),
        columns={name: padded(getattr(batch, name), np.nan) for name in names},
        **{name: padded(x, 0) for name, x in ints.items()},
    )


@functools.cache
def batches() -> list[tuple[Batch, Trajectories]]:
    drawn = [random_batch(seed, width=WIDTH) for seed in range(BATCHES)]
    return [(batch, converted(batch)) for batch in drawn]


def outputs_of(alg, batch: Batch, seed: int) -> dict[str, np.ndarray]:
    """What the current models say, on the oracle's rows."""
    rng = np.random.default_rng(seed)
    scale = 1e-3 if alg.name == "gspo" else 0.3  # of the order of the clip
    draws = {
        "value": batch.value + 0.3 * rng.normal(size=batch.mask.shape),
        "entropy": rng.exponential(size=batch.mask.shape),
    }
    return {
        "logp": random_logp(batch, seed=seed, scale=scale),
        **{name: draws[name] for name in wants(alg)},
    }


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
    np.testing.assert_allclose(
        (out.weight * out.credit)[:n], expected.weight * expected.credit, rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(out.weight[:n], expected.weight, rtol=1e-12)
    np.testing.assert_allclose(out.loss, expected.loss(**inputs), rtol=1e-9, atol=1e-12)
    rng = np.random.default_rng(seed)
    gradients = {"logp": out.gradient.logp, **out.gradient.columns}
    for name, gradient in gradients.items():
        v = rng.normal(size=batch.mask.shape)
        got = float(np.sum(gradient[:n] * v))
        scale = float(np.sum(np.abs(gradient[:n] * v)))
        assert got == pytest.approx(
            directional(expected.loss, inputs, name, v), rel=0, abs=1e-6 * scale + 1e-9
        ), name


@pytest.mark.parametrize("key", METHODS)
def test_the_method_is_its_oracle(key):
    alg, oracle = METHODS[key]
    drawn = [outputs_of(alg, batch, 100 + seed) for seed, (batch, _) in enumerate(batches())]
    cases = [
        Case(
            alg=alg,
            trajectories=ours,
            outputs=PolicyOutputs(
                logp=padded(given["logp"], np.nan),
                columns={name: padded(given[name], np.nan) for name in wants(alg)},
            ),
        )
        for (_, ours), given in zip(batches(), drawn, strict=True)
    ]
    outs = [out for i in range(0, BATCHES, 8) for out in measure_lanes(cases[i : i + 8])]
    for seed, ((batch, _), given, out) in enumerate(zip(batches(), drawn, outs, strict=True)):
        compare(alg, oracle, batch, out, given, seed)
    batch, given, out = batches()[0][0], drawn[0], outs[0]
    every = methods.gradient(
        oracle(batch).loss, given["logp"], h=STEP, **{name: given[name] for name in wants(alg)}
    )
    np.testing.assert_allclose(out.gradient.logp[: len(batch.group)], every, atol=1e-7)
    assert np.abs(every).max() > 1e-3


def test_every_method_has_an_oracle():
    assert {alg.name for alg, _ in METHODS.values()} == set(algorithms.__all__)


def test_the_single_step_form_reads_the_current_policy_as_the_old_one():
    batch, ours = batches()[0]
    columns = {name: x for name, x in ours.columns.items() if name != "logp_old"}
    given = outputs_of(A.grpo(), batch, 5)
    bare = Case(
        alg=A.grpo(),
        trajectories=dataclasses.replace(ours, columns=columns),
        outputs=PolicyOutputs(logp=padded(given["logp"], np.nan)),
    )
    out = measure_lanes([bare])[0]
    moved = dataclasses.replace(batch, logp_old=given["logp"])
    compare(A.grpo(), methods.grpo, moved, out, given, 0)
