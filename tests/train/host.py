"""``polopt train`` in the toy world, as a script: alone, or as one process of several.

Nothing that brings jax is imported before the loop runs: the parent of a worker has none.
"""

import sys

from polopt.cli.train import run
from polopt.errors import PoloptError


def loop(config, *, algorithm, sinks):
    from polopt.train.loop import train
    from train import toy

    return train(config, algorithm=algorithm, policy=toy.policy(), task=toy.task(), sinks=sinks)


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:], loop=loop, command=[sys.executable, __file__]))
    except PoloptError as error:  # as the command line does
        sys.exit(f"polopt: {error}")
