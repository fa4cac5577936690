"""The child of the doctor: asks jax what it sees and does, one JSON line for each question."""

from __future__ import annotations

import fcntl
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from polopt.child import private_streams, send
from polopt.errors import PoloptError
from polopt.models.kernels import AUTO, choose
from polopt.train import checkpoint

_WRITTEN = 1 << 20  # float32 numbers
_SUMMED = 1024  # numbers on each device


def main() -> None:
    """Answer until the questions end."""
    requests, replies = private_streams()
    answers = {
        "devices": devices,
        "write": write,
        "compile": compiled,
        "collective": collective,
    }
    for line in requests:
        question, *arguments = json.loads(line)
        send(replies, answers[question](*arguments))


def devices() -> dict[str, Any]:
    """What there is, and the memory of each local device."""
    return {
        "platform": jax.default_backend(),
        "attention": choose(AUTO, jax.default_backend()),
        "devices": [{"kind": d.device_kind, "memory": _memory(d)} for d in jax.local_devices()],
        "processes": jax.process_count(),
        "all_devices": jax.device_count(),
    }


def _memory(device: Any) -> dict[str, int] | None:
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return {"limit": stats["bytes_limit"], "used": stats.get("bytes_in_use", 0)}


def write(folder: str) -> dict[str, Any]:
    """Lock, write and read in a folder as a run does."""
    tree = {"w": np.random.default_rng(0).normal(size=_WRITTEN).astype(np.float32)}
    start = time.perf_counter()
    try:
        with open(Path(folder) / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        checkpoint.save(Path(folder), 0, tree, {})
        found = checkpoint.restore(Path(folder), tree)
    except OSError as error:
        return {"error": f"files cannot be locked: {error.strerror}"}
    except PoloptError as error:
        return {"error": str(error)}
    if found is None or not np.array_equal(found[1]["w"], tree["w"]):
        return {"error": "what was read is not what was written"}
    return {"bytes": tree["w"].nbytes, "seconds": time.perf_counter() - start}


@functools.cache
def summing() -> Any:
    """The compiled sum over all local devices of one array each."""
    mesh = Mesh(np.array(jax.local_devices()), ("all",))
    total = jax.shard_map(
        lambda x: jax.lax.psum(x, "all")[None],
        mesh=mesh,
        in_specs=PartitionSpec("all"),
        out_specs=PartitionSpec("all"),
    )
    return jax.jit(total).lower(_numbers()).compile()


def compiled() -> dict[str, Any]:
    """Compile the sum, which takes as long as it takes."""
    summing()
    return {}


def _numbers() -> np.ndarray:
    """f32[D * 1024]: i + 1 on device i."""
    return np.repeat(np.arange(1, jax.local_device_count() + 1, dtype=np.float32), _SUMMED)


def collective() -> dict[str, Any]:
    """Sum 1 to D over D devices, and name those that have another result."""
    D, start = jax.local_device_count(), time.perf_counter()
    out = np.asarray(summing()(_numbers())).reshape(D, -1)
    seconds = time.perf_counter() - start
    wrong = [i for i, row in enumerate(out) if (row != D * (D + 1) / 2).any()]
    return {"seconds": seconds, "wrong": [str(jax.local_devices()[i]) for i in wrong]}


if __name__ == "__main__":
    main()
