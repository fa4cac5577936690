"""Estimators of KL(π‖π_ref) from one sampled token: functions of `d = logp − logp_ref`.

Which one regularises depends on where it stands. As a *loss*, the expected on-policy gradient of
k1 is zero, of k2 the reverse KL's, of k3 the forward KL's. In the *reward*, k1 is unbiased and
k3 is not (2512.21852; Schulman, "Approximating KL divergence", 2020).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.numerics import safe_exp
from polopt.types import Array


def k1(d: Array) -> Array:
    """D: unbiased under π, of either sign.

    >>> float(k1(jnp.float32(0.5)))
    0.5
    """
    return d


def k2(d: Array) -> Array:
    """d²/2: biased by O(KL²), never negative.

    >>> float(k2(jnp.float32(2.0)))
    2.0
    """
    return d**2 / 2


def k3(d: Array) -> Array:
    """e^{−d} − 1 + d: unbiased under π, never negative.

    >>> float(k3(jnp.float32(0.0)))
    0.0
    """
    return safe_exp(-d) - 1 + d


def absolute(d: Array) -> Array:
    """|d|, with slope zero at zero: jax's own `abs` has slope one there.

    >>> float(absolute(jnp.float32(-2.0)))
    2.0
    """
    return jax.lax.stop_gradient(jnp.sign(d)) * d
