"""The forms that a configuration asks for."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from polopt.errors import PoloptError, UsageError
from polopt.processes import ALONE, Processes
from polopt.train.parallel.form import Parallel
from polopt.train.parallel.jit import Jit
from polopt.train.parallel.mesh import Sharded, make_mesh, read_sizes
from polopt.train.parallel.pmap import Pmap, of_all


def forms(
    kind: str,
    devices: int | None,
    mesh: Sequence[str] = (),
    sample_devices: int | None = None,
    sample_mesh: Sequence[str] = (),
    processes: Processes = ALONE,
) -> tuple[Parallel, Parallel]:
    """The form of training, and that of sampling; one for both unless something else is asked for.

    Args:
      kind, devices, mesh: as in `choose`; `devices` are those of both.
      sample_devices: of them, the last so many sample, and do nothing else.
      sample_mesh: sizes of the mesh of those that sample; all along "data" if not given.
      processes: of the run.

    Raises:
      PoloptError: as `choose`, no device is left to learn, or several processes are to sample in
        another form than they learn.
    """
    if not (sample_devices or sample_mesh):
        one = choose(kind, devices, mesh, processes)
        return one, one
    if processes.count > 1:
        raise PoloptError("sample_devices and sample_mesh are for one process: leave them out")
    there = jax.local_devices()[: _count(devices)]
    rest = len(there) - (sample_devices or 0)
    if rest < 1:
        raise PoloptError(
            f"sample_devices={sample_devices} leaves none of {len(there)} devices to learn: give "
            "fewer"
        )
    sizes = read_sizes(sample_mesh or ("data=-1",), "sample_mesh")
    where = there[rest:] if sample_devices else there
    return choose(kind, rest, mesh), Sharded(make_mesh(sizes, where, "sample_mesh"))


def choose(
    kind: str, devices: int | None, mesh: Sequence[str] = (), processes: Processes = ALONE
) -> Parallel:
    """The form of a run.

    Args:
      kind: "jit", "pmap", "mesh", or "auto": mesh if there are sizes of one, else jit on one device
        and pmap on several.
      devices: how many of each process; None for all.
      mesh: sizes of its axes, as "fsdp=4"; all devices along "fsdp" if not given.
      processes: of the run.

    Raises:
      PoloptError: more devices than there are, jit on several, sizes that make no mesh of them, or
        processes with unequal devices.
    """
    if mesh and kind not in ("auto", "mesh"):
        raise UsageError(f"mesh: parallel={kind} has none: use mesh or auto")
    sizes = read_sizes(mesh or ("fsdp=-1",))
    each = _count(devices or (1 if kind == "jit" else None))
    processes.check_same(each, "processes need equally many devices")
    count = each * processes.count
    if kind == "jit" and count > 1:
        raise PoloptError(f"parallel=jit runs on one device, not {count}: use pmap or auto")
    if kind == "mesh" or mesh:
        return Sharded(make_mesh(sizes, of_all(each, processes)))
    return Pmap(each, processes) if kind == "pmap" or count > 1 else Jit()


def _count(devices: int | None) -> int:
    there = jax.local_device_count()
    if devices and devices > there:
        raise PoloptError(f"devices={devices}, but this host has {there}")
    return devices or there
