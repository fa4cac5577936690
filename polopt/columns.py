"""Columns: what the chunked head can say of a token, as functions of a chunk of logits.

Letters: `C` rows of a chunk, `V` vocabulary, `K` values per token. `z` and `w` are logits
`f32[C,V]` of two models, `log p = z - logsumexp(z)`. Each built-in states its own gradient with
respect to the logits: it is one elementwise expression of them, which compilers write over the
logits themselves, where automatic differentiation keeps two or three more arrays of `[C,V]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polopt.errors import PoloptError


@dataclasses.dataclass(frozen=True)
class Column:
    """A named function of a chunk of logits; hashable, equal by value, hence never retraced.

    >>> margin = Column("margin", lambda logits, targets: logits["policy"].max(-1))
    >>> jsd(0.5, "teacher") == jsd(0.5, "teacher")
    True
    """

    name: str  # key in `PolicyOutputs.columns`
    # fn({model: f32[C,V]}, targets i32[C], *settings) -> pytree of [C, ...]. Logits are divided by
    # the row's temperature. Padding rows are all-zero logits whose result is dropped.
    fn: Callable[..., Any]
    models: tuple[str, ...] = ("policy",)  # the models whose logits `fn` reads
    settings: tuple[Any, ...] = ()  # hashable; further arguments of `fn`


def name_of(want: str | Column) -> str:
    """The key of a wanted column in `PolicyOutputs.columns`."""
    return want if isinstance(want, str) else want.name


class TopK(NamedTuple):
    """The k most likely tokens, most likely first."""

    logp: Array  # f32[..., k]
    token: Array  # i32[..., k]


def logp(model: str = "policy") -> Column:
    """log p(target), named `logp`, `logp_ref` for the reference, `logp_<model>` for others."""
    names = {"policy": "logp", "reference": "logp_ref"}
    return Column(names.get(model, f"logp_{model}"), _logp, (model,), (model,))


def entropy() -> Column:
    """The policy's H = -Σ p log p, in nats, in [0, log V]."""
    return Column("entropy", _entropy, settings=("policy",))


def sum_prob_sq() -> Column:
    """The policy's Σ p², the chance that two draws agree, in [1/V, 1]."""
    return Column("sum_prob_sq", _sum_prob_sq, settings=("policy",))


def top_k(k: int) -> Column:
    """The policy's k most likely tokens: a `TopK` of log-probabilities and ids, under `top_k`."""
    if k < 1:
        raise PoloptError(f"top_k: k is {k}; give an integer of 1 or more")
    return Column("top_k", _top_k, settings=("policy", k))


def sorted_prob(k: int) -> Column:
    """The policy's k largest probabilities, descending, `[..., k]`, named `sorted_prob`."""
    if k < 1:
        raise PoloptError(f"sorted_prob: k is {k}; give an integer of 1 or more")
    return Column("sorted_prob", _sorted_prob, settings=("policy", k))


def kl_full(to: str) -> Column:
    """KL(policy || to) over the whole vocabulary, named `kl_<to>`."""
    return Column(f"kl_{to}", _kl, ("policy", to), ("policy", to))


