"""What is freed goes back to the system."""

import pathlib
import re

import pytest

from polopt import memory


def resident_mb():
    text = pathlib.Path("/proc/self/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found
    return int(found.group(1)) / 1024


@pytest.mark.skipif(memory._malloc_trim() is None, reason="another C library than glibc")
def test_what_is_freed_is_given_back():
    blocks = [bytearray(b"x") * 65536 for _ in range(1024)]  # 64 MB below the size that is mapped
    last = bytearray(b"x") * 65536  # lies behind them: the heap cannot shrink by itself
    full = resident_mb()
    del blocks
    kept = resident_mb()
    memory.give_back()
    assert len(last) == 65536
    assert full - resident_mb() > 40
    assert kept > full - 20  # or there is nothing to give back, and this test can go


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory, "_malloc_trim", lambda: None)
    memory.give_back()
