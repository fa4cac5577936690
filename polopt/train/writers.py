"""The compiled samplers of a run: the policy's own, and those that its sampling spec asks for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from polopt.models import MixedModel
from polopt.rollout.collect import Collector, Writers
from polopt.rollout.draw import Decoding
from polopt.rollout.engine import Engine
from polopt.train.parallel import Parallel
from polopt.train.policy import Policy
from polopt.train.rows import round_up
from polopt.train.served import Served
from polopt.train.setup import completer, drawing_of
from polopt.trajectory.sampling import Sampling

# (params, key, prompts [P,S], lengths [P], ids [P,G], offset [P,G] or nothing) -> Generated
Compiled = Callable[..., Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samplers:
    """Whoever may write in a run, without parameters."""

    sampling: Sampling
    policy: Compiled | Served  # rollouts and evaluation
    mixed: Compiled | None = None  # of (the policy's parameters, the other's)
    other: Compiled | None = None
    companion: Compiled | None = None

    @property
    def read(self) -> tuple[str, ...]:
        """Names of the models whose parameters `writers` needs."""
        mixture, spec = self.sampling.mixture, self.sampling.companion
        others = [mixture.policy] if mixture else []
        return tuple(dict.fromkeys(["policy", *others, *([spec.policy] if spec else [])]))

    def ready(self, params: Any, step: int) -> int:
        """See to it that the policy's weights are where it is sampled.

        Args:
          params: the policy's.
          step: training steps that made them.

        Returns:
          The version of those that will draw.
        """
        return self.policy.ready(params, step) if isinstance(self.policy, Served) else step

    def writers(self, params: Mapping[str, Any], key: Any, beside: Any, version: int) -> Writers:
        """Those of one rollout.

        Args:
          params: of the policy and of every other model that writes.
          key: of the batch's draws.
          beside: key of the companions'.
          version: of the policy's weights.
        """
        mixture, spec = self.sampling.mixture, self.sampling.companion
        policy = functools.partial(self.policy, params["policy"], key)
        other = companion = None
        if mixture and self.mixed:
            pair = params["policy"], params[mixture.policy]
            policy = functools.partial(self.mixed, pair, key)
        if mixture and self.other:
            other = functools.partial(self.other, params[mixture.policy], key)
        if spec and self.companion:
            companion = functools.partial(self.companion, params[spec.policy], beside)
        return Writers(policy=policy, other=other, companion=companion, version=version)


def make_samplers(
    policy: Policy,
    modules: Mapping[str, Any],
    decoding: Decoding,
    collector: Collector,
    parallel: Parallel,
    *,
    slots: int | None = None,
    large: bool = False,
    served: Served | None = None,
) -> Samplers:
    """The samplers that a run needs; nothing is compiled yet.

    Args:
      modules: static handles of the models that the method reads.
      decoding: how the batch is drawn, at a temperature that is a number.
      collector: whose task says how long a call may write.
      slots: rows that decode side by side; None for all.
      large: decoding takes so long that less work is worth more programs (`setup.packs`).
      served: the policy's sampler, where a server draws.
    """
    sampling = collector.sampling
    mixture, spec = sampling.mixture, sampling.companion

    def made(model: Any, how: Decoding = decoding) -> Compiled:
        drawing, room = drawing_of(policy, how, collector), collector.turn_tokens
        if parallel.axis is None and (slots or large):
            engine = Engine(model=model, drawing=drawing, max_new_tokens=room, lanes=slots)
            return _under(parallel, engine)
        here = parallel.local
        return _dealt(here.rows(completer(model, drawing, room), dealt=4), here.parts)

    mixed = other = companion = None
    if mixture and mixture.alpha:
        pair = policy.model, modules[mixture.policy]
        mixed = made(MixedModel(*pair, mixture.alpha, collector.temperature))
    if mixture and mixture.share:
        other = made(modules[mixture.policy])
    if spec:
        companion = made(modules[spec.policy], Decoding(greedy=True) if spec.greedy else decoding)
    return Samplers(
        sampling=sampling,
        policy=served or made(policy.model),
        mixed=mixed,
        other=other,
        companion=companion,
    )


def _under(parallel: Parallel, engine: Engine) -> Compiled:
    """An engine, whose programs know the devices."""

    def sample(*args: Any) -> Any:
        with parallel.ambient():
            return engine(*args)

    return sample


def _dealt(compiled: Callable[..., Any], parts: int) -> Compiled:
    """The same for any number of prompts: padded until the devices share them evenly."""

    def sample(
        params: Any, key: Any, prompts: Any, lengths: Any, ids: Any, offset: Any = None
    ) -> Any:
        P, offset = len(prompts), np.zeros_like(ids) if offset is None else offset
        room = round_up(P, parts)
        padded = [
            np.pad(x, ((0, room - P),) + ((0, 0),) * (x.ndim - 1))
            for x in (prompts, lengths, ids, offset)
        ]
        out = compiled(params, key, *padded)
        return jax.tree.map(lambda x: x[: P * ids.shape[1]], out)

    return sample
