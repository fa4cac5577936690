"""The child of `IsolatedReward`: reads samples, answers with scores, one JSON line each."""

from __future__ import annotations

import pickle
import resource
import signal
import struct
import sys
from typing import Any, BinaryIO

from polopt.child import private_streams, send
from polopt.errors import PoloptError
from polopt.tasks.load import load_function
from polopt.tasks.score import user_reward
from polopt.tasks.task import Abstained, Example, Reward

KEYWORDS = ("prompt", "completion", "answer", "metadata")
_GRACE = 2.0  # the parent kills first; the alarm is for a child whose parent is gone


def main(spec: str, seconds: float, memory_mb: int) -> None:
    """Serve the reward function `spec` on the standard streams until they close."""
    requests, replies = private_streams()
    if memory_mb:
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    try:
        reward = user_reward(load_function(spec, keywords=KEYWORDS), spec)
    except PoloptError as error:
        send(replies, {"error": str(error)})
        return
    send(replies, {"ready": True})
    while (request := _receive(requests)) is not None:
        completion, (prompt, answer, index, metadata) = request
        example = Example(prompt=prompt, answer=answer, index=index, metadata=metadata)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE)
        reply = _judged(reward, completion, example)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(replies, reply)


def _judged(reward: Reward, completion: str, example: Example) -> dict[str, Any]:
    try:
        result = reward(completion, example)
    except PoloptError as error:
        return {"error": str(error)}
    if isinstance(result, Abstained):
        return {"abstained": result.reason}
    return {"parts": result}


def _receive(requests: BinaryIO) -> Any:
    head = requests.read(8)
    if len(head) < 8:
        return None
    return pickle.loads(requests.read(struct.unpack("<Q", head)[0]))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
