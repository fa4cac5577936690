"""Corrections of a policy that is not the one that was sampled; conventions as in `methods.py`.

`rho = exp(logp_old - logp_sampler)` compares what the trainer recomputed with what the sampler
recorded: both are recorded numbers, so no gradient flows through it. The base is GRPO; a weight
multiplies the clipped term only, never the KL term, and does not enter a denominator.
"""

import math
from collections.abc import Callable

import numpy as np

from . import aggregate, credit_pieces, methods, pieces, surrogate_pieces
from .batch import Batch
from .methods import Oracle

# ------------------------------------------------------------------ pieces


def log_rho(batch: Batch, n: int, t: int, level: str) -> float:
    """`l_old - l_sampler` of the token, or summed over the row's actions (`level="sequence"`)."""
    where = {"token": [t], "sequence": batch.actions(n)}[level]
    return sum(batch.logp_old[n, s] - batch.logp_sampler[n, s] for s in where)


def drifted(batch: Batch, n: int, held: np.ndarray, delta: float) -> bool:
    """Whether the row's mean of `l_sampler - l` exceeds `delta` (DeepSeek-V3.2, 2512.02556)."""
    actions = batch.actions(n)
    return sum(batch.logp_sampler[n, t] - held[n, t] for t in actions) / len(actions) > delta


def unbiased_kl(logp: float, old: float, ref: float) -> float:
    """`exp(l - l_old) k3(l - l_ref)`, the ratio being differentiated too (2512.02556).

    At `l = l_old` its gradient is that of `k2`: `(l - l_ref) grad l`.
    """
    return math.exp(logp - old) * pieces.k3(logp - ref)


# ------------------------------------------------------------------ methods


def tis(batch: Batch, *, cap: float = 2.0, level: str = "token", **base) -> Oracle:
    """GRPO times `min(rho, cap)`: truncated importance sampling."""
    return _on_grpo(
        batch, lambda n, t, held: pieces.truncated_is(log_rho(batch, n, t, level), cap), **base
    )


def mis(
    batch: Batch, *, low: float = 0.0, high: float = 2.0, level: str = "sequence", **base
) -> Oracle:
    """GRPO times `rho` inside `[low, high]`, else 0: masked importance sampling.

    `level="sequence"` has the product of a row's ratios, not their geometric mean.
    """
    return _on_grpo(
        batch, lambda n, t, held: pieces.masked_is(log_rho(batch, n, t, level), low, high), **base
    )


def icepop(
    batch: Batch, *, low: float = 0.5, high: float = 5.0, level: str = "token", **base
) -> Oracle:
    """`mis` with IcePop's interval, per token."""
    return mis(batch, low=low, high=high, level=level, **base)


def icepop_one_ratio(
    batch: Batch,
    *,
    low: float = 0.5,
    high: float = 5.0,
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -token_mean(M(k) A)`, `k = pi / sampler`, `M(k) = k` inside `[low, high]`, else 0.

    The form of INTELLECT-3 (2512.16144): one ratio, no clip, no KL. Only `k` is differentiated.
    """
    credit = credit_pieces.normalised_credit(batch, ddof, eps)
    weight = aggregate.token_mean(batch.mask, step_of=step_of)

    def objective(n, t, logp, held):
        inside = pieces.masked_is(held[n, t] - batch.logp_sampler[n, t], low, high) > 0.0
        return math.exp(logp[n, t] - batch.logp_sampler[n, t]) * credit[n, t] if inside else 0.0

    return Oracle(credit=credit, loss=surrogate_pieces.surrogate(weight, objective), weight=weight)


def opsm(batch: Batch, *, delta: float = 0.5, **base) -> Oracle:
    """GRPO whose clipped term is 0 where `A < 0` on a row that has drifted by more than `delta`."""

    def factor(n, t, held, credit):
        return 0.0 if credit < 0 and drifted(batch, n, held, delta) else 1.0

    return _on_grpo(batch, factor, with_credit=True, **base)


def decoupled_ppo(batch: Batch, *, cap: float = math.inf, critic: bool = True, **base) -> Oracle:
    """`L = -token_mean(min(rho, cap) min(r A, clip(r) A)) + critic` (2110.00641; 2505.24298).

    `r = pi / pi_old`: the clip is around the trainer's policy, `rho` corrects the sampler. `base`
    holds the arguments of `ppo`. With `critic=False` the base is GRPO.
    """

    def factor(n, t, held):
        return pieces.truncated_is(log_rho(batch, n, t, "token"), cap)

    if not critic:
        return _on_grpo(batch, factor, **base)
    return _on_ppo(batch, factor, **base)


def _on_grpo(
    batch: Batch,
    factor: Callable[..., float],
    *,
    with_credit: bool = False,
    clip: tuple[float, float] = (0.2, 0.2),
    beta: float = 0.04,
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`methods.grpo` whose clipped term is multiplied by `factor(n, t, held)`."""
    credit = credit_pieces.normalised_credit(batch, ddof, eps)
    weight = aggregate.sequence_mean(batch.mask, step_of=step_of)

    def objective(n, t, logp, held):
        ratio = pieces.token_ratio(logp[n, t], batch.logp_old[n, t])
        more = (credit[n, t],) if with_credit else ()
        surrogate = factor(n, t, held, *more) * pieces.clipped(ratio, credit[n, t], *clip)
        return surrogate - beta * pieces.k3(logp[n, t] - batch.logp_ref[n, t])

    return Oracle(credit=credit, loss=surrogate_pieces.surrogate(weight, objective), weight=weight)


def _on_ppo(
    batch: Batch,
    factor: Callable[..., float],
    *,
    clip: tuple[float, float] = (0.2, 0.2),
    value_clip: float | None = 0.2,
    value_coefficient: float = 0.1,
    **base,
) -> Oracle:
    """`methods.ppo` whose clipped term is multiplied by `factor(n, t, held)`."""
    ppo = methods.ppo(batch, **base)

    def objective(n, t, logp, held):
        ratio = pieces.token_ratio(logp[n, t], batch.logp_old[n, t])
        return factor(n, t, held) * pieces.clipped(ratio, ppo.credit[n, t], *clip)

    policy = surrogate_pieces.surrogate(ppo.weight, objective)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        critic = methods._value_loss(batch, ppo.weight, ppo.returns, value, value_clip)
        return policy(logp, detached_logp=detached_logp) + value_coefficient * critic

    return Oracle(credit=ppo.credit, loss=loss, weight=ppo.weight, returns=ppo.returns)
