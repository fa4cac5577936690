"""``polopt sample``: completions of a model, to read."""

import dataclasses
import json
from collections.abc import Callable, Sequence

from polopt.cli.parse import parse
from polopt.train.config import SampleConfig
from polopt.train.sft_config import SftConfig, find_run
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
    trained = find_run(config.model)
    if trained is None:
        return dataclasses.replace(
            config, max_new_tokens=config.max_new_tokens or 32, task=config.task or "chain_sum"
        )
    if config.task is None and config.data is None:
        reward = None if isinstance(trained, SftConfig) else trained.reward
        config = dataclasses.replace(
            config,
            task=trained.task,
            task_args=config.task_args or trained.task_args,
            data=None if config.task_args else trained.data,
            reward=config.reward or reward,
        )
    return dataclasses.replace(
        config,
        task=config.task or trained.task,
        max_new_tokens=config.max_new_tokens or trained.max_new_tokens,
        system=trained.system if config.system is None else config.system,
    )


def backend() -> Complete:
    """Import what samples; it brings jax."""
    from polopt.train.evaluate import complete

    return complete
