"""The command ``polopt``: finds the command, and turns errors into one line and an exit code."""

import importlib
import os
import sys
import warnings
from collections.abc import Sequence

from polopt import __version__
from polopt.errors import PoloptError, UsageError, did_you_mean

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("polopt.cli.train", "train a model with a method on a task, and keep a record"),
    "sft": ("polopt.cli.sft", "fine-tune a model on conversations or a task's own solutions"),
    "eval": ("polopt.cli.evaluate", "measure accuracy on held-out problems, with its interval"),
    "sample": ("polopt.cli.sample", "look at completions of a model"),
    "chat": ("polopt.cli.chat", "talk to a model"),
    "methods": ("polopt.cli.methods", "list the methods that train takes"),
    "explain": ("polopt.cli.explain", "say what a method is made of, needs, costs and repairs"),
    "map": ("polopt.cli.map", "show every method by what it changes of REINFORCE"),
    "plan": ("polopt.cli.plan", "say whether a training step fits a TPU slice that is not here"),
    "pretrain": ("polopt.cli.pretrain", "train a base model from nothing, by supervision"),
    "export": ("polopt.cli.export", "write a model as a folder that other libraries load"),
    "doctor": ("polopt.cli.doctor", "say what of this machine a run would stumble over"),
}
"""Command -> (module with ``run(argv) -> exit code``, purpose)."""

_HELP = """usage: polopt [-h] [--version] COMMAND ...

LLM policy optimisation in JAX, written as the theory reads.

commands:
{commands}

examples:
  polopt train                                  GRPO, a small model, any machine
  polopt train --algorithm rloo --steps 200     another method
  polopt eval runs/grpo-chain_sum-0             what the trained model reaches
  polopt explain dapo --versus grpo             how two methods differ
  polopt train --help                           every setting

exit codes: 0 done, 1 failed, 2 not understood, 130 and 143 stopped on request
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` is without the program's name."""
    args = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return _dispatch(args)
        except UsageError as error:
            return _fail(str(error), 2)
        except PoloptError as error:
            return _fail(str(error), 1)
        except KeyboardInterrupt:
            return _fail("stopped", 130)
        except BrokenPipeError:
            # The reader (head, less) has left; what is still buffered has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        lines = [f"  {name:<10}{purpose}" for name, (_, purpose) in COMMANDS.items()]
        print(_HELP.format(commands="\n".join(lines)), end="")
        return 0
    if args[0] == "--version":
        print(f"polopt {__version__}")
        return 0
    if args[0] not in COMMANDS:
        hint = did_you_mean(args[0], COMMANDS) or "; polopt --help lists the commands"
        raise UsageError(f"no command {args[0]!r}{hint}")
    module = importlib.import_module(COMMANDS[args[0]][0])
    return module.run(args[1:])


def _fail(message: str, code: int) -> int:
    print("polopt: " + " ".join(message.split()), file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"polopt: warning: {message}", file=sys.stderr)
