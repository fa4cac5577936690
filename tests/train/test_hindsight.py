"""The policy in hindsight: which success a row is shown, and what is said of its own tokens."""

import dataclasses

import jax
import numpy as np
import pytest

from polopt.algorithms import sdpo
from polopt.models.score import score
from polopt.rollout.collect import Cursor, Rollout
from polopt.rollout.measure import outcome
from polopt.testing import random_trajectories
from polopt.testing.draw import take_rows
from polopt.train.hindsight import demonstrations, in_place, told
from polopt.train.models import together
from polopt.trajectory.sampling import Hindsight, Update
from train import toy
from train.toy import config, make_run


def after(question, success):
    return success[:2] + question


SPEC = Hindsight(render=after)


def batch(group, reward, scored):
    made = take_rows(random_trajectories(0), np.arange(len(group)))
    part = np.zeros(made.tokens.shape, np.float32)
    part[:, -1] = reward
    return dataclasses.replace(
        made,
        group=np.array(group, np.int32),
        scored=np.array(scored),
        reward_parts={"outcome": part},
    )


def test_a_row_is_shown_the_first_other_success_of_its_group():
    shown = batch(
        [0, 0, 0, 1, 1, 2, 2],
        [1, 0, 1, 0.9, 0.2, 1, 1],
        [True, True, True, True, True, False, True],
    )
    # 0 is shown 2, not itself; the group 1 has no success; an unscored one is none.
    assert demonstrations(SPEC, shown).tolist() == [2, 0, 0, -1, -1, 6, -1]
    lower = dataclasses.replace(SPEC, above=0.5)
    assert demonstrations(lower, shown).tolist() == [2, 0, 0, -1, 3, 6, -1]


def scored():
    """A rollout of a run, and its batch as the update would see it."""
    alg = sdpo().replace(update=Update(teacher=SPEC, reference="ema"))
    run = make_run(alg, config(steps=1, prompts=6, group_size=3, eval_every=0))
    now = run._first()
    given = run._given(now)
    everyone = together(given, now.state.params)
    rollout = run.rollouts.take(everyone, 0, now.cursor, now.pool)
    return rollout, run.scoring.columns(everyone, rollout, now.pool, now.rooms)


@pytest.mark.slow
def test_a_run_scores_its_rows_after_what_worked():
    rollout, trajectories = scored()
    letters, params = toy.Letters(), toy.params()
    found, sampled = trajectories.columns["logp_teacher"], trajectories.logp_sampler
    good = outcome(trajectories) >= 1
    shown = 0
    for n, example in enumerate(rollout.examples):
        siblings = [m for m in range(n // 3 * 3, n // 3 * 3 + 3) if m != n and good[m]]
        own = slice(trajectories.prompt_length[n], trajectories.length[n])
        if not siblings:
            np.testing.assert_allclose(found[n], sampled[n], atol=1e-6)
            continue
        prompt = letters.prompt(after(example.prompt, rollout.completions[siblings[0]]))
        row = np.concatenate([prompt, trajectories.tokens[n, own]])[None]
        logits = toy.MODEL.logits(params, toy.MODEL.hidden(params, row))[0]
        logp = np.asarray(jax.nn.log_softmax(logits))[len(prompt) - 1 : -1]
        expected = np.take_along_axis(logp, trajectories.tokens[n, own][:, None], 1)[:, 0]
        np.testing.assert_allclose(found[n, own], expected, atol=1e-5)
        assert not np.delete(found[n], np.r_[own]).any()
        shown += 1
    assert 4 < shown < 18


def test_what_does_not_fit_is_not_shown():
    """A prompt that would leave the row no room: the row keeps what it was sampled with."""
    rows = batch([0, 0], [1, 1], [True, True])
    long = dataclasses.replace(SPEC, render=lambda question, success: "abc" * 20)
    for spec, count in ((SPEC, 2), (long, 0)):
        rollout = Rollout(
            trajectories=rows,
            examples=[toy.example(0, 0), toy.example(1, 1)],
            completions=["de", "fg"],
            cursor=Cursor(),
            rounds=1,
            seconds={},
            pool={},
        )
        made = told(spec, rollout, toy.Letters(), 32)
        assert (made.length > 0).sum() == count
        assert made.tokens.shape[1] <= 32
        logp = score({"policy": (toy.MODEL, toy.params())}, made).logp
        found = in_place(logp, made, rows)
        kept = np.where(rows.action_mask, rows.logp_sampler + rows.log_keep, 0)
        assert (found == kept).all() == (count == 0)
