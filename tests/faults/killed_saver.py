"""Processes that save checkpoints without end, each killed some milliseconds into a save.

Arguments: a folder, and the delays. Folder `i` is left as the i-th process left it.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from polopt.train import checkpoint


def content(step):
    return {"w": np.full((300, 300), step, np.float32), "n": np.arange(step, step + 9)}


def save_without_end(folder):
    step = 0
    while True:
        step += 1
        checkpoint.save(folder, step, content(step), {"step": step})


def kill_while_saving(folder, delay):
    child = os.fork()
    if child == 0:
        save_without_end(folder)
    while not checkpoint.path_of(folder, 2).exists():
        time.sleep(0.001)
    while not any(folder.glob("*.partial")):
        pass
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


if __name__ == "__main__":
    for i, milliseconds in enumerate(sys.argv[2:]):
        kill_while_saving(Path(sys.argv[1], str(i)), float(milliseconds) / 1000)
