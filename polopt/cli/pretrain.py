"""``polopt pretrain``: a base model from nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path

from polopt.cli.parse import parse
from polopt.errors import PoloptError
from polopt.train.config import PretrainConfig

EXAMPLES = """\
  polopt pretrain --out my_base --steps 1500
  polopt train --model my_base                    then improve it by reward
  polopt pretrain --out student --layers 2 --width 64 --steps 400
  polopt train --algorithm opd --model student --teacher runs/grpo-chain_sum-0"""

Pretrain = Callable[[PretrainConfig], Path]
"""From a configuration to the folder of the trained model."""


def run(argv: Sequence[str], pretrain: Pretrain | None = None) -> int:
    """Train by supervision; `pretrain` is `polopt.train.pretrain.pretrain` unless given."""
    config = parse(PretrainConfig, argv, command="pretrain", examples=EXAMPLES)
    if Path(config.out).exists():
        raise PoloptError(f"{config.out} exists already: choose another folder with --out")
    print(f"model  {(pretrain or _backend())(config)}")
    return 0


def _backend() -> Pretrain:
    from polopt.train.pretrain import pretrain

    return pretrain
