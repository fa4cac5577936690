"""Commands that may run in several processes: the flags that say so, and the worker's side."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence

from polopt.cli.parse import take
from polopt.errors import PoloptError, UsageError
from polopt.launch.supervise import lost
from polopt.launch.topology import FLAGS, Topology, topology
from polopt.launch.worker import end_with_parent, keep_output, leave
from polopt.train.stop import EXIT_CODES

TOPOLOGY_HELP = """\
several processes, the same command on every host (docs/launch.md):
  on TPU slices, under Slurm and Open MPI nothing needs to be said; elsewhere
  --coordinator HOST:PORT  where process 0 listens   (JAX_COORDINATOR_ADDRESS)
  --num-processes N        how many there are        (JAX_NUM_PROCESSES)
  --process-id I           which this one is, from 0 (JAX_PROCESS_ID)
  --start-timeout SECONDS  wait for the others at most so long (300)
  --lost-timeout SECONDS   end so long after another one was lost (100)"""


# What collectives (gloo, NCCL) and JAX's coordination service say of a process that is gone.
_BROKEN = re.compile(r"gloo|nccl|connection|socket|coordination|heartbeat|barrier", re.IGNORECASE)


def read_topology(argv: Sequence[str]) -> tuple[Topology | None, list[str]]:
    """The processes that flags, or else the environment, speak of; and the other arguments.

    Raises:
      UsageError: only a part is said, or something that cannot be.
    """
    told, rest = dict(os.environ), list(argv)
    for flag, name in FLAGS.items():
        value, rest = take(rest, flag)
        if value is not None:
            told[name] = value
    return topology(told), rest


def work(among: Topology, job: Callable[[bool], int]) -> int:
    """Join the other processes and do a job, whose argument says whether this one is the first.

    A process that fails leaves at once: the others may be waiting for it, and end when they miss
    it. Only those that end together end in order.
    """
    end_with_parent()
    keep_output()
    try:
        code = job(_join(among))
    except PoloptError as error:
        print("polopt: " + " ".join(str(error).split()), file=sys.stderr)
        leave(2 if isinstance(error, UsageError) else 1)
    except Exception as error:
        if (line := _lost(error, among)) is None:
            traceback.print_exc()
        else:
            print(line, file=sys.stderr)
        leave(1)
    if code not in (0, *EXIT_CODES.values()):
        leave(code)
    return code


def _join(among: Topology) -> bool:
    from polopt.processes import join  # brings jax

    return join(among).first


def _lost(error: Exception, among: Topology) -> str | None:
    """The line of a collective that failed because a process is gone; None of other errors."""
    import jax

    if not isinstance(error, jax.errors.JaxRuntimeError) or not _BROKEN.search(str(error)):
        return None
    return f"polopt: {among} {lost(str(error), among)}"
