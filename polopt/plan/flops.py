"""Floating point operations of a training step, counted from the model's shape.

A product and a sum are two. Only matrix products are counted, which are nearly all; positions are
counted as the programs compute them: prompts once per group, rows padded to their room, masked
scores included. XLA's own analysis counts the body of a loop once.

Letters as in `polopt.models.attention`: `D` hidden size, `H` query heads, `K` key heads, `d` head
size, `V` vocabulary, `S` tokens of a prompt, `C` of a completion.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from polopt.algorithm import coupling
from polopt.models import LanguageModel, ValueModel
from polopt.models.config import DecoderConfig
from polopt.models.layout import Room
from polopt.models.lora import LoraModel, pairs
from polopt.plan.job import Job
from polopt.train.micro_batches import in_layouts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
    """Of all devices together, in one training step.

    Attributes:
      prefill, decode: sampling, when every row writes as much as it may.
      scoring: recorded columns.
      update: all optimiser steps.
    """

    prefill: float
    decode: float
    scoring: float
    update: float

    @property
    def total(self) -> float:
        """Of the whole step."""
        return self.prefill + self.decode + self.scoring + self.update


def count(job: Job, micro_batch: int | None, devices: int) -> Flops:
    """Operations of a training step.

    Args:
      job: what is computed.
      micro_batch: rows of a device per pass; None for all.
      devices: that rows are dealt to.
    """
    micro, width = job.split(micro_batch, devices)
    policy = _Model.of(job.policy, job)
    prompts, rows, S, C = job.prompts, job.rows, job.prompt, job.completion
    after = rows * (C - 1)  # tokens that are read: the first is drawn from the prompt's state
    scoring = 0.0
    if job.roles.columns:
        names = job.roles.scoring()
        work = _work(job, rows, micro, names)
        scoring = sum(model.forward(work) for model in _models(job, names).values())
    return Flops(
        prefill=policy.layers(prompts * S, prompts * S * S),
        decode=policy.layers(after, after * (S + C)) + policy.token * rows * C,
        scoring=scoring,
        update=_optimiser_step(job, width, micro) * job.optimiser_steps,
    )


def _optimiser_step(job: Job, rows: int, micro: int) -> float:
    names = job.roles.update
    work, models = _work(job, rows, micro, names), _models(job, names)
    # The cotangent form computes all outputs first.
    ahead = coupling(job.alg) in ("group", "batch")
    total = 0.0
    for name, model in models.items():
        forward = model.forward(work)
        back = model.backward(work, job.config.remat) if name in job.roles.trained else 0.0
        total += (2 if ahead else 1) * forward + back
    return total


@dataclasses.dataclass(frozen=True)
class _Work:
    """Positions of a forward pass, pairs of them in attention, and tokens that are scored."""

    positions: int
    pairs: int
    scored: int


def _work(job: Job, rows: int, micro: int, names: tuple[str, ...]) -> _Work:
    """What so many rows are, computed micro-batch by micro-batch by these models."""
    scored = rows * job.completion
    if in_layouts(job.roles.chosen(names)):
        return _in_layouts(job.room(micro), rows // micro, scored)
    T = job.prompt + job.completion
    return _Work(rows * T, rows * T * T, scored)


def _in_layouts(room: Room, splits: int, scored: int) -> _Work:
    prompts, bins = splits * room.prompts, splits * room.prompts * room.bins
    return _Work(
        positions=splits * room.positions,
        pairs=prompts * room.prompt**2 + bins * room.bin * (room.prompt + room.bin),
        scored=scored,
    )


@dataclasses.dataclass(frozen=True)
class _Model:
    """What one position, one pair of positions and one scored token cost in a forward pass."""

    linear: float  # products with weights of the layers
    down: float  # of these, with the last of each layer, whose result no gradient needs
    adapters: float  # products with adapters
    pair: float
    token: float  # the head

    @classmethod
    def of(cls, module: Any, job: Job) -> _Model:
        config: DecoderConfig = module.config
        attention = config.hidden_size * config.head_dim * 2
        attention *= config.num_heads + config.num_kv_heads
        dense = [layer for layer in range(config.num_layers) if not config.routed(layer)]
        mlps = len(dense) * 3 * config.hidden_size * config.mlp_size
        if config.experts is not None:
            each = config.hidden_size * (3 * config.experts.size * config.experts.chosen)
            each += config.hidden_size * config.experts.count  # the router
            mlps += (config.num_layers - len(dense)) * each
        lora = isinstance(module, LoraModel)
        head = 0 if isinstance(module, ValueModel) else config.vocab_size * config.hidden_size
        return cls(
            linear=2.0 * (config.num_layers * attention + mlps),
            down=2.0 * mlps / 3,
            adapters=2.0 * _adapters(job.params["adapters"]) if lora else 0.0,
            pair=4.0 * config.num_layers * config.num_heads * config.head_dim,
            token=2.0 * head,
        )

    @property
    def frozen(self) -> bool:
        """Whether only adapters have a gradient."""
        return self.adapters > 0

    def layers(self, positions: float, pairs: float) -> float:
        """Without the head."""
        return (self.linear + self.adapters) * positions + self.pair * pairs

    def forward(self, work: _Work) -> float:
        """A pass without gradient."""
        return self.layers(work.positions, work.pairs) + self.token * work.scored

    def backward(self, work: _Work, remat: bool) -> float:
        """What the gradient takes besides."""
        # Of states, and of weights that are trained.
        linear = (1 if self.frozen else 2) * self.linear + 2 * self.adapters
        # Scores again, then of weights, values, queries and keys: five products for two.
        attention = 2.5 * self.pair
        # Logits again, then of states and of the unembedding.
        head = (2 if self.frozen else 3) * self.token
        again = 0.0
        if remat:  # what attention gives is kept
            again = (self.linear - self.down + self.adapters) * work.positions
        return linear * work.positions + attention * work.pairs + head * work.scored + again


def _models(job: Job, names: tuple[str, ...]) -> dict[str, _Model]:
    """Those with layers: a partition's head is one vector."""
    return {
        name: _Model.of(module, job)
        for name, module in job.roles.chosen(names).items()
        if isinstance(module, LanguageModel | ValueModel)
    }


def _adapters(adapters: Any) -> int:
    return sum(a.size + b.size for _, (a, b) in pairs(adapters))
