"""Stopping on request: SIGINT and SIGTERM become a flag that the loop reads between phases."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}


@dataclass
class StopRequest:
    """True once a signal has asked to stop; `signal` is its name."""

    signal: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; the second one interrupts at once.

    The caller reads the request where stopping is safe, saves, and returns. Earlier handlers
    are restored on the way out. Signals reach only the main thread: in any other the request
    stays false.

        with stop_on_signals() as stop:
            while step < steps and not stop:
                ...
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def receive(number: int, frame: object) -> None:
        name = signal.Signals(number).name
        if request:
            raise KeyboardInterrupt if name == "SIGINT" else SystemExit(EXIT_CODES[name])
        request.signal = name
        # A signal may arrive while the main thread is writing, and streams refuse to nest.
        with suppress(RuntimeError):
            print(
                f"polopt: {name}: stopping at the next safe point; again: at once", file=sys.stderr
            )

    previous = {name: signal.signal(signal.Signals[name], receive) for name in EXIT_CODES}
    try:
        yield request
    finally:
        for name, handler in previous.items():
            signal.signal(signal.Signals[name], handler)
