"""Distillation: divergences to a teacher on the student's own tokens, terms of their own."""

from __future__ import annotations

import jax.numpy as jnp

from polopt.columns import jsd, name_of, sorted_prob
from polopt.numerics import safe_exp, token_info, turn_total
from polopt.numerics import stop as sg
from polopt.reward.turns import run_starts
from polopt.transform import Column, Transform, Want, piece
from polopt.types import Context, Surrogate

JSD = jsd(0.5, "teacher")
SORTED = sorted_prob(3)


@piece(
    "trajectory",
    term="distillation",
    couples="none",
    formula="−c · D(π, π_T)(s_t), over the whole vocabulary",
    source="GKD, 2306.13649, eq. 1-3",
    repairs=("never_solved", "sparse_credit"),
)
def divergence_loss(
    surrogate: Surrogate,
    context: Context,
    *,
    coefficient: float = 1.0,
    divergence: Want = JSD,
    bound: float | None = None,
    aggregate: Transform | None = None,
) -> Surrogate:
    """Pay for a divergence between the student's and the teacher's next-token distributions.

    The states are the student's and are not differentiated: a low-variance gradient of the
    token's own divergence, without what it changes in later states.

    Args:
      divergence: `polopt.columns.jsd(beta, "teacher")`, `kl_full("teacher")` or your own.
      bound: weigh by min(π/π_old, bound), detached, for batches that are used several times.
    """
    distance = context.outputs[name_of(divergence)]
    objective = -coefficient * distance
    if bound is not None:
        objective = sg(jnp.minimum(surrogate.ratio, bound)) * objective
    measured = token_info(distance, context.mask)
    return surrogate.with_term("distillation", objective, context.mask, policy__divergence=measured)


@piece(
    "trajectory",
    term="distillation",
    formula="−c · sg[min(r, b)·(l − l_T)] · l",
    source="SDPO, 2601.20802, sec. 3; Thinking Machines, On-policy distillation, 2025",
    repairs=("never_solved", "sparse_credit"),
)
def reverse_kl_loss(
    surrogate: Surrogate,
    context: Context,
    *,
    coefficient: float = 1.0,
    to: Column = "logp_teacher",
    bound: float | None = None,
    aggregate: Transform | None = None,
) -> Surrogate:
    """The reverse KL's gradient from the sampled token alone, with the current student's gap."""
    gap = sg(surrogate.logp) - context.column(to)
    weight = 1.0 if bound is None else sg(jnp.minimum(surrogate.ratio, bound))
    objective = -coefficient * weight * gap * surrogate.logp
    return surrogate.with_term("distillation", objective, context.mask)


@piece(
    "trajectory",
    term="distillation",
    needs=("logp_teacher",),
    formula="c · r·(l_T − l_μ),  r = π/μ",
    source="On-policy distillation, Thinking Machines 2025, as a term beside another policy term",
    repairs=("never_solved", "sparse_credit", "teacher_ceiling"),
)
def teacher_surrogate(
    surrogate: Surrogate,
    context: Context,
    *,
    coefficient: float = 1.0,
    source: Column = "logp_behaviour",
    aggregate: Transform | None = None,
) -> Surrogate:
    """OPD's surrogate with a ratio of its own, whatever clip the policy's term has."""
    sampled = context.column(source)
    gap = context.column("logp_teacher") - sampled
    objective = coefficient * safe_exp(surrogate.logp - sampled) * gap
    return surrogate.with_term("distillation", objective, context.known())


@piece(
    "trajectory",
    term="distillation",
    needs=("span", "teacher_sorted_prob"),
    couples="sequence",
    formula="−c · Σ_k |p_(k)·Π π(rest of the span) − q_(k)|, at the first token of each span",
    source="ULD, 2402.12030, eq. 4; GOLD, Hugging Face 2025 (spans merged by the chain rule)",
    repairs=("never_solved",),
    differs=("over the K largest probabilities on both sides, not the whole vocabulary",),
)
def sorted_distance_loss(
    surrogate: Surrogate,
    context: Context,
    *,
    coefficient: float = 1.0,
    probabilities: Want = SORTED,
    aggregate: Transform | None = None,
) -> Surrogate:
    """Distil across tokenizers: compare sorted probabilities where both texts are aligned.

    For an aggregation by the mean of each row.
    """
    span, mask = context.column("span"), context.mask
    aligned = mask & (span >= 0)
    start = run_starts(span, aligned)
    place = jnp.where(aligned, jnp.cumsum(start, axis=1) - 1, -1)
    rest = safe_exp(turn_total(jnp.where(start, 0, surrogate.logp), place))
    student = rest[..., None] * context.outputs[name_of(probabilities)]
    distance = jnp.sum(jnp.abs(student - context.column("teacher_sorted_prob")), axis=-1)
    # A row's mean over its tokens becomes its mean over spans.
    spans = jnp.maximum(jnp.sum(start, axis=1), 1)
    scale = (jnp.sum(mask, axis=1) / spans)[:, None]
    return surrogate.with_term("distillation", -coefficient * scale * distance, start)
