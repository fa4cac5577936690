"""A runtime that hangs, dies or computes wrongly is one finding, in bounded time."""

import json
import sys
import time

import jax
import numpy as np
import pytest

from polopt.doctor import devices, probe
from polopt.doctor.devices import Limits

SHORT = Limits(start=20, write=20, compile=20, collective=0.3)
CPU = {"kind": "cpu", "memory": None}
CHIP = {"kind": "TPU v5 lite", "memory": {"limit": 16_000_000_000, "used": 2_000_000_000}}
SEEN = {
    "platform": "tpu",
    "attention": "splash",
    "devices": [CHIP] * 4,
    "processes": 1,
    "all_devices": 4,
}
GOOD = {
    "devices": SEEN,
    "write": {"bytes": 4_000_000, "seconds": 0.04},
    "compile": {},
    "collective": {"seconds": 0.0015, "wrong": []},
}
SLEEP = object()  # instead of an answer

PROBE = """
import json, sys, time
answers = json.loads(sys.argv[1])
for line in sys.stdin:
    answer = answers[json.loads(line)[0]]
    if answer is None:
        time.sleep(60)
    if isinstance(answer, str):
        sys.exit(answer)
    print(json.dumps(answer), flush=True)
"""


def findings(tmp_path, limits=SHORT, **changes):
    """What the checks make of a child that gives these answers; its text is what it dies with."""
    told = {k: None if v is SLEEP else v for k, v in {**GOOD, **changes}.items()}
    command = (sys.executable, "-S", "-c", PROBE, json.dumps(told))
    found = list(devices.check(str(tmp_path), limits, command))
    assert list(tmp_path.iterdir()) == []
    return {finding.name: finding for finding in found}


def test_a_good_machine(tmp_path):
    found = findings(tmp_path)
    assert {name: (f.mark, f.found) for name, f in found.items()} == {
        "devices": ("ok", "tpu: 4 × TPU v5 lite; attention by splash"),
        "device memory": ("ok", "16.0 GB each, at most 2.0 GB in use"),
        "run folder": ("ok", f"{tmp_path}: a checkpoint written, verified and read at 100 MB/s"),
        "collective": ("ok", "right sum over 4 devices in 1.5 ms"),
    }
    assert not any(finding.advice for finding in found.values())


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"devices": "TPU is in use by pid 7"}, "devices", "exited with 1: TPU is in use by pid 7"),
        ({"write": {"error": "No space left"}}, "run folder", "No space left"),
        ({"write": "gone"}, "run folder", "no checkpoint could be written"),
        ({"collective": SLEEP}, "collective", "sum over 4 devices: it took longer than 0.3 s"),
        ({"compile": "no NCCL"}, "collective", "no NCCL"),
        (
            {"collective": {"seconds": 0, "wrong": ["TPU_2"]}},
            "collective",
            "wrong sum over 4 devices on TPU_2",
        ),
    ],
)
def test_a_fault_is_one_finding_that_says_what_to_do(tmp_path, changes, name, words):
    found = findings(tmp_path, **changes)
    assert found[name].mark == "fail"
    assert words in found[name].found
    assert found[name].advice
    assert "\n" not in found[name].found
    others = {n for n, f in found.items() if f.mark == "fail"} - {name}
    assert others <= ({"collective"} if changes.get("write") == "gone" else set())


def test_devices_that_do_not_answer_are_given_up(tmp_path):
    start = time.monotonic()
    found = findings(tmp_path, Limits(start=0.5), devices=SLEEP)
    assert time.monotonic() - start < 10
    assert list(found) == ["devices", "run folder"]
    assert "no answer from jax: it took longer than 0.5 s" in found["devices"].found
    assert found["run folder"].mark == "warn"


@pytest.mark.parametrize("helper", ["tpu_chips", "has_nvidia"])
def test_an_accelerator_that_jax_does_not_use_is_named(tmp_path, monkeypatch, helper):
    cpu = {**SEEN, "platform": "cpu", "devices": [CPU]}
    assert findings(tmp_path, devices=cpu)["devices"].mark == "ok"
    monkeypatch.setattr(devices, helper, lambda: 1)
    finding = findings(tmp_path, devices=cpu)["devices"]
    assert finding.mark == "warn"
    assert finding.advice.startswith("pip install")


def test_a_slow_disk_is_a_warning(tmp_path):
    found = findings(tmp_path, write={"bytes": 4_000_000, "seconds": 2.0})["run folder"]
    assert (found.mark, "2 MB/s" in found.found) == ("warn", True)


def test_the_child_sums_and_writes(tmp_path, monkeypatch):
    assert probe.devices()["devices"] == [CPU] * 8
    assert probe.compiled() == {}
    assert probe.collective()["wrong"] == []
    assert probe.write(str(tmp_path))["bytes"] == 4 << 20
    (tmp_path / "file").write_text("")
    assert "error" in probe.write(str(tmp_path / "file"))
    right = probe.summing()

    def broken(numbers):
        return np.asarray(right(numbers)).reshape(8, -1) + (np.arange(8) == 3)[:, None]

    monkeypatch.setattr(probe, "summing", lambda: broken)
    assert probe.collective()["wrong"] == [str(jax.local_devices()[3])]
