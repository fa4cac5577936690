"""``polopt train``: a run from the command line."""

import dataclasses
import functools
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from polopt.cli.parse import parse, take
from polopt.cli.processes import TOPOLOGY_HELP, read_topology, work
from polopt.cli.table import find_algorithm
from polopt.launch.roll_call import roll_call
from polopt.launch.supervise import is_worker, supervise
from polopt.launch.topology import Topology
from polopt.train.config import TrainConfig, read_config
from polopt.train.sinks import Sink, Summary
from polopt.train.stop import EXIT_CODES

EXAMPLES = (
    """\
  polopt train                                    GRPO on short sums
  polopt train --algorithm dapo --steps 200       another method, longer
  polopt train --algorithm mine.py:my_method      your own composition
  polopt train --set clip.low=0.1 kl_penalty.coefficient=0
  polopt train --task spell_backward --task-args max_word_len=5
  polopt train --data problems.jsonl --reward rewards.py:score
  polopt train --algorithm opd --model student --teacher runs/grpo-chain_sum-0
  polopt train --config runs/grpo-chain_sum-0 --seed 1     again, another seed
  polopt train --config runs/grpo-chain_sum-0 --resume     go on where it stopped

--config takes a run's folder or a config.json; other options replace its values.

"""
    + TOPOLOGY_HELP
)

COMMAND = (sys.executable, "-m", "polopt", "train")

Loop = Callable[..., Summary]


def run(argv: Sequence[str], loop: Loop | None = None, command: Sequence[str] = COMMAND) -> int:
    """Train, in this process or, where a run has several, in a worker of which it is the parent.

    Args:
      argv: without the command's name.
      loop: `polopt.train.loop.train` unless another one is given.
      command: that runs this function again, for a worker.
    """
    among, rest = read_topology(argv)
    config = read_arguments(rest)
    if is_worker(os.environ):
        job = functools.partial(_train, config, loop or _the_loop)
        return work(among or Topology(), job)
    if among is not None:
        if among.coordinator is not None:
            roll_call(among)
        return supervise([*command, *rest], among)
    return _train(config, loop or _the_loop)


def _train(config: TrainConfig, loop: Loop, first: bool = True) -> int:
    """Run the loop; only the first of several processes prints."""
    if first and sys.stderr.isatty() and not config.quiet:
        print("polopt: starting ...", file=sys.stderr)  # importing jax takes seconds
    sinks = make_sinks(config) if first else []
    try:
        algorithm = find_algorithm(config.algorithm)
        summary = loop(config, algorithm=algorithm, sinks=sinks)
    except KeyboardInterrupt:
        if first:
            print(stopped_line(config, None), file=sys.stderr)
        return EXIT_CODES["SIGINT"]
    finally:
        for sink in sinks:
            sink.close()
    if first and config.quiet:
        from polopt.train.view import verdict

        print(f"{verdict(summary)} ({summary.run})")
    if summary.stopped is not None:
        if first:
            print(stopped_line(config, summary.steps), file=sys.stderr)
        return EXIT_CODES[summary.stopped]
    return 0


def read_arguments(argv: Sequence[str]) -> TrainConfig:
    """Read the flags, on top of the configuration that ``--config`` names.

    A configuration taken from a run keeps its folder only to resume it: otherwise the new run
    gets a folder of its own.
    """
    source, rest = take(argv, "--config")
    default = None
    if source is not None:
        default = read_config(source)
        if "--resume" not in rest:
            default = dataclasses.replace(default, run=None)
    return parse(TrainConfig, rest, command="train", examples=EXAMPLES, default=default)


def make_sinks(config: TrainConfig) -> list[Sink]:
    """Return what a run on the command line shows; the plot comes before what names it."""
    sinks: list[Sink] = []
    if config.plot:
        from polopt.train.plots import PlotSink

        sinks.append(PlotSink())
    if not config.quiet:
        from polopt.train.progress import terminal_sink

        sinks.append(terminal_sink())
    return sinks


def stopped_line(config: TrainConfig, steps: int | None) -> str:
    """Say where a stopped run lies and how to go on with it."""
    if not (config.folder / "config.json").exists():
        return "polopt: stopped before the run began"
    when = "at once, after its last checkpoint" if steps is None else f"after step {steps}"
    command = f"polopt train --config {shlex.quote(str(config.folder))} --resume"
    return f"polopt: stopped {when}; the run is in {config.folder}; continue with: {command}"


def _the_loop(config: TrainConfig, **parts: Any) -> Summary:
    from polopt.train.loop import train  # brings jax

    return train(config, **parts)
