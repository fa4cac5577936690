"""``polopt train`` on the toy world of the tests, with a reward that takes its time.

The reward keeps its value, so the run is the same run, and a signal finds it inside a step.
"""

import sys
import time

from train import toy

from polopt.cli.train import run
from polopt.train.loop import train


def slow_reward(completion, example):
    time.sleep(0.1)
    return toy.reward(completion, example)


def loop(config, *, algorithm, sinks):
    return train(
        config,
        algorithm=toy.remembering(),
        policy=toy.policy(),
        task=toy.task(reward=slow_reward),
        sinks=sinks,
    )


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], loop=loop))
