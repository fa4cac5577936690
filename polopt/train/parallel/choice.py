"""The forms that a configuration asks for."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from polopt.errors import PoloptError, UsageError
from polopt.train.parallel.form import Parallel
from polopt.train.parallel.jit import Jit
from polopt.train.parallel.mesh import Sharded, make_mesh, read_sizes
from polopt.train.parallel.pmap import Pmap


def forms(
    kind: str,
    devices: int | None,
    mesh: Sequence[str] = (),
    sample_devices: int | None = None,
    sample_mesh: Sequence[str] = (),
) -> tuple[Parallel, Parallel]:
    """The form of training, and that of sampling; one for both unless something else is asked for.

    Args:
      kind, devices, mesh: as in `choose`; `devices` are those of both.
      sample_devices: of them, the last so many sample, and do nothing else.
      sample_mesh: sizes of the mesh of those that sample; all along "data" if not given.

    Raises:
      PoloptError: as `choose`, or there is no device left to learn.
    """
    if not (sample_devices or sample_mesh):
        one = choose(kind, devices, mesh)
        return one, one
    there = jax.local_devices()[: _count(devices, jax.local_device_count())]
    rest = len(there) - (sample_devices or 0)
    if rest < 1:
        raise PoloptError(
            f"sample_devices={sample_devices} leaves none of {len(there)} devices to learn: give "
            "fewer"
        )
    sizes = read_sizes(sample_mesh or ("data=-1",), "sample_mesh")
    where = there[rest:] if sample_devices else there
    return choose(kind, rest, mesh), Sharded(make_mesh(sizes, where, "sample_mesh"))


def choose(kind: str, devices: int | None, mesh: Sequence[str] = ()) -> Parallel:
    """The form of a run.

    Args:
      kind: "jit", "pmap", "mesh", or "auto": mesh if there are sizes of one, else jit on one device
        and pmap on several.
      devices: how many; None for all.
      mesh: sizes of its axes, as "fsdp=4"; all devices along "fsdp" if not given.

    Raises:
      PoloptError: more devices than there are, jit on several, or sizes that make no mesh of them.
    """
    if mesh and kind not in ("auto", "mesh"):
        raise UsageError(f"mesh: parallel={kind} has none: use mesh or auto")
    if kind == "mesh" or mesh:
        there = jax.devices()
        sizes = read_sizes(mesh or ("fsdp=-1",))
        return Sharded(make_mesh(sizes, there[: _count(devices, len(there))]))
    there = jax.local_device_count()
    count = _count(devices or (1 if kind == "jit" else None), there)
    if kind == "jit" and count > 1:
        raise PoloptError(f"parallel=jit runs on one device, not {count}: use pmap or auto")
    return Pmap(count) if kind == "pmap" or count > 1 else Jit()


def _count(devices: int | None, there: int) -> int:
    if devices and devices > there:
        raise PoloptError(f"devices={devices}, but this host has {there}")
    return devices or there
