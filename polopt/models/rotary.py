"""Rotary positions and the stretchings of their frequencies."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polopt.models.config import DecoderConfig, RopeScaling

Rotation = tuple[Array, Array]  # cosine and sine of every angle, f32[B,T,1,d/2]


def rotations(config: DecoderConfig, positions: Array) -> list[Rotation]:
    """Cosines and sines of `positions i32[B,T]` for every layer; layers that turn alike share them.

    The pair (j, j + d/2) of a head turns by the angle `position * frequency[j]`: the half-split
    layout of Llama checkpoints, not the interleaved one of RoPE's paper (2104.09864, eq. 34).
    """
    kinds = [config.rotation_of(layer) for layer in range(config.num_layers)]
    made = {kind: _rotation(positions, config.head_dim, *kind) for kind in dict.fromkeys(kinds)}
    # Else the compiler computes them again at every use: for every head, in every layer.
    made = jax.lax.optimization_barrier(made)
    return [made[kind] for kind in kinds]


@jax.custom_vjp
def rotate(x: Array, rotation: Rotation) -> Array:
    """Turn `x [B,T,heads,d]`, in float32. Angles have no gradient."""
    cos, sin = rotation
    half = x.shape[-1] // 2
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def _turn(x: Array, rotation: Rotation) -> tuple[Array, Rotation]:
    return rotate(x, rotation), rotation


def _turn_back(rotation: Rotation, cotangent: Array) -> tuple[Array, None]:
    """The transpose of a rotation is the rotation back; JAX's own pads and adds the halves."""
    cos, sin = rotation
    return rotate(cotangent, (cos, -sin)), None


rotate.defvjp(_turn, _turn_back)


def _rotation(
    positions: Array, head_dim: int, theta: float, scaling: RopeScaling | None
) -> Rotation:
    frequency, factor = frequencies(head_dim, theta, scaling)
    angle = positions[:, :, None, None].astype(jnp.float32) * frequency[None, None, None]
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


@functools.lru_cache(maxsize=32)
def frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[np.ndarray, float]:
    """f32[d/2], and the factor of cosine and sine.

    Equations: RoPE 2104.09864, eq. 15; linear 2306.15595, eq. 4; yarn 2309.00071, eq. 20 to 25;
    llama3 as in Llama 3.1's own code, in no paper.
    """
    half = head_dim // 2
    plain = theta ** (-np.arange(half) / half)
    if scaling is None:
        return plain.astype(np.float32), 1.0
    stretched, factor = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}[scaling.kind](
        plain, theta, scaling
    )
    return stretched.astype(np.float32), factor


def _linear(plain: np.ndarray, theta: float, scaling: RopeScaling) -> tuple[np.ndarray, float]:
    return plain / scaling.factor, 1.0


def _llama3(plain: np.ndarray, theta: float, scaling: RopeScaling) -> tuple[np.ndarray, float]:
    turns = scaling.original_length * plain / (2 * math.pi)
    kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return kept * plain + (1 - kept) * plain / scaling.factor, 1.0


def _yarn(plain: np.ndarray, theta: float, scaling: RopeScaling) -> tuple[np.ndarray, float]:
    half = len(plain)

    def dimension(turns: float) -> float:
        """Where a frequency makes so many turns within the original length."""
        return half * math.log(scaling.original_length / (2 * math.pi * turns)) / math.log(theta)

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    high += 0.001 * (low == high)
    stretched = np.clip((np.arange(half) - low) / (high - low), 0, 1)
    factor = scaling.attention_factor
    factor = 0.1 * math.log(scaling.factor) + 1 if factor is None else factor
    return stretched * plain / scaling.factor + (1 - stretched) * plain, factor
