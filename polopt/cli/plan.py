"""``polopt plan``: whether a training step fits a TPU slice that is not here."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from polopt.cli.parse import parse
from polopt.cli.show import show
from polopt.cli.table import find_algorithm
from polopt.plan.config import PlanConfig

EXAMPLES = """\
  polopt plan --model llama3-8b --slice v5e-16 --algorithm gspo
  polopt plan --model llama3-8b --slice v5e-16 --remat --micro-batch 1
  polopt plan --model qwen2.5-0.5b --slice v5e-1 --lora-rank 16 --remat
  polopt plan --model llama3-70b --slice v5p-64 --mesh fsdp=8 tensor=4 --no-compile
  polopt plan --model base --slice cpu --json     what the CPU's compiler says

The compiler of TPUs comes with pip install "polopt[tpu]" and needs no TPU. A
model of billions of weights takes it minutes. Other options are those of
polopt train."""

_STYLES = (
    ("bold", r"\A.*$|^(GiB on a device|a training step  |sent by a device|would fit:).*"),
    ("green", r"^fits.*"),
    ("red", r"^does not fit.*|^  the .* refused .*"),
    ("dim", r"^(polopt train|estimate:) .*"),
)


def run(argv: Sequence[str]) -> int:
    """Print the plan; what it says is not an exit code, so that 1 means that there is none."""
    config = parse(PlanConfig, argv, command="plan", examples=EXAMPLES)
    if "jax" not in sys.modules:
        os.environ["JAX_PLATFORMS"] = "cpu"  # a TPU or GPU that is here is left alone
    method = find_algorithm(config.algorithm)
    from polopt.plan.planner import make_plan
    from polopt.plan.report import as_json, text

    plan = make_plan(config, method, _say)
    if config.picture is not None:
        from polopt.plan.picture import draw

        draw(plan, Path(config.picture))
    if config.json:
        print(json.dumps(as_json(plan), indent=2))
    else:
        show(text(plan), _STYLES)
    return 0


def _say(what: str) -> None:
    if sys.stderr.isatty():
        print(f"polopt: {what} ...", file=sys.stderr)
