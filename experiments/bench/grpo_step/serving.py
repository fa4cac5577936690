"""Workers: processes that hold one library each and do one thing on request. Standard library only.

A worker is a script that calls `serve`; the parent holds a `Worker`. Requests and answers are
lines of JSON. What the library prints goes to the worker's log.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable

CORES = 2


class Worker:
    """The parent's end of a worker.

    Args:
      python: interpreter of the worker's environment.
      script: next to this file.
      work: folder of the case, where files are exchanged.
      case: what to run, a `workload.Case` as a dict.
      cache: folder where JAX keeps compiled programs.
    """

    def __init__(
        self, python: str, script: str, work: pathlib.Path, case: dict, cache: pathlib.Path
    ) -> None:
        here = pathlib.Path(__file__).parent
        self.log = work / f"{pathlib.Path(script).stem}.log"
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(CORES),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache / pathlib.Path(script).stem),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[2])]),
        }
        self._process = subprocess.Popen(
            [python, str(here / script), str(work), json.dumps(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            env=environment,
            text=True,
        )

    def ask(self, do: str, **arguments: object) -> dict:
        """Do it, and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            end = self.log.read_text().strip().splitlines()[-1:]
            raise SystemExit(f"{self.log.stem} ended: {' '.join(end)}; all of it: {self.log}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def serve(make: Callable[[pathlib.Path, dict], dict[str, Callable[..., dict]]]) -> None:
    """Answer requests with the functions that `make(work, case)` returns, until there are none."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    functions = make(pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]))
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(functions[request.pop("do")](**request)) + "\n")
        answers.flush()


class Peak:
    """MB of resident memory: the most within the block, and of the process so far."""

    def __enter__(self) -> "Peak":
        self.process = _status("VmHWM")
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        return self

    def __exit__(self, *_: object) -> None:
        self.block = _status("VmHWM")
        self.process = max(self.process, self.block)


def _status(name: str) -> float:
    text = pathlib.Path("/proc/self/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", text)
    assert found
    return int(found.group(1)) / 1024


class Clock:
    """Seconds of named parts, by the wall and of all cores together."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._at = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        """What passed since the last lap belongs to `name`."""
        now = time.perf_counter(), time.process_time()
        self.wall[name] = self.wall.get(name, 0) + now[0] - self._at[0]
        self.cpu[name] = self.cpu.get(name, 0) + now[1] - self._at[1]
        self._at = now
