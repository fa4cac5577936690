"""Weights on their way from the devices that learn to those that sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from polopt.train.parallel import Parallel


class Handover:
    """Parameters as samplers hold them: what has changed since the last time is copied over."""

    def __init__(self, training: Parallel, sampling: Parallel) -> None:
        """From one form to another; nothing is copied if they are the same."""
        self._training, self._sampling = training, sampling
        self._held: dict[str, tuple[Any, Any]] = {}  # by path: a leaf that was given, and its copy

    def __call__(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same parameters, placed for sampling, when they have arrived.

        Leaves that are the very arrays of the last call (a base under adapters, a teacher) are not
        copied again. The others may be donated as soon as this returns.
        """
        if self._sampling == self._training:
            return params
        leaves, tree = jax.tree_util.tree_flatten_with_path(params)
        given = {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}
        held = {n: pair for n, pair in self._held.items() if given.get(n, pair[0]) is pair[0]}
        new = {name: leaf for name, leaf in given.items() if name not in held}
        self._held = {}  # the old copies are free before there are new ones
        copies = jax.block_until_ready(self._sampling.place(self._training.single(new)))
        self._held = held | {name: (leaf, copies[name]) for name, leaf in new.items()}
        return jax.tree.unflatten(tree, [self._held[name][1] for name in given])
