import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from single import objectives, one_token_rows

import polopt
from polopt import (
    Algorithm,
    PolicyOutputs,
    PoloptError,
    Trajectories,
    Update,
    add,
    algorithms,
    chain,
)
from polopt.aggregate import sequence_mean
from polopt.algorithm import coupling, needs, single_step, terms, wants
from polopt.numerics import token_info, uniform_by_identity
from polopt.reward import (
    drop_truncated,
    group_mean_baseline,
    outcome_return,
    reward_to_go,
)
from polopt.testing import random_outputs, random_trajectories, take_rows
from polopt.trajectory import clip, entropy_bonus, kl_penalty, policy_gradient, token_ratio
from polopt.types import Mean

REWARD, TRAJECTORY = chain(outcome_return()), chain(policy_gradient())
LOG, CREDIT = np.log([1.5, 0.5]), np.array([2.0, -1.0])


def near(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------ what an algorithm is made of


def test_what_an_algorithm_needs_is_derived_from_its_pieces():
    assert needs(algorithms.grpo()) == ("logp_old", "logp_ref")
    assert needs(algorithms.ppo(), "reward") == ("logp_old", "logp_ref", "value")
    assert wants(algorithms.a2c()) == ("entropy", "value")
    assert (coupling(algorithms.grpo()), coupling(algorithms.gspo())) == ("none", "sequence")
    assert list(terms(algorithms.ppo())) == ["policy", "value"]
    assert single_step(algorithms.grpo())
    assert not single_step(algorithms.dapo())


def test_replace_a_link_or_a_field_by_name():
    changed = algorithms.grpo().replace(
        clip=clip(0.1, 0.3), aggregate=sequence_mean(), update=Update(epochs=2)
    )
    assert changed.trajectory.links[1] == clip(0.1, 0.3)
    assert changed.update.epochs == 2
    assert algorithms.grpo().trajectory.links[1] == clip(0.2, 0.2)
    with pytest.raises(PoloptError, match="grpo has no part 'clipp'; did you mean 'clip'"):
        algorithms.grpo().replace(clipp=clip())
    with pytest.raises(PoloptError, match="clip reads ratio"):
        algorithms.grpo().replace(token_ratio=chain())


def test_algorithms_are_equal_by_value():
    assert algorithms.grpo() == algorithms.grpo()
    assert algorithms.grpo(kl=0.1) != algorithms.grpo(kl=0.2)
    made = (algorithms.grpo(kl=0.1), algorithms.grpo(), algorithms.gspo())
    a, b, c = map(jax.tree.structure, made)
    assert a == b != c


# ------------------------------------------------------------------ prepare


def test_a_missing_column_is_named_with_its_reader():
    batch = one_token_rows(CREDIT, logp_old=LOG)
    with pytest.raises(
        PoloptError,
        match="kl_penalty needs the column 'logp_ref': put it into "
        r"Trajectories.columns \(there are .*logp_old",
    ):
        polopt.prepare(algorithms.grpo(), batch)
    bare = one_token_rows(CREDIT)
    with pytest.raises(PoloptError, match="token_ratio needs the column 'logp_old'"):
        polopt.prepare(algorithms.cispo(), bare)  # several optimiser steps per batch
    polopt.prepare(algorithms.dr_grpo(), bare)  # one: the current policy is the old one
    with pytest.raises(PoloptError, match="needs the column 'logp_old'"):
        polopt.prepare(algorithms.dr_grpo(), bare, step_of=np.array([0, 1]))
    with pytest.raises(PoloptError, match="kl_in_reward needs the column 'logp_old'"):
        polopt.prepare(algorithms.rloo(), bare)  # the reward side reads it before the loss


def test_a_piece_that_reads_what_it_does_not_declare_is_told():
    @polopt.piece("trajectory", reads="logp", writes="policy", term="policy")
    def peeks(surrogate, context):
        return context.column("logp_teacher")

    alg = Algorithm(reward=REWARD, trajectory=chain(peeks()))
    prepared, _ = polopt.prepare(alg, one_token_rows(CREDIT, logp_teacher=LOG))
    with pytest.raises(PoloptError, match="reads the column 'logp_teacher' without needs="):
        polopt.loss(alg, PolicyOutputs(logp=np.zeros((2, 2), np.float32)), prepared)


def test_windows_of_optimiser_steps():
    """Credit belongs to the batch, weights to the rows of one step."""
    batch = random_trajectories(0)
    alg = algorithms.grpo()
    step = (np.asarray(batch.group) % 2).astype(np.int32)
    whole, _ = polopt.prepare(alg, batch)
    stepped, _ = polopt.prepare(alg, batch, step_of=step)
    near(stepped.credit, whole.credit)
    near(np.sum(whole.rows.weights["policy"]), 1)
    for s in (0, 1):
        near(np.sum(stepped.rows.weights["policy"][step == s]), 1)
    again = polopt.reweigh(alg, whole, jnp.asarray(step))
    near(again.rows.weights["policy"], stepped.rows.weights["policy"])
    # A step alone is the batch of its rows.
    only = step == 1
    alone = dataclasses.replace(batch, action_mask=batch.action_mask & only[:, None])
    near(
        np.asarray(stepped.rows.weights["policy"])[only],
        np.asarray(polopt.prepare(alg, alone)[0].rows.weights["policy"])[only],
    )


def test_keep_leaves_the_denominator_and_a_mask_only_the_numerator():
    @polopt.piece("trajectory", reads="policy")
    def first_row_only(surrogate, context):
        term = surrogate.terms["policy"]
        mask = term.mask & (jnp.arange(2)[:, None] == 0)
        made = dataclasses.replace(term, mask=mask)
        return dataclasses.replace(surrogate, terms={**surrogate.terms, "policy": made})

    batch = one_token_rows(CREDIT)
    batch = dataclasses.replace(batch, stop=np.array([polopt.Stop.EOS, polopt.Stop.LENGTH]))
    outputs = PolicyOutputs(logp=np.full((2, 2), -1.0, np.float32))
    kept = Algorithm(reward=chain(outcome_return(), drop_truncated()), trajectory=TRAJECTORY)
    masked = Algorithm(reward=REWARD, trajectory=chain(policy_gradient(), first_row_only()))
    near(polopt.objective(kept)(outputs, batch)[0], 2.0)
    near(polopt.objective(masked)(outputs, batch)[0], 2.0 / 2)


def test_a_row_without_a_score_has_no_credit_and_stays_in_the_denominator():
    batch = dataclasses.replace(one_token_rows(CREDIT), scored=np.array([True, False]))
    alg = Algorithm(reward=REWARD, trajectory=TRAJECTORY)
    prepared, _ = polopt.prepare(alg, batch)
    near(prepared.credit, [[0, 2], [0, 0]])
    near(prepared.rows.weights["policy"], [[0, 0.5], [0, 0.5]])


def test_components_of_the_reward_are_summed():
    batch = Trajectories.build(
        [[1]] * 2, [[2, 3]] * 2, {"outcome": [1.0, 0.0], "process": [[0.25, 0], [0, 0.5]]}, group=2
    )
    alg = Algorithm(reward=chain(reward_to_go()), trajectory=TRAJECTORY)
    near(polopt.prepare(alg, batch)[0].credit, [[0, 1.25, 1], [0, 0.5, 0.5]])


# ------------------------------------------------------------------ sums


def test_credits_in_parallel():
    batch = one_token_rows([1.0, 3.0])
    both = Algorithm(
        trajectory=TRAJECTORY,
        reward=chain(outcome_return(), add(group_mean_baseline(), chain(), weights=(1.0, 0.5))),
    )
    near(polopt.prepare(both, batch)[0].credit[:, 1], [-1 + 0.5, 1 + 1.5])
    mixed = Algorithm(
        trajectory=TRAJECTORY,
        reward=chain(add(chain(outcome_return(), group_mean_baseline()), reward_to_go())),
    )
    near(polopt.prepare(mixed, batch)[0].credit[:, 1], [-1 + 1, 1 + 3])


def test_objectives_in_parallel():
    parts = add(clip(0.2, 0.2), chain(clip(9.0, 9.0), entropy_bonus(0.1)), weights=(0.25, 0.75))
    terms_, gradient, _ = objectives(
        token_ratio(),
        parts,
        log_ratio=LOG,
        credit=CREDIT,
        outputs={"entropy": np.array([1.0, 2.0])},
    )
    near(terms_["policy"], [0.25 * 2.4 + 0.75 * 3.0, 0.25 * -0.8 + 0.75 * -0.5])
    near(terms_["entropy"], [0.075, 0.15])
    near(gradient["logp"], [-0.75 * 3, 0.75 * 0.5])


def test_a_term_before_a_sum_is_not_counted_by_its_branches():
    parts = add(clip(9.0, 9.0), entropy_bonus(0.1))
    terms_, _, _ = objectives(
        kl_penalty(coefficient=1.0),
        token_ratio(),
        parts,
        log_ratio=LOG,
        credit=CREDIT,
        columns={"logp_ref": np.full(2, -1.0)},
        outputs={"entropy": np.ones(2)},
    )
    near(terms_["kl"], -(np.exp(-LOG) - 1 + LOG))


# ------------------------------------------------------------------ loss


def test_objective_is_prepare_then_loss_and_info_is_of_pairs():
    batch = random_trajectories(1)
    alg = algorithms.grpo()
    outputs = random_outputs(1, batch)
    prepared, _ = polopt.prepare(alg, batch)
    (a, info), (b, _) = polopt.objective(alg)(outputs, batch), polopt.loss(alg, outputs, prepared)
    near(a, b)
    assert {"objective/policy", "objective/kl", "policy/kl", "policy/clip_fraction"} <= set(info)
    assert isinstance(info["policy/kl"], Mean)
    near(a, -info["objective/policy"].sum - info["objective/kl"].sum)
    near(info["objective/policy"].weight, 1)
    near(info["policy/clip_fraction"].weight, batch.action_mask.sum())
    assert 0 < info["policy/clip_fraction"].value() < 1


# ------------------------------------------------------------------ memory and draws


@polopt.piece(
    "reward", reads="sequence", clock="rollout", init=lambda prompts, **_: jnp.zeros(prompts)
)
def running_baseline(credit, trajectories, *, memory, rate: float = 0.5):
    """Subtracts what the prompt earned before."""
    seen = credit.sequence - memory[trajectories.prompt]
    memory = memory.at[trajectories.prompt].set(rate * credit.sequence)
    return dataclasses.replace(credit, sequence=seen), memory


@polopt.piece(
    "trajectory",
    reads="policy",
    clock="update",
    init=lambda prompts, **_: jnp.float32(0.0),
    advance=lambda memory, info, **_: memory + info["policy/entropy"].value(),
)
def adaptive(surrogate, context, *, memory):
    """Scales the objective by what it has seen."""
    term = surrogate.terms["policy"]
    made = dataclasses.replace(term, objective=(1 + memory) * term.objective)
    info = {**surrogate.info, "policy/entropy": token_info(2 + 0 * term.objective, context.mask)}
    return dataclasses.replace(surrogate, terms={**surrogate.terms, "policy": made}, info=info)


def remembering() -> Algorithm:
    return Algorithm(
        reward=chain(outcome_return(), running_baseline()),
        trajectory=chain(policy_gradient(), adaptive()),
    )


def test_memory_keeps_two_clocks():
    alg = remembering()
    batch = dataclasses.replace(one_token_rows([4.0, 6.0]), prompt=np.array([1, 0]))
    outputs = PolicyOutputs(logp=np.full((2, 2), -1.0, np.float32))
    state = polopt.init(alg, prompts=3)
    first, after = polopt.prepare(alg, batch, state=state)
    near(after["rollout"]["reward/running_baseline"], [3, 2, 0])
    near(state["rollout"]["reward/running_baseline"], 0)
    near(first.credit[:, 1], [4, 6])
    near(polopt.prepare(alg, batch, state=after)[0].credit[:, 1], [4 - 2, 6 - 3])
    value, info = polopt.loss(alg, outputs, first)
    near(value, 5.0)
    later = polopt.advance(alg, after, info)
    near(later["update"]["trajectory/adaptive"], 2.0)
    near(later["rollout"]["reward/running_baseline"], [3, 2, 0])
    moved, _ = polopt.prepare(alg, batch, state={**state, "update": later["update"]})
    near(polopt.loss(alg, outputs, moved)[0], 15.0)


def test_methods_without_memory_have_an_empty_state():
    assert jax.tree.leaves(polopt.init(algorithms.grpo(), prompts=5)) == []


@polopt.piece("reward", reads="sequence")
def dropout(credit, trajectories, *, key, rate: float = 0.5):
    """Drops rows at random, by their identity."""
    kept = uniform_by_identity(key, trajectories.id, 1)[:, 0] > rate
    return dataclasses.replace(credit, sequence=credit.sequence * kept)


def test_draws_are_addressed_by_identity():
    alg = Algorithm(reward=chain(outcome_return(), dropout()), trajectory=TRAJECTORY)
    batch = random_trajectories(0)
    with pytest.raises(PoloptError, match=r"dropout draws at random: pass key=jax.random.key\("):
        polopt.prepare(alg, batch)
    order = np.random.default_rng(0).permutation(len(batch.id))
    key = jax.random.key(3)
    credit = np.asarray(polopt.prepare(alg, batch, key=key)[0].credit)
    moved = polopt.prepare(alg, take_rows(batch, order), key=key)[0].credit
    np.testing.assert_array_equal(moved, credit[order])
    other = polopt.prepare(alg, batch, key=jax.random.key(4))[0].credit
    assert np.any(credit != other)


def test_two_pieces_draw_apart():
    """Names of the same letters are different names."""
    alg = Algorithm(
        reward=chain(outcome_return(), add(chain(ab=dropout()), chain(ba=dropout()))),
        trajectory=TRAJECTORY,
    )
    batch = random_trajectories(0)
    credit = np.asarray(polopt.prepare(alg, batch, key=jax.random.key(0))[0].credit)
    whole = np.asarray(polopt.prepare(algorithms.reinforce(), batch)[0].credit)
    assert ((whole != 0) & np.isclose(credit, whole)).any()  # kept by one, dropped by the other


def test_a_piece_with_memory_asks_for_a_state():
    with pytest.raises(PoloptError, match="running_baseline keeps memory: pass state=polopt"):
        polopt.prepare(remembering(), one_token_rows(CREDIT))


def test_outputs_that_do_not_fit_are_told():
    alg = algorithms.a2c()
    prepared, _ = polopt.prepare(alg, one_token_rows(CREDIT, value=CREDIT))
    logp = np.zeros((2, 2), np.float32)
    with pytest.raises(PoloptError, match="entropy_bonus reads 'entropy' of the current models"):
        polopt.loss(alg, PolicyOutputs(logp=logp, columns={"value": logp}), prepared)
    shifted = PolicyOutputs(logp=logp[:, 1:], columns={"value": logp, "entropy": logp})
    with pytest.raises(PoloptError, match=r"outputs of 'logp' have shape \(2, 1\), the rows"):
        polopt.loss(alg, shifted, prepared)
