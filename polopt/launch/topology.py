"""How many processes a run has and which one this is, from flags, the environment, or a cluster.

Flags win over the environment. Where neither speaks, a cluster that JAX itself knows (TPU slices,
Slurm, Open MPI) is recognised by what it puts into the environment, and JAX finds out the rest.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from polopt.errors import UsageError
from polopt.launch.hardware import tpu_chips

COORDINATOR = "JAX_COORDINATOR_ADDRESS"
COUNT = "JAX_NUM_PROCESSES"
INDEX = "JAX_PROCESS_ID"
START, LOST = "POLOPT_START_TIMEOUT", "POLOPT_LOST_TIMEOUT"

FLAGS = {
    "--coordinator": COORDINATOR,
    "--num-processes": COUNT,
    "--process-id": INDEX,
    "--start-timeout": START,
    "--lost-timeout": LOST,
}
"""Flag -> the environment variable that says the same."""

_METADATA = "http://{}/computeMetadata/v1/instance/attributes/worker-network-endpoints"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """The processes of one run. Without a coordinator JAX asks the cluster for all three."""

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    start_seconds: int = 300
    """How long to wait for the others at the start."""
    lost_seconds: int = 100
    """How long after its last sign of life a process is taken for lost."""

    @property
    def environment(self) -> dict[str, str]:
        """What tells a process that is started all of this."""
        values = self.coordinator, self.count, self.index, self.start_seconds, self.lost_seconds
        told = zip(FLAGS.values(), values, strict=True)
        return {name: str(value) for name, value in told if value is not None}

    def __str__(self) -> str:
        if self.index is None:
            return f"the process on {os.uname().nodename}"
        return f"process {self.index} of {self.count}"


def topology(environ: Mapping[str, str]) -> Topology | None:
    """The processes that an environment speaks of; None if this is the only one.

    Raises:
      UsageError: only a part is said, or something that cannot be.
    """
    limits = Topology(
        start_seconds=_whole(environ, START, 1) or Topology.start_seconds,
        lost_seconds=_whole(environ, LOST, 1) or Topology.lost_seconds,
    )
    coordinator = environ.get(COORDINATOR)
    count, index = _whole(environ, COUNT, 1), _whole(environ, INDEX, 0)
    if coordinator is None and count is None and index is None:
        return limits if _cluster_of_several(environ) else None
    if count == 1:
        return None
    for flag, value in (("--num-processes", count), ("--process-id", index)):
        if value is None:
            raise UsageError(f"several processes: {flag} is missing ({FLAGS[flag]})")
    assert count is not None
    assert index is not None
    if coordinator is None:
        raise UsageError(
            f"several processes: --coordinator is missing ({COORDINATOR}): the address of process "
            "0 and a free port there, as 10.0.0.2:8476"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--coordinator takes HOST:PORT, not {coordinator!r}")
    if index >= count:
        raise UsageError(f"--process-id {index}: the {count} processes are 0 to {count - 1}")
    return dataclasses.replace(limits, coordinator=coordinator, count=count, index=index)


def _whole(environ: Mapping[str, str], name: str, least: int) -> int | None:
    text = environ.get(name)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < least:
        flag = next(flag for flag, variable in FLAGS.items() if variable == name)
        raise UsageError(f"{flag} takes a whole number from {least} on, not {text!r}")
    return int(text)


def _cluster_of_several(environ: Mapping[str, str]) -> bool:
    """Whether a cluster that JAX knows says that it started several processes."""
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES"):
        if environ.get(name, "").isdecimal() and int(environ[name]) > 1:
            return True
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
        if name in environ:
            return "," in environ[name]
    return "TPU_SKIP_MDS_QUERY" not in environ and tpu_chips() > 0 and "," in _workers(environ)


def _workers(environ: Mapping[str, str]) -> str:
    """The workers of a TPU slice as Compute Engine's metadata server has them: comma-separated."""
    import urllib.request  # takes longer than everything else here

    host = environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(_METADATA.format(host), headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ""
