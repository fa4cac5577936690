"""Processes of a run as threads: what they tell one another is pickled, as between real ones."""

import dataclasses
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

from polopt.processes import Processes

WAIT = 30  # seconds for the others


@dataclasses.dataclass(frozen=True)
class Member(Processes):
    """One of a crowd."""

    said: list = dataclasses.field(default_factory=list, repr=False)
    meeting: threading.Barrier | None = None

    def gather(self, value):
        self.said[self.index] = pickle.dumps(value)
        self.meeting.wait(WAIT)
        heard = [pickle.loads(data) for data in self.said]
        self.meeting.wait(WAIT)
        return heard


def crowd(count, job):
    """What `job(processes)` returns, or raises, in each of so many processes."""
    said, meeting = [None] * count, threading.Barrier(count)

    def work(index):
        try:
            return job(Member(index, count, said, meeting))
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))
