"""What the system says, read right: old packages, little memory, folders that cannot be written."""

import pytest

from polopt.doctor import host


@pytest.mark.parametrize(
    ("found", "mark", "words"),
    [
        ("0.10.2", "ok", "0.10.2"),
        ("0.12.0.1", "ok", "0.12.0.1"),
        ("0.9.9", "fail", "0.9.9, older than 0.10.2"),  # as text it is the larger
        (None, "fail", "not installed"),
    ],
)
def test_versions_are_compared_as_numbers(monkeypatch, found, mark, words):
    monkeypatch.setattr(host, "_version", lambda name: found)
    asked = ["jaxtyping>=9", "jax>=0.10.2", 'tyro>=1.0.17; extra == "run"']
    monkeypatch.setattr(host.metadata, "requires", lambda name: asked)
    finding = host._package("jax")
    assert (finding.mark, finding.found) == (mark, words)
    assert bool(finding.advice) == (mark == "fail")


@pytest.mark.parametrize(("chips", "mark"), [(0, "ok"), (4, "fail")])
def test_libtpu_is_missed_only_where_there_is_a_tpu(monkeypatch, chips, mark):
    monkeypatch.setattr(host, "_version", lambda name: None)
    monkeypatch.setattr(host, "tpu_chips", lambda: chips)
    assert host._libtpu().mark == mark


def test_a_container_has_its_own_memory(monkeypatch, tmp_path):
    meminfo, cap = tmp_path / "meminfo", tmp_path / "max"
    monkeypatch.setattr(host, "_MEMINFO", meminfo)
    monkeypatch.setattr(host, "_CGROUP", cap)
    assert host.memory().found.startswith("unknown")
    meminfo.write_text("MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n")
    assert (host.memory().mark, host.memory().found) == ("ok", "8.2 GB free of 16.4 GB")
    cap.write_text("max\n")
    assert host.memory().found == "8.2 GB free of 16.4 GB"
    cap.write_text("1000000000\n")
    assert (host.memory().mark, host.memory().found) == ("warn", "1.0 GB free of 1.0 GB")


def test_the_compile_cache_is_looked_at(monkeypatch, tmp_path):
    def finding(place):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(place))
        return host.compile_cache()

    (tmp_path / "cache" / "deep").mkdir(parents=True)
    (tmp_path / "cache" / "deep" / "program").write_bytes(bytes(2_500_000))
    assert finding(tmp_path / "cache").found == f"{tmp_path}/cache, 2.5 MB"
    assert finding(tmp_path / "not" / "yet").mark == "ok"
    assert finding(tmp_path / "cache/deep/program/sub").mark == "fail"
    assert finding("gs://bucket/cache").mark == "ok"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    assert (host.compile_cache().mark, host.compile_cache().found[:3]) == ("warn", "off")


def test_where_a_run_would_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    assert host.room_for(str(tmp_path / "a" / "b"))[0] == tmp_path
    place, finding = host.room_for(str(tmp_path / "file" / "b"))
    assert place is None
    assert finding.mark == "fail"
    assert "not a directory" in finding.found
    assert host.room_for("gs://bucket/run")[1].advice.startswith("mount the bucket")
    usage = host.shutil._ntuple_diskusage(10**12, 10**12 - 10**9, 10**9)
    monkeypatch.setattr(host.shutil, "disk_usage", lambda path: usage)
    place, finding = host.room_for(str(tmp_path))
    assert (place, finding.mark) == (tmp_path, "warn")
    assert "1.0 GB left" in finding.found
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
