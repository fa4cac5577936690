"""PPO with a critic for long responses; conventions as in `methods.py`."""

from collections.abc import Callable

import numpy as np

from . import aggregate, credit_pieces, methods, pieces
from .batch import Batch
from .methods import Oracle


def vc_ppo(
    batch: Batch,
    *,
    policy_lam: float = 0.95,
    critic_lam: float = 1.0,
    gamma: float = 1.0,
    beta: float = 0.0,
    clip: tuple[float, float] = (0.2, 0.2),
    whiten: bool = True,
    value_clip: float | None = 0.2,
    value_coefficient: float = 0.1,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """PPO whose credit has `policy_lam` and whose targets have `critic_lam` (2503.01491)."""
    return _decoupled(
        batch,
        np.full(len(batch.group), policy_lam),
        critic_lam=critic_lam,
        gamma=gamma,
        beta=beta,
        clip=clip,
        whiten=whiten,
        value_clip=value_clip,
        value_coefficient=value_coefficient,
        step_of=step_of,
    )


def vapo(
    batch: Batch,
    *,
    alpha: float = 0.05,
    critic_lam: float = 1.0,
    gamma: float = 1.0,
    beta: float = 0.0,
    clip: tuple[float, float] = (0.2, 0.28),
    positive_nll: float = 0.1,
    correct: np.ndarray | None = None,
    whiten: bool = True,
    value_clip: float | None = 0.2,
    value_coefficient: float = 0.1,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """VC-PPO with `lam_i = max(0, 1 - 1 / (alpha L_i))`, clip-higher and a NLL term (2504.05118).

    The term is `positive_nll` times `-sum l / (number of tokens)` over the responses that are
    `correct` bool[N] (default: scored, with an outcome above 0); it is 0 where a step has none.
    """
    lams = [credit_pieces.length_adaptive_lambda(int(length), alpha) for length in batch.length]
    base = _decoupled(
        batch,
        np.array(lams),
        critic_lam=critic_lam,
        gamma=gamma,
        beta=beta,
        clip=clip,
        whiten=whiten,
        value_clip=value_clip,
        value_coefficient=value_coefficient,
        step_of=step_of,
    )
    right = credit_pieces.correct_rows(batch, above=0.0) if correct is None else correct
    imitated = credit_pieces.rows_only(batch.mask, right)
    nll_weight = aggregate.token_mean(imitated, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        nll = -methods._weighted_sum(nll_weight, lambda n, t: logp[n, t])
        return base.loss(logp, value, entropy, detached_logp=detached_logp) + positive_nll * nll

    return Oracle(credit=base.credit, loss=loss, weight=base.weight, returns=base.returns)


def _decoupled(
    batch: Batch,
    policy_lam: np.ndarray,
    *,
    critic_lam: float,
    gamma: float,
    beta: float,
    clip: tuple[float, float],
    whiten: bool,
    value_clip: float | None,
    value_coefficient: float,
    step_of: np.ndarray | None,
) -> Oracle:
    """Token-mean PPO with a lambda per row `[N]` for the credit and one for the targets."""
    advantage, returns = credit_pieces.decoupled_gae(
        batch,
        pieces.kl_in_reward(batch, beta),
        gamma=gamma,
        policy_lam=policy_lam,
        critic_lam=critic_lam,
    )
    credit = pieces.whiten_tokens(batch, advantage) if whiten else advantage
    weight = aggregate.token_mean(batch.mask, step_of=step_of)
    policy: Callable[..., float] = methods._clip_loss(batch, credit, weight, clip)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        critic = methods._value_loss(batch, weight, returns, value, value_clip)
        return policy(logp) + value_coefficient * critic

    return Oracle(credit=credit, loss=loss, weight=weight, returns=returns)