def jsd(beta: float, to: str) -> Column:
    """Generalised Jensen-Shannon divergence (arXiv 2306.13649, eq. 1), named `jsd_<to>`.

    With S the policy, Q the model `to` and M = (1-β) S + β Q, it is β KL(Q||M) + (1-β) KL(S||M).
    β = 0 is defined as the forward KL(Q||S) and β = 1 as the reverse KL(S||Q); the formula itself
    tends to 0 at both ends.

    Raises:
      PoloptError: `beta` outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise PoloptError(f"jsd: beta is {beta}; give a number in [0, 1]")
    name, models = f"jsd_{to}", ("policy", to)
    if beta == 0:
        return Column(name, _kl, models, (to, "policy"))
    if beta == 1:
        return Column(name, _kl, models, ("policy", to))
    return Column(name, _jsd, models, ("policy", to, float(beta)))


# Wanted names that no function of logits makes: a head of their own does, on these models.
HEADS = {"value": ("critic",), "log_z": ("policy", "partition")}


def models_of(want: str | Column) -> tuple[str, ...]:
    """The models that a wanted column reads.

    >>> models_of("logp_ref"), models_of(jsd(0.5, "teacher")), models_of("value")
    (('reference',), ('policy', 'teacher'), ('critic',))
    """
    if isinstance(want, str) and want in HEADS:
        return HEADS[want]
    return (by_name(want) if isinstance(want, str) else want).models


def by_name(want: str) -> Column:
    """The column that a plain string stands for."""
    plain = {
        "logp": logp(),
        "logp_ref": logp("reference"),
        "logp_teacher": logp("teacher"),
        "logp_prm": logp("prm"),
        "entropy": entropy(),
        "sum_prob_sq": sum_prob_sq(),
    }
    if want not in plain:
        accepted = ", ".join((*plain, *HEADS))
        raise PoloptError(f"score: no column is called {want!r}; give {accepted} or a Column")
    return plain[want]


Logits = Mapping[str, Array]


def _logp(logits: Logits, targets: Array, model: str) -> Array:
    return _target_logp(logits[model], targets)


def _entropy(logits: Logits, targets: Array, model: str) -> Array:
    return _shannon(logits[model])


def _sum_prob_sq(logits: Logits, targets: Array, model: str) -> Array:
    return _collision(logits[model])


def _top_k(logits: Logits, targets: Array, model: str, k: int) -> TopK:
    z = logits[model]
    if k > z.shape[-1]:
        raise PoloptError(f"top_k: k is {k}; the vocabulary has {z.shape[-1]} tokens")
    values, tokens = jax.lax.top_k(z, k)
    return TopK(values - _normaliser(z)[:, None], tokens)


def _sorted_prob(logits: Logits, targets: Array, model: str, k: int) -> Array:
    return jnp.exp(_top_k(logits, targets, model, k).logp)


def _kl(logits: Logits, targets: Array, first: str, second: str) -> Array:
    return _divergence(logits[first], logits[second])


def _jsd(logits: Logits, targets: Array, student: str, teacher: str, beta: float) -> Array:
    return _mixture_divergence(logits[student], logits[teacher], beta)


def _lse(z: Array) -> Array:
    """logsumexp as [C,1]."""
    return jax.nn.logsumexp(z, axis=-1, keepdims=True)


def _with_slope(value: Callable[..., Any], slope: Callable[..., Any], arrays: int = 1):
    """A function of `arrays` logits (and further arguments) with its gradient written out.

    `value(*arguments) -> (f [C], saved)`; `slope(saved, *arguments)` gives df/dlogits `[C,V]` of
    each of the logits.
    """

    @jax.custom_vjp
    def function(*arguments: Any) -> Array:
        return value(*arguments)[0]

    def forward(*arguments: Any) -> tuple[Array, Any]:
        out, saved = value(*arguments)
        return out, (saved, arguments)

    def backward(saved: Any, cotangent: Array) -> tuple[Any, ...]:
        saved, arguments = saved
        slopes = slope(saved, *arguments)
        rest = (None,) * (len(arguments) - arrays)
        return (*(cotangent[:, None] * change for change in slopes), *rest)

    function.defvjp(forward, backward)
    return function


def _normaliser_value(z: Array):
    lse = _lse(z)
    return lse[:, 0], lse


def _normaliser_slope(lse: Array, z: Array):
    return (jnp.exp(z - lse),)


def _target_value(z: Array, targets: Array):
    lse = _lse(z)
    return (jnp.take_along_axis(z, targets[:, None], axis=-1) - lse)[:, 0], lse


def _target_slope(lse: Array, z: Array, targets: Array):
    chosen = jnp.arange(z.shape[-1])[None, :] == targets[:, None]
    return (chosen.astype(z.dtype) - jnp.exp(z - lse),)


def _shannon_value(z: Array):
    lse = _lse(z)
    H = lse[:, 0] - jnp.sum(jnp.exp(z - lse) * z, axis=-1)
    return H, (lse, H)


def _shannon_slope(saved: tuple[Array, Array], z: Array):
    lse, H = saved
    return (-jnp.exp(z - lse) * (z - lse + H[:, None]),)


def _collision_value(z: Array):
    lse = _lse(z)
    S = jnp.sum(jnp.exp(2 * (z - lse)), axis=-1)
    return S, (lse, S)


def _collision_slope(saved: tuple[Array, Array], z: Array):
    lse, S = saved
    p = jnp.exp(z - lse)
    return (2 * p * (p - S[:, None]),)


def _divergence_value(z: Array, w: Array):
    lse, other = _lse(z), _lse(w)
    kl = jnp.sum(jnp.exp(z - lse) * ((z - lse) - (w - other)), axis=-1)
    return kl, (lse, other, kl)


def _divergence_slope(saved: tuple[Array, Array, Array], z: Array, w: Array):
    lse, other, kl = saved
    p = jnp.exp(z - lse)
    return p * ((z - lse) - (w - other) - kl[:, None]), jnp.exp(w - other) - p


def _log_mixture(s: Array, q: Array, beta: float) -> Array:
    return jnp.logaddexp(s + jnp.log1p(-beta), q + jnp.log(beta))


def _mixture_value(z: Array, w: Array, beta: float):
    lse, other = _lse(z), _lse(w)
    s, q = z - lse, w - other
    m = _log_mixture(s, q, beta)
    of_s, of_q = jnp.sum(jnp.exp(s) * (s - m), axis=-1), jnp.sum(jnp.exp(q) * (q - m), axis=-1)
    return beta * of_q + (1 - beta) * of_s, (lse, other, of_s, of_q)


def _mixture_slope(saved: tuple[Array, ...], z: Array, w: Array, beta: float):
    # d/dS of the sum is (1-β) log(S/M): the terms through M cancel, as they do for Q.
    lse, other, of_s, of_q = saved
    s, q = z - lse, w - other
    m = _log_mixture(s, q, beta)
    return (
        (1 - beta) * jnp.exp(s) * (s - m - of_s[:, None]),
        beta * jnp.exp(q) * (q - m - of_q[:, None]),
    )


_normaliser = _with_slope(_normaliser_value, _normaliser_slope)
_target_logp = _with_slope(_target_value, _target_slope)
_shannon = _with_slope(_shannon_value, _shannon_slope)
_collision = _with_slope(_collision_value, _collision_slope)
_divergence = _with_slope(_divergence_value, _divergence_slope, arrays=2)
_mixture_divergence = _with_slope(_mixture_value, _mixture_slope, arrays=2)
