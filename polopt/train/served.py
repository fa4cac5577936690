"""The policy of a run, sampled by a server that holds a copy of its weights."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from polopt.errors import PoloptError
from polopt.rollout.collect import Collector
from polopt.rollout.dialects import Reported
from polopt.rollout.draw import Decoding
from polopt.rollout.lanes import Generated
from polopt.rollout.push import FolderPush
from polopt.rollout.server import ServerSampler, probe, seed_of
from polopt.rollout.wire import Server
from polopt.train.config import TrainConfig
from polopt.train.parallel import Parallel
from polopt.train.policy import Policy

KEY = "POLOPT_SERVER_KEY"  # the environment variable of the bearer token: configs are kept


class Served:
    """A sampler that is called as the compiled ones are, and draws through a server."""

    def __init__(self, sampler: ServerSampler, parallel: Parallel) -> None:
        """Take a sampler that is ready, and how the run's parameters are spread."""
        self._sampler, self._parallel = sampler, parallel
        self._pushed: int | None = None

    def __str__(self) -> str:
        return str(self._sampler.found)

    def ready(self, params: Any, version: int) -> int:
        """Give the server weights that it does not have yet; returns the version of those it has.

        Without a way to give it any that is 0: those that it was started with.
        """
        if self._pushed != version:
            self._sampler = self._sampler.pushed(self._parallel.single(params), version)
            self._pushed = version
        return self._sampler.version

    def __call__(
        self, params: Any, key: Any, prompts: Any, lengths: Any, ids: Any, offset: Any = None
    ) -> Generated:
        """What the server draws; `params` are those that `ready` was given."""
        sample = dataclasses.replace(self._sampler, seed=seed_of(key))
        return sample(prompts, lengths, ids, offset)


def serve(
    config: TrainConfig,
    policy: Policy,
    decoding: Decoding,
    collector: Collector,
    parallel: Parallel,
) -> Served:
    """The server that `config` names, asked whether it reports what it is said to.

    Raises:
      PoloptError: it cannot sample what the method needs, weights have no place to go, or the run
        has several processes.
      ServerError: no such server or model, or another log-probability than `server_reports` says.
    """
    assert config.server is not None
    if collector.shares.processes.count > 1:
        raise PoloptError("server: one process samples from it, so train in one process")
    mixture = collector.sampling.mixture
    if mixture and mixture.alpha:
        raise PoloptError("server: tokens of two models mixed are drawn here only")
    if collector.entropy:
        raise PoloptError("server: none tells the entropy of its draws, and the method branches on")
    reports = None if config.server_reports is None else Reported(config.server_reports)
    server = Server(url=config.server, api_key=os.environ.get(KEY))
    found, push = probe(server, config.server_model), None
    if config.server_push is not None:
        folder = Path(config.server_push)
        if folder.resolve() == Path(config.model).resolve():
            raise PoloptError(f"server_push: {folder} is the model to start from: export a copy")
        push = FolderPush(
            found=found,
            folder=folder,
            model=policy.model,
            tokenizer=policy.tokenizer,
            dtype=config.compute_dtype,
        )
    sampler = ServerSampler(
        found=found,
        decoding=decoding,
        max_new_tokens=collector.turn_tokens,
        vocab_size=policy.tokenizer.vocab_size,
        eos_ids=policy.tokenizer.eos_ids,
        stop_ids=collector.stop_ids,
        reports=reports,
        concurrency=config.server_concurrency,
        push=push,
    )
    sampler.verify()
    return Served(sampler, parallel)
