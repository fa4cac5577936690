"""Ties between mismatch corrections, regressions, preferences, distillation and older methods."""

import inspect
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from . import distillation, methods, mismatch, pieces, preference, regression
from .batch import Batch, random_batch, random_logp, reordered
from .handmade import make, outcomes

SMALL = {"n_groups": 5, "max_group": 3, "width": 6}
METHODS = {
    "tis": mismatch.tis,
    "mis": mismatch.mis,
    "icepop": mismatch.icepop,
    "opsm": mismatch.opsm,
    "decoupled_ppo": partial(mismatch.decoupled_ppo, whiten=False),  # over the whole batch
    "dro": regression.dro,
    "rebel": regression.rebel,
    "gvpo": regression.gvpo,
    "kimi_pmd": partial(regression.kimi_pmd, tau=0.5, length_penalty=0.3),
    "a_star_po": regression.a_star_po,
    "flowrl": regression.flowrl,
    "dpo": preference.dpo,
    "ipo": preference.ipo,
    "gkd": distillation.gkd,
    "minillm": distillation.minillm,
    "opd": distillation.opd,
    "iw_opd": distillation.iw_opd,
    "sdpo": distillation.sdpo,
    "gold": distillation.gold,
    **{at: partial(distillation.grpo_opd, at=at) for at in ("advantage", "reward", "loss")},
}
ROW_LOSSES = ("dro", "rebel", "gvpo", "kimi_pmd", "a_star_po", "flowrl", "dpo", "ipo")


def spread(batch: Batch) -> Batch:
    """The batch with no two outcomes equal, so that every group of two has a pair."""
    rows = np.arange(len(batch.group))
    return replace(batch, reward=batch.reward + 1e-2 * rows[:, None])


def at_one_policy(seed: int) -> Batch:
    """A batch whose old, reference and sampling policies are one."""
    batch = spread(random_batch(seed, **SMALL))
    return replace(batch, logp_ref=batch.logp_old, logp_sampler=batch.logp_old)


def outputs(batch: Batch) -> dict[str, np.ndarray]:
    """What else a loss may ask of the current models."""
    rng, shape = np.random.default_rng(0), batch.mask.shape
    return {
        "value": rng.normal(size=shape),
        "jsd_teacher": rng.random(shape),
        "kl_teacher": rng.random(shape),
        "sorted_prob": -np.sort(-rng.random((*shape, 3)), axis=-1),
        "log_z": rng.normal(size=shape[0]),
    }


def evaluate(oracle: methods.Oracle, logp: np.ndarray, given: dict[str, np.ndarray]) -> float:
    asked = {k: v for k, v in given.items() if k in inspect.signature(oracle.loss).parameters}
    return oracle.loss(logp, **asked)


@pytest.mark.parametrize("key", sorted(METHODS))
def test_a_step_is_what_it_is_by_itself(key):
    batch = spread(random_batch(1, n_groups=7, max_group=4, width=6))
    logp, given = random_logp(batch, seed=2, scale=0.2), outputs(batch)
    labels = sorted(set(batch.group))
    step_of = np.array([labels.index(g) % 2 for g in batch.group])
    alone = []
    for step in (0, 1):
        rows = np.flatnonzero(step_of == step)
        part = {k: v[rows] for k, v in given.items()}
        alone.append(evaluate(METHODS[key](reordered(batch, rows)), logp[rows], part))
    whole = evaluate(METHODS[key](batch, step_of=step_of), logp, given)
    assert whole == pytest.approx(sum(alone), rel=1e-9)
    assert all(alone)


@pytest.mark.parametrize("key", ROW_LOSSES)
def test_a_row_without_a_score_has_no_gradient(key):
    batch = spread(random_batch(4, **SMALL))
    logp, given = random_logp(batch, seed=5, scale=0.2), outputs(batch)
    unscored = batch.mask & ~batch.scored[:, None]
    oracle = METHODS[key](batch)
    assert evaluate(oracle, logp + 0.4 * unscored, given) == evaluate(oracle, logp, given)
    assert unscored.any()


# ------------------------------------------------------------------ regressions


@pytest.mark.parametrize(
    ("key", "scale"), [("dro", 1.0), ("kimi_pmd", None), ("a_star_po", 2e-3), ("gvpo", 0.1)]
)
def test_at_its_anchor_a_regression_is_reinforce(key, scale):
    batch = at_one_policy(5)
    oracle = METHODS[key](batch)
    got = methods.gradient(oracle.loss, batch.logp_old)
    reinforce = -oracle.weight * oracle.credit * batch.length[:, None]  # a row moves as a whole
    if scale is None:  # the loss may be stated with or without a factor tau
        scale = np.vdot(got, reinforce) / np.vdot(reinforce, reinforce)
        assert scale > 0
    np.testing.assert_allclose(got, scale * reinforce, atol=1e-7)
    assert np.abs(reinforce).max() > 1e-3


def test_kimi_pmd_rests_where_the_log_ratio_is_the_advantage_over_tau():
    oracle = regression.kimi_pmd(outcomes([1, 0], [0, 0]), tau=0.25)
    still = np.array([[0.0, 2.0], [0.0, -2.0]])  # A = 1/2 and -1/2
    assert oracle.loss(still) == pytest.approx(0.0)
    np.testing.assert_allclose(methods.gradient(oracle.loss, still), 0.0, atol=1e-7)


