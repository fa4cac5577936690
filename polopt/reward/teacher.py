"""Teacher credit: how much likelier a teacher finds each token that the student wrote.

Pieces add up to the variants of on-policy distillation:

    teacher_credit()                                                       OPD
    chain(teacher_credit(), position_weight())                             IW-OPD
    teacher_credit(baseline="kl_teacher")                                  vOPD
    add(teacher_credit(), teacher_credit(λ − 1, source="logp_ref"))        ExOPD
    add(chain(outcome_return(), GROUP_NORM), teacher_credit(c))            GRPO-OPD
    chain(teacher_reward(), future_mean_return())                          MiniLLM's long part
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.numerics import suffix_sum
from polopt.transform import Column, piece
from polopt.types import Array, Credit, Trajectories

_SOURCE = (
    "the sampler's probability is read unfiltered: the blog samples without filters;"
    " verl recomputes the student's with the current policy"
)


def _gap(
    trajectories: Trajectories, coefficient: Array, source: Column, bound: Array | None
) -> Array:
    """f32[N,T]: c·(l_T − l_source), the gap held in ±bound; zero outside the mask."""
    gap = trajectories.columns["logp_teacher"] - trajectories.columns[source]
    if bound is not None:
        gap = jnp.clip(gap, -bound, bound)
    return jnp.where(trajectories.action_mask, coefficient * gap, 0)


@piece(
    "reward",
    reads="reward",
    needs=("logp_teacher",),
    formula="r_it − c·(l − l_T)",
    source="On-Policy Distillation, Thinking Machines 2025; MiniLLM, 2306.08543",
    repairs=("never_solved", "sparse_credit", "teacher_ceiling"),
    differs=(_SOURCE, "verl holds the gap in ±10 (`bound`)"),
)
def teacher_reward(
    credit: Credit,
    trajectories: Trajectories,
    *,
    coefficient: float = 1.0,
    source: Column = "logp_behaviour",
    bound: float | None = None,
    alone: bool = False,
) -> Credit:
    """Pay for every token by how much likelier the teacher finds it; what it earned stays.

    Before a return: with `reward_to_go(γ)` the discounted form of distillation, with a group norm
    the reward-level hybrid.

    Args:
      alone: put it in the place of what was earned.
    """
    gap = _gap(trajectories, coefficient, source, bound)
    return dataclasses.replace(credit, reward=gap if alone else credit.reward + gap)


@piece(
    "reward",
    reads="reward",
    writes="value",
    needs=("logp_teacher",),
    formula="A_it = c·(l_T − l), or c·(l_T − l + KL(π‖π_T)) with a baseline",
    source="On-Policy Distillation, Thinking Machines 2025; vOPD, 2605.07865; G-OPD, 2602.12125",
    repairs=("never_solved", "sparse_credit", "teacher_ceiling"),
    differs=(_SOURCE, "verl holds the gap in ±10 (`bound`)"),
)
def teacher_credit(
    credit: Credit,
    trajectories: Trajectories,
    *,
    coefficient: float = 1.0,
    source: Column = "logp_behaviour",
    bound: float | None = None,
    baseline: Column | None = None,
) -> Credit:
    """Make the teacher's gap the credit of each token, whatever the row earned.

    Args:
      baseline: a recorded column with KL(student ‖ teacher) at the token (`kl_teacher`): the
        expected gap is minus that, so that adding it centres the credit (vOPD).
    """
    value = _gap(trajectories, coefficient, source, bound)
    if baseline is not None:
        kl = coefficient * trajectories.columns[baseline]
        value = value + jnp.where(trajectories.action_mask, kl, 0)
    return dataclasses.replace(credit, value=value)


@piece(
    "reward",
    reads="value",
    formula="w_t·A_t,  w_t = 1 + g·(1 − Σ_{s<t}|A_s| / Σ_s|A_s|)",
    source="IW-OPD, 2606.22600; TRL's experimental trainer",
    repairs=("sparse_credit",),
    differs=(
        "reads the credit in flight, of which the paper's l_T − l is one: after"
        " `teacher_credit()` it is the same",
    ),
)
def position_weight(credit: Credit, trajectories: Trajectories, *, gain: float = 0.5) -> Credit:
    """Weigh early tokens more, up to 1 + g, by how much of the row's gap is still to come."""
    size = jnp.where(trajectories.action_mask, jnp.abs(credit.value), 0)
    total = jnp.sum(size, axis=1, keepdims=True)
    before = (jnp.cumsum(size, axis=1) - size) / jnp.maximum(total, 1e-8)
    weight = 1 + gain * (1 - jnp.clip(before, 0, 1))
    return dataclasses.replace(credit, value=weight * credit.value)


@piece(
    "reward",
    reads="reward",
    writes="value",
    formula="A_it = (Σ_{s>t} γ^{s−t} r_is) / #{s > t}, 0 at the last token",
    source="MiniLLM, 2306.08543 (length normalisation)",
    repairs=("length_bias",),
    differs=(
        "the authors' code takes the token's own reward in, Σ_{s≥t} / #{s ≥ t}, and whitens;"
        " the paper leaves it to a term that is differentiated exactly",
    ),
)
def future_mean_return(credit: Credit, trajectories: Trajectories, *, gamma: float = 1.0) -> Credit:
    """The mean reward of the tokens still to come, so that long rows are not preferred."""
    mask = trajectories.action_mask
    reward = jnp.where(mask, credit.reward, 0)
    after = suffix_sum(reward, gamma, mask) - reward
    count = suffix_sum(mask.astype(reward.dtype), 1.0, mask) - mask
    value = after / jnp.maximum(count, 1)
    return dataclasses.replace(credit, value=value)
