"""What holds for every method of the later modules, whatever it computes."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from . import (
    agreement,
    distillation,
    methods,
    mismatch,
    preference,
    regression,
    trackers,
    trees,
    turns,
)
from .batch import Batch, random_batch, random_logp, reordered, widened

TRACKER = {"alpha": np.linspace(0.5, 3, 9), "beta": np.linspace(2, 1, 9)}
SMALL = {"n_groups": 5, "max_group": 3, "width": 7}
METHODS = {
    "tis": mismatch.tis,
    "tis_sequence": partial(mismatch.tis, level="sequence"),
    "mis": mismatch.mis,
    "icepop": partial(mismatch.icepop, low=0.95, high=1.05),
    "icepop_one_ratio": mismatch.icepop_one_ratio,
    "opsm": partial(mismatch.opsm, delta=0.02),
    "decoupled_ppo": mismatch.decoupled_ppo,
    "dro": regression.dro,
    "dro_token": partial(regression.dro, form="token"),
    "rebel": regression.rebel,
    "gvpo": regression.gvpo,
    "kimi_pmd": partial(regression.kimi_pmd, length_penalty=0.5, per_token=True),
    "kimi_partition": partial(regression.kimi_pmd, baseline="partition", tau=0.5),
    "a_star_po": regression.a_star_po,
    "flowrl": regression.flowrl,
    "spo_single_stream": partial(trackers.spo_single_stream, tracker=TRACKER),
    "prime": trackers.prime,
    "ttrl": agreement.ttrl,
    "empo": partial(agreement.empo, window=(0.1, 1.2), beta=0.1),
    "treerpo": trees.treerpo,
    "treepo": trees.treepo,
    "arpo": trees.arpo,
    "arpo_hard": partial(trees.arpo, attribution="hard"),
    "gigpo": turns.gigpo,
    "mt_grpo": turns.mt_grpo,
    "turn_ppo": turns.turn_ppo,
    "bi_level_gae": turns.bi_level_gae,
    "starpo": turns.starpo,
    "starpo_s": turns.starpo_s,
    "gkd": distillation.gkd,
    "minillm": distillation.minillm,
    "opd": distillation.opd,
    "iw_opd": distillation.iw_opd,
    "sdpo": partial(distillation.sdpo, distillation=0.5),
    "gold": partial(distillation.gold, hybrid=0.3),
    **{at: partial(distillation.grpo_opd, at=at) for at in ("advantage", "reward", "loss")},
    "dpo": preference.dpo,
    "ipo": preference.ipo,
}
# Of equal scores or votes these take the first in row order.
BY_ORDER = {"ttrl", "starpo_s", "dpo", "ipo"}
PER_TOKEN = ["logp_old", "logp_ref", "logp_sampler", "value", "logp_teacher", "logp_prm"]
OUTPUTS = {
    "dro": ["value"],
    "decoupled_ppo": ["value"],
    "turn_ppo": ["value"],
    "bi_level_gae": ["value"],
    "starpo": ["value"],
    "starpo_s": ["value"],
    "prime": ["logp_prm"],
    "gkd": ["jsd_teacher"],
    "minillm": ["kl_teacher"],
    "gold": ["sorted_prob", "jsd_teacher"],
    "flowrl": ["log_z"],
}
# Where every ratio and weight is 1, and no penalty acts, the gradient is that of REINFORCE.
ON_POLICY = {
    **{k: METHODS[k] for k in ("spo_single_stream", "prime", "ttrl", "treerpo", "treepo", "arpo")},
    **{k: METHODS[k] for k in ("arpo_hard", "mt_grpo", "turn_ppo", "bi_level_gae", "starpo_s")},
    "decoupled_ppo": mismatch.decoupled_ppo,
    "opsm": partial(mismatch.opsm, beta=0.0),
    "tis": partial(mismatch.tis, beta=0.0),
    "gigpo": partial(turns.gigpo, beta=0.0),
    "advantage": METHODS["advantage"],
    "minillm": distillation.minillm,
    "opd": distillation.opd,
    "iw_opd": distillation.iw_opd,
}


def outputs(key: str, batch: Batch, seed: int = 0) -> dict[str, np.ndarray]:
    """What the current models would say, made up."""
    rng = np.random.default_rng(seed)
    shape = batch.mask.shape
    known = {
        "value": batch.value + 0.3,
        "logp_prm": batch.logp_prm + 0.1,
        "jsd_teacher": rng.random(shape),
        "kl_teacher": rng.random(shape),
        "sorted_prob": -np.sort(-rng.random((*shape, 3)), axis=-1),
        "log_z": rng.normal(size=shape[0]),
    }
    return {name: known[name] for name in OUTPUTS.get(key, [])}


@pytest.mark.parametrize("key", sorted(METHODS))
def test_what_is_off_the_mask_changes_nothing(key):
    batch = random_batch(4)
    poison = {name: np.where(batch.mask, getattr(batch, name), np.nan) for name in PER_TOKEN}
    dirty = replace(batch, **poison)
    logp, said = random_logp(batch, seed=5, scale=0.2), outputs(key, batch)
    spoiled = {
        name: np.where(batch.mask.reshape(*batch.mask.shape, *[1] * (x.ndim - 2)), x, np.nan)
        if x.ndim > 1
        else x
        for name, x in said.items()
    }
    clean, got = METHODS[key](batch), METHODS[key](dirty)
    np.testing.assert_array_equal(clean.credit, got.credit)
    assert got.loss(np.where(batch.mask, logp, np.nan), **spoiled) == clean.loss(logp, **said)
    for column in (clean.credit, clean.weight):
        assert not column[~batch.mask].any()
    assert not clean.credit[~batch.scored].any()


@pytest.mark.parametrize("key", sorted(METHODS.keys() - BY_ORDER))
def test_row_order_and_padding_do_not_matter(key):
    batch = random_batch(6)
    logp, said = random_logp(batch, seed=7, scale=0.2), outputs(key, batch)
    order = np.random.default_rng(0).permutation(len(batch.group))
    wide = {
        name: np.pad(x[order], [(0, 0), (0, 2), (0, 0)][: x.ndim]) if x.ndim > 1 else x[order]
        for name, x in {**said, "logp": logp}.items()
    }
    got = METHODS[key](widened(reordered(batch, order))).loss(**wide)
    assert got == pytest.approx(METHODS[key](batch).loss(logp, **said), rel=1e-9)


@pytest.mark.parametrize("key", sorted(ON_POLICY))
def test_on_policy_gradient_is_reinforce(key):
    batch = random_batch(31, **SMALL)
    batch = replace(batch, logp_sampler=batch.logp_old)
    oracle = ON_POLICY[key](batch)
    got = methods.gradient(oracle.loss, batch.logp_old)
    np.testing.assert_allclose(got, -oracle.weight * oracle.credit, atol=1e-7)
    assert np.abs(oracle.weight * oracle.credit).max() > 1e-6


@pytest.mark.parametrize("key", ["tis", "rebel", "kimi_pmd", "gkd", "turn_ppo", "treepo"])
def test_steps_split_the_denominators(key):
    batch = random_batch(8)
    step_of = np.unique(batch.group, return_inverse=True)[1] % 2  # whole groups
    split, whole = METHODS[key](batch, step_of=step_of), METHODS[key](batch)
    np.testing.assert_array_equal(split.credit, whole.credit)
    np.testing.assert_allclose(split.weight.sum(), 2 * whole.weight.sum())
    logp, said = random_logp(batch, seed=9), outputs(key, batch)
    halves = 0.0
    for step in (0, 1):
        keep = (step_of == step)[:, None] & batch.mask
        assert keep.any()
        halves += split.weight[keep].sum()
    assert halves == pytest.approx(split.weight.sum())
    assert split.loss(logp, **said) != whole.loss(logp, **said)
