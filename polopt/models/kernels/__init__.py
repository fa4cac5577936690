"""Which code computes attention: XLA's, or JAX's kernels for TPUs.

A handle says it by its field `attention`, and it never depends on where the handle is traced: a
program for a TPU may be compiled on a host without one.

- "xla": `polopt.models.attention`, everywhere.
- "splash": the kernels, where they cover a call; "xla" where they do not.
- "emulated": what "splash" computes, step by step on any platform; for tests, as it is slow.

The kernels cover the forward and backward pass of rows (training, scoring, reading prompts) of
`SHORTEST` positions or more, whatever the head size, the group of query heads, the window, the
soft cap and the type: shorter rows have few scores. They cover decoding if the head size is a
multiple of `LANES`, as the caches of other heads would be padded to it, and if a device decodes few
enough rows (`fits`).
"""

from __future__ import annotations

from polopt.errors import UsageError

XLA, SPLASH, EMULATED = KINDS = ("xla", "splash", "emulated")
AUTO = "auto"
LANES = 128
"""Numbers of a TPU's vector register."""
_MOST = 512  # heads of rows that the tables have room for
SHORTEST = 128
"""Positions from which on rows are computed by the kernels."""


def choose(asked: str, platform: str) -> str:
    """What computes attention on the devices of a run.

    Args:
      asked: "auto" for the kernels on TPUs and XLA elsewhere, "xla", or "splash".
      platform: of the devices: "tpu", "cpu", "gpu".

    Raises:
      UsageError: the kernels, and no TPU to run them.

    >>> choose("auto", "tpu"), choose("auto", "cpu"), choose("xla", "tpu")
    ('splash', 'xla', 'xla')
    """
    if asked == AUTO:
        return SPLASH if platform == "tpu" else XLA
    if asked == SPLASH and platform != "tpu":
        raise UsageError(
            f"attention: splash needs TPUs, and the devices are {platform}: give xla or auto "
            "(--attention)"
        )
    return asked


def covers_rows(kind: str, positions: int) -> bool:
    """Whether the kernels compute rows of so many positions."""
    return kind != XLA and positions >= SHORTEST


def covers_decoding(kind: str, head_dim: int) -> bool:
    """Whether the kernels compute decoding steps; caches are in whole blocks then."""
    return kind != XLA and head_dim % LANES == 0


def fits(rows: int, heads: int, length: int) -> bool:
    """Whether a device decodes so many rows, key heads and own tokens by the kernels.

    They are told which blocks to visit by tables in a TPU's scalar memory, of 1 MiB; a head of a
    row takes 1.5 KiB of it, as tables are padded to `LANES` blocks.

    >>> fits(64, 8, 2048), fits(128, 8, 2048), fits(128, 4, 2048)
    (True, False, True)
    """
    return rows * heads * -(-length // (LANES * LANES)) <= _MOST


def in_blocks(length: int) -> int:
    """The least length of whole blocks that holds so many positions.

    >>> in_blocks(128), in_blocks(129)
    (128, 256)
    """
    return -(-length // LANES) * LANES


def describe(kind: str, head_dim: int) -> str:
    """In words, for people: what computes attention, and which part of it.

    >>> describe("splash", 128)
    'splash for rows of 128 positions or more, and to decode up to 512 rows x key heads on a device'
    >>> describe("splash", 64)
    'splash for rows of 128 positions or more; xla decodes, as heads have 64 numbers'
    """
    if kind == XLA:
        return kind
    covered = f"{kind} for rows of {SHORTEST} positions or more"
    if head_dim % LANES:
        return f"{covered}; xla decodes, as heads have {head_dim} numbers"
    return f"{covered}, and to decode up to {_MOST} rows x key heads on a device"
