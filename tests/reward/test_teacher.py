"""Teacher credit against literals, and the variants of distillation as compositions."""

import dataclasses

import numpy as np
import pytest

from polopt import PoloptError, Trajectories, add, chain, piece
from polopt.reward import (
    future_mean_return,
    group_mean_baseline,
    outcome_return,
    position_weight,
    reward_to_go,
    teacher_credit,
    teacher_reward,
)
from polopt.testing import LawBroken, check_laws, random_trajectories
from reward.handmade import COMPILED, method, near, run

REF = [[9.0, -4.0, -4.0, 9.0, -4.0]]


def batch(**columns):
    """One row: two tokens, an observation, a token; the teacher's gaps are 1, −1 and 2."""
    made = Trajectories.build(
        [[7]],
        [[9] * 4],
        [[0.0, 0.5, 0.0, 1.0]],
        group=1,
        action_mask=[[True, True, False, True]],
        logp_sampler=[[-3.0, -1.0, 0.0, -2.0]],
    )
    teacher = np.array([[9.0, -2.0, -2.0, 9.0, 0.0]])
    return dataclasses.replace(made, columns={"logp_teacher": teacher, **columns})


def test_credit_is_the_teachers_gap_and_reward_adds_it():
    on = batch()
    near(run(on, teacher_credit(2.0)).value, [[0, 2, -2, 0, 4]])
    near(run(on, teacher_reward(2.0)).reward, [[0, 2, -1.5, 0, 5]])
    near(run(on, teacher_credit(2.0, bound=1.5)).value, [[0, 2, -2, 0, 3]])
    nearest = np.asarray(run(on, teacher_reward(), reward_to_go(0.0)).value)
    near(nearest[0, [1, 2, 4]], [1, -0.5, 3])


def test_the_sampler_is_read_without_its_filters():
    on = batch()
    on = dataclasses.replace(on, log_keep=np.full_like(on.log_keep, -0.5))
    near(run(on, teacher_credit()).value, [[0, 1.5, -0.5, 0, 2.5]])


def test_other_columns_stand_for_the_student():
    on = batch(logp_old=np.full((1, 5), -1.0))
    near(run(on, teacher_credit(source="logp_old")).value, [[0, -1, -1, 0, 1]])


def test_extrapolation_is_a_second_gap():
    """ExOPD: λ·(l_T − l_ref) − (l − l_ref) = (l_T − l) + (λ − 1)·(l_T − l_ref)."""
    on = batch(logp_ref=np.array(REF))
    first, second = teacher_credit(), teacher_credit(0.25, source="logp_ref")
    student, teacher = np.asarray(on.logp_sampler), on.columns["logp_teacher"]
    expected = 1.25 * (teacher - REF) - (student - REF)
    got = np.asarray(run(on, first).value + run(on, second).value)
    near(got[on.action_mask], expected[on.action_mask])


def test_a_value_baseline_centres_the_credit():
    """The credit's mean over the student's own distribution, token by token, is zero."""
    student, teacher = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    kl = float(np.sum(student * np.log(student / teacher)))
    made = Trajectories.build([[7]] * 3, [[9]] * 3, [0.0] * 3, group=3)
    on = dataclasses.replace(
        made,
        logp_sampler=np.log(np.stack([student] * 2, 1)),
        columns={"logp_teacher": np.log(np.stack([teacher] * 2, 1)), "kl": np.full((3, 2), kl)},
    )
    value = np.asarray(run(on, teacher_credit(0.5, baseline="kl")).value)[:, 1]
    near(student @ value, 0)
    near(value, 0.5 * (np.log(teacher / student) + kl))


def test_early_tokens_weigh_more():
    value = run(batch(), teacher_credit(), position_weight(0.5)).value
    near(value, [[0, 1.5, -1.375, 0, 2 * 1.25]])
    twice = run(batch(), teacher_credit(2.0), position_weight(0.5)).value
    near(twice, 2 * np.asarray(value))


def test_the_mean_of_what_is_still_to_come():
    value = run(batch(), teacher_reward(), future_mean_return()).value
    near(np.asarray(value)[0, [1, 2, 4]], [(-0.5 + 3) / 2, 3, 0])
    discounted = run(batch(), teacher_reward(), future_mean_return(0.5)).value
    near(np.asarray(discounted)[0, 1], (-0.25 + 0.75) / 2)


def test_outcome_and_teacher_are_summed_after_the_baseline():
    made = random_trajectories(1, columns=("logp_old", "logp_teacher"))
    outcome = run(made, outcome_return(), group_mean_baseline()).per_token()
    teacher = run(made, teacher_credit(0.1)).value
    for i, t in np.argwhere(made.action_mask):
        gap = made.columns["logp_teacher"][i, t] - made.logp_sampler[i, t] - made.log_keep[i, t]
        near(outcome[i, t] + teacher[i, t], outcome[i, t] + 0.1 * gap)


def test_position_weight_needs_a_credit():
    with pytest.raises(PoloptError, match="position_weight reads value"):
        method(position_weight())()


HYBRID = add(
    chain(outcome_return(), group_mean_baseline()),
    chain(teacher_credit(baseline="kl_teacher", bound=1.0), position_weight()),
    chain(teacher_reward(0.5, source="logp_old"), future_mean_return(0.9)),
)


def test_laws():
    check_laws(method(HYBRID), laws=COMPILED)


@piece("reward", reads="value")
def position_of_the_array(credit, trajectories):
    """A weight by the place in the array, so that padding and the prompt's length enter."""
    steps = np.linspace(1, 2, credit.value.shape[1], dtype=np.float32)[None]
    return dataclasses.replace(credit, value=credit.value * steps)


def test_a_broken_weight_breaks_laws():
    with pytest.raises(LawBroken, match="partition"):
        check_laws(method(teacher_credit(), position_of_the_array()), laws=["partition"])