def test_flowrl_rests_where_its_flow_is_balanced():
    batch = at_one_policy(11)
    oracle = regression.flowrl(batch, beta=1.0)
    first = [(batch.actions(n) or [0])[0] for n in range(len(batch.group))]
    balanced = oracle.credit[np.arange(len(first)), first]  # log Z = beta A where pi is pi_ref
    assert oracle.loss(batch.logp_old, log_z=balanced) == pytest.approx(0.0)
    assert oracle.loss(batch.logp_old, log_z=balanced + 1.0) > 0.1


def test_the_best_policy_has_no_regret_in_a_star_po():
    """At `pi* = pi_ref exp((R - V*) / beta)` with V* of the same beta, every residual is 0."""
    values = [1.0, 0.0, 0.3]
    ref = np.log([0.2, 0.5, 0.3])
    repeated = [v for v, times in zip(values, (2, 5, 3), strict=True) for _ in range(times)]
    best = regression.optimal_value(repeated, 0.5)  # ten samples with the reference's shares
    log_policy = ref + (np.array(values) - best) / 0.5
    assert np.exp(log_policy).sum() == pytest.approx(1.0)
    batch = outcomes(
        values, [0, 0, 0], optimal_value=[best] * 3, logp_ref=np.stack([ref, ref], axis=1)
    )
    oracle = regression.a_star_po(batch, beta2=0.5)
    assert oracle.loss(np.stack([ref, log_policy], axis=1)) == pytest.approx(0.0)


# ------------------------------------------------------------------ preferences


def test_ipo_is_rebel_with_a_constant_margin():
    batch = outcomes([1, 0], [0, 0])  # old and reference are one
    logp = np.array([[0.0, 0.7], [0.0, -0.4]])
    # REBEL: (h / eta - 1)^2. IPO with 5 for 1 / (2 * 0.1): (h - 5)^2.
    ipo, rebel = preference.ipo(batch), regression.rebel(batch, eta=5.0)
    assert ipo.loss(logp) == pytest.approx(25 * rebel.loss(logp))


def test_dpo_at_the_reference_pulls_half_of_beta():
    batch = at_one_policy(7)
    oracle = preference.dpo(batch, beta=0.3)
    assert oracle.loss(batch.logp_old) == pytest.approx(np.log(2.0))
    expected = -0.5 * 0.3 * oracle.weight * oracle.credit * batch.length[:, None]
    np.testing.assert_allclose(methods.gradient(oracle.loss, batch.logp_old), expected, atol=1e-7)


def test_pairs_skip_empty_and_unscored_rows_and_equal_groups():
    batch = make(
        [".xx", ".x.", "...", ".x.", ".x.", ".x.", ".x."],
        [[0, 0, 1], [0, 9, 0], [-9, 0, 0], [0, 0, 0], [0, 2, 0], [0, 7, 0], [0, 7, 0]],
        [0, 0, 0, 0, 0, 1, 1],
        scored=[True, False, True, True, True, True, True],
    )
    assert preference.pairs(batch) == [(4, 3)]


# ------------------------------------------------------------------ distillation


def test_on_policy_distillation_is_k2_with_the_teacher_as_reference():
    batch = at_one_policy(9)
    batch = replace(batch, scored=batch.group >= 0)
    oracle = distillation.opd(batch)

    def k2(logp, detached_logp=None):
        gap = logp - batch.logp_teacher
        return methods._weighted_sum(oracle.weight, lambda n, t: pieces.k2(gap[n, t]))

    expected = methods.gradient(k2, batch.logp_old)
    for same in (oracle, distillation.iw_opd(batch, strength=0.0)):
        got = methods.gradient(same.loss, batch.logp_old)
        np.testing.assert_allclose(got, expected, atol=1e-7)


def test_gold_counts_a_row_and_a_span_once():
    batch = spread(random_batch(1, **SMALL))
    logp, given = random_logp(batch, seed=3), outputs(batch)
    rows = [n for n in range(len(batch.group)) if batch.actions(n)]
    alone = [
        evaluate(distillation.gold(reordered(batch, [n])), logp[[n]], {"sorted_prob": prob[None]})
        for n, prob in enumerate(given["sorted_prob"])
    ]
    got = evaluate(distillation.gold(batch), logp, given)
    assert got == pytest.approx(sum(alone) / len(rows))


def test_without_a_gap_to_the_teacher_the_hybrids_are_grpo():
    batch = random_batch(10, **SMALL)
    same = replace(batch, logp_teacher=batch.logp_sampler)
    grpo = methods.grpo(batch).credit
    for at in ("advantage", "reward", "loss"):
        np.testing.assert_allclose(distillation.grpo_opd(same, at=at).credit, grpo)
    gap = distillation.opd(batch).credit
    for at, added in (("advantage", gap), ("loss", 0.0 * gap)):
        np.testing.assert_allclose(distillation.grpo_opd(batch, at=at).credit, grpo + added)
    within = distillation.grpo_opd(batch, at="reward").credit
    assert min(np.abs(within - grpo).max(), np.abs(within - grpo - gap).max()) > 0.1
