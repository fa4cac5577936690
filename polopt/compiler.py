"""What we ask of XLA beyond its defaults."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax


def jit(fn: Callable, **how: Any) -> Callable:
    """`jax.jit(fn, **how)` under which what barriers hold apart stays apart; not inside another.

    The platform is asked for at the first call: an import must not choose it.
    """

    @functools.cache
    def compiled() -> Callable:
        return jax.jit(fn, compiler_options=kept_barriers(jax.default_backend()), **how)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return call


def kept_barriers(platform: str) -> dict[str, str]:
    """Compiler options of `jit`, for a platform that may be another one than the default.

    On the CPU XLA drops barriers before it looks for common work, and then keeps what was to be
    computed again, and computes in every place what was to be kept.
    """
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if platform == "cpu" else {}
