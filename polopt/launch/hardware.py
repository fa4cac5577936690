"""Which accelerators a machine has, asked of the system: jax may not be able to tell."""

from __future__ import annotations

from pathlib import Path

_GOOGLE = "0x1ae0"
# PCI ids of TPU v2 and v3, v4, v5p, v5e, v6e and 7x, as in jax/_src/hardware_utils.py.
_TPUS = frozenset(["0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"])


def tpu_chips(devices: Path = Path("/sys/bus/pci/devices")) -> int:
    """How many TPU chips are attached to this host."""
    ids = ((_word(d / "vendor"), _word(d / "device")) for d in devices.glob("*"))
    return sum(vendor == _GOOGLE and device in _TPUS for vendor, device in ids)


def has_nvidia() -> bool:
    """Whether this host has a GPU of NVIDIA's."""
    return any(Path(name).exists() for name in ("/dev/nvidia0", "/dev/nvidiactl"))


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
