"""``polopt eval``: accuracy on held-out problems with its interval, and pass@k."""

import json
import math
from collections.abc import Sequence

from polopt.cli.sample import Complete, backend, read_arguments
from polopt.errors import PoloptError
from polopt.train.config import SampleConfig
from polopt.train.intervals import pass_at_k, wilson
from polopt.train.sinks import SampleView

EXAMPLES = """\
  polopt eval                                     the base model
  polopt eval runs/grpo-chain_sum-0               a run, on what it trained on
  polopt eval runs/grpo-chain_sum-0 --task-args max_terms=5 --problems 1000
  polopt eval runs/grpo-chain_sum-0 --samples 16  pass@1, 2, 4, 8 and 16"""

_CUT = ("LENGTH", "TURN_LIMIT")


def run(argv: Sequence[str], complete: Complete | None = None) -> int:
    """Measure and print; `complete` is `polopt.train.evaluate.complete` unless given."""
    config = read_arguments(argv, SampleConfig(), "eval", EXAMPLES)
    result = measure((complete or backend())(config))
    if config.json:
        print(json.dumps({"model": config.model, "task": config.data or config.task, **result}))
        return 0
    samples = int(result["samples"])
    asked = f"{result['problems']} problems" + (f", {samples} samples each" if samples > 1 else "")
    print(f"{config.model} on {config.data or config.task}: {asked}")
    print(
        f"accuracy   {100 * result['accuracy']:.1f} %  (95 % interval "
        f"{100 * result['low']:.1f} to {100 * result['high']:.1f})"
    )
    print(f"truncated  {100 * result['truncated']:.1f} %")
    for key, value in result.items():
        if key.startswith("pass@") and key != "pass@1":
            print(f"{key:<11}{100 * value:.1f} %")
    return 0


def measure(problems: Sequence[Sequence[SampleView]]) -> dict[str, float]:
    """Reduce completions, problem by problem, to accuracy, interval, truncation and pass@k.

    The interval counts problems, not samples: it is on the safe side when there are several.
    """
    counts = {len(problem) for problem in problems}
    if len(counts) != 1 or 0 in counts:
        raise PoloptError("every problem needs the same number of samples, at least one")
    if any(view.correct is None for problem in problems for view in problem):
        raise PoloptError(
            "accuracy needs a verdict on every completion, and this reward gives "
            "none: use polopt sample to read the completions"
        )
    samples = counts.pop()
    correct = [sum(bool(view.correct) for view in problem) for problem in problems]
    total = len(problems)
    low, high = wilson(sum(correct) / samples, total)
    cut = sum(view.stop in _CUT for problem in problems for view in problem)
    result = {
        "problems": total,
        "samples": samples,
        "accuracy": sum(correct) / samples / total,
        "low": low,
        "high": high,
        "truncated": cut / samples / total,
    }
    ks = [2**i for i in range(int(math.log2(samples)) + 1)]
    return result | {f"pass@{k}": pass_at_k(correct, samples, k) for k in ks}
