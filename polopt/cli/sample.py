"""``polopt sample``: completions of a model, to read."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from polopt.cli.parse import parse
from polopt.train.config import SampleConfig, read_config
from polopt.train.sinks import SampleView

EXAMPLES = """\
  polopt sample                                   what the base model answers
  polopt sample runs/grpo-chain_sum-0             what a trained model answers
  polopt sample runs/grpo-chain_sum-0 --samples 4 --temperature 0.7"""

Complete = Callable[[SampleConfig], Sequence[Sequence[SampleView]]]
"""From a configuration to the completions of each problem."""


def run(argv: Sequence[str], complete: Complete | None = None) -> int:
    """Print a few completions; `complete` is `polopt.train.evaluate.complete` unless given."""
    config = read_arguments(argv, SampleConfig(problems=3), "sample", EXAMPLES)
    views = [view for problem in (complete or backend())(config) for view in problem]
    if config.json:
        for view in views:
            print(json.dumps(dataclasses.asdict(view)))
        return 0
    from polopt.train.progress import mark
    from polopt.train.view import clean

    last = None
    for view in views:
        if view.prompt != last:
            print(f"prompt: {clean(view.prompt)}\nanswer: {clean(view.answer)}")
        last = view.prompt
        print(f"  {mark(view)} ({view.stop}): {clean(view.completion)}")
    return 0


def read_arguments(
    argv: Sequence[str], default: SampleConfig, command: str, examples: str
) -> SampleConfig:
    """Read the flags; for the folder of a run, what is not given is what the run trained on."""
    config = parse(
        SampleConfig, argv, command=command, examples=examples, default=default, positional="model"
    )
    if not (Path(config.model) / "config.json").is_file():
        return dataclasses.replace(
            config, max_new_tokens=config.max_new_tokens or 32, task=config.task or "chain_sum"
        )
    trained = read_config(config.model)
    if config.task is None and config.data is None:
        config = dataclasses.replace(
            config,
            task=trained.task,
            task_args=config.task_args or trained.task_args,
            data=None if config.task_args else trained.data,
            reward=config.reward or trained.reward,
        )
    return dataclasses.replace(
        config,
        task=config.task or trained.task,
        max_new_tokens=config.max_new_tokens or trained.max_new_tokens,
    )


def backend() -> Complete:
    """Import what samples; it brings jax."""
    from polopt.train.evaluate import complete

    return complete
