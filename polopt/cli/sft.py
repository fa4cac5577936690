"""``polopt sft``: supervised fine-tuning, as a warm start or for its own sake."""

import shlex
import sys
from collections.abc import Callable, Sequence

from polopt.cli.parse import parse
from polopt.train.sft_config import SftConfig
from polopt.train.sinks import Sink, Summary
from polopt.train.stop import EXIT_CODES

EXAMPLES = """\
  polopt sft --model smollm2-135m --task chain_sum --problems 500
  polopt eval runs/sft-chain_sum-0                what the warm start reaches
  polopt train --model runs/sft-chain_sum-0       then improve it by reward
  polopt sft --model smollm2-135m --data chats.jsonl --epochs 3
  polopt sft --model smollm2-135m --data chats.jsonl --lora-rank 16 \\
      --learning-rate 1e-3
  polopt sft --task chain_sum --run runs/sft-chain_sum-0 --resume

A line of --data is one of
  {"messages": [{"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello!"}]}
  {"prompt": "3 + 4 =", "completion": "7"}
  {"prompt": "3 + 4 =", "answer": "7"}            learned as <answer>7</answer>
and what assistants write is learned. Of a file of answers, a tenth is held out,
as polopt train and polopt eval hold it out."""

Sft = Callable[..., Summary]


def run(argv: Sequence[str], sft: Sft | None = None) -> int:
    """Fine-tune; `sft` is `polopt.train.sft.sft` unless another one is given."""
    config = parse(SftConfig, argv, command="sft", examples=EXAMPLES)
    if sys.stderr.isatty() and not config.quiet:
        print("polopt: starting ...", file=sys.stderr)  # importing jax takes seconds
    sinks = make_sinks(config)
    try:
        summary = (sft or _backend())(config, sinks=sinks)
    except KeyboardInterrupt:
        print(stopped_line(config, None), file=sys.stderr)
        return EXIT_CODES["SIGINT"]
    finally:
        for sink in sinks:
            sink.close()
    if config.quiet:
        print(closing_line(summary))
    if summary.stopped is not None:
        print(stopped_line(config, summary.steps), file=sys.stderr)
        return EXIT_CODES[summary.stopped]
    return 0


def make_sinks(config: SftConfig) -> list[Sink]:
    """Return what a run on the command line shows; the plot comes before what names it."""
    sinks: list[Sink] = []
    if config.plot:
        from polopt.train.plots import PlotSink, plot_losses

        sinks.append(PlotSink(draw=plot_losses))
    if not config.quiet:
        from polopt.train.sft_progress import LossProgress

        sinks.append(LossProgress())
    return sinks


def closing_line(summary: Summary) -> str:
    """Say what a run came to, in one line."""
    if summary.first is None or summary.last is None:
        return f"no step was taken ({summary.run})"
    first, last = (m["supervised/loss"] for m in (summary.first, summary.last))
    return f"loss {first:.3f} -> {last:.3f} nats per token ({summary.run})"


def stopped_line(config: SftConfig, steps: int | None) -> str:
    """Say where a stopped run lies and how to go on with it."""
    if not (config.folder / "config.json").exists():
        return "polopt: stopped before the run began"
    when = "at once, after its last checkpoint" if steps is None else f"after step {steps}"
    folder = shlex.quote(str(config.folder))
    return (
        f"polopt: stopped {when}; the run is in {folder}, usable as it is (--model {folder}); "
        f"continue with the same command and --resume"
    )


def _backend() -> Sft:
    from polopt.train.sft import sft

    return sft
