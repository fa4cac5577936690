"""The worker's side of `polopt.launch.supervise`."""

from __future__ import annotations

import os
import sys
import threading
from typing import NoReturn

_ORPHANED = 1  # exit code of a worker whose parent is gone


def end_with_parent() -> None:
    """End this process when its standard input closes: the parent that held it is gone."""

    def wait() -> None:
        # Not sys.stdin: a thread that holds its lock when the interpreter ends is a fatal error.
        while os.read(0, 1024):
            pass
        os._exit(_ORPHANED)

    threading.Thread(target=wait, daemon=True).start()


def keep_output() -> None:
    """Keep standard output for Python: what runtimes print goes where they log, to the parent."""
    out, old = os.dup(1), sys.stdout
    old.flush()
    os.dup2(2, 1)
    sys.stdout = os.fdopen(out, "w", encoding=old.encoding, errors=old.errors)
    sys.stdout.reconfigure(line_buffering=bool(old.line_buffering))


def leave(code: int) -> NoReturn:
    """End at once, without JAX's barrier for all processes: the others may never reach it.

    They notice within the time that `Topology.lost_seconds` gives them.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
