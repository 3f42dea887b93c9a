"""What is recorded of a machine, and that nothing in it tells whose it is."""

from __future__ import annotations

import getpass
import json
import os
import platform
from pathlib import Path

import pytest

from attnbench.measure.machine import environment, host


def test_what_numbers_depend_on_is_there() -> None:
    found = environment.collect("cpu")
    for name in ("cpu", "instruction_set", "threads", "torch", "python", "affinity", "governor", "load", "cgroup_cpus"):
        assert name in found
    assert found["packages"]["torch"].startswith(found["torch"].split("+")[0])
    json.dumps(found, allow_nan=False)


def test_no_host_name_no_path_no_user() -> None:
    found = environment.collect("cpu")
    text = json.dumps(found)
    assert not any(str(value).startswith("/") for value in found.values())
    for private in {platform.node(), os.path.expanduser("~"), str(Path.cwd())} - {""}:
        assert private not in text or len(private) < 3
    assert len(getpass.getuser()) < 4 or getpass.getuser() not in text


def test_usable_cores_heed_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "affinity", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(host, "cgroup_cpus", lambda: 1.5)
    assert host.usable_cores() == 1
    monkeypatch.setattr(host, "cgroup_cpus", lambda: None)
    assert host.usable_cores() == 4


@pytest.mark.parametrize(
    ("name", "text", "cpus"),
    [("cpu.max", "150000 100000", 1.5), ("cpu.max", "max 100000", None), ("cpu.max", "", None)],
)
def test_control_group_quotas_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, text: str, cpus: float | None
) -> None:
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(host, "_cgroups", lambda: [tmp_path])
    assert host.cgroup_cpus() == cpus


def test_control_group_memory_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "_cgroups", lambda: [tmp_path])
    (tmp_path / "memory.max").write_text("max")
    assert host.cgroup_memory_bytes() is None
    (tmp_path / "memory.max").write_text(str(2**20))
    assert host.cgroup_memory_bytes() == 2**20
    assert host.memory_available_bytes() == 2**20


@pytest.mark.parametrize(
    ("limit", "use", "cache"),
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_what_others_in_the_control_group_hold_is_not_available(
    limit: str, use: str, cache: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "_cgroups", lambda: [tmp_path / "absent", tmp_path])
    (tmp_path / limit).write_text(str(2**24))
    (tmp_path / use).write_text(str(2**23))
    assert host.memory_available_bytes() == 2**24 - 2**23
    (tmp_path / "memory.stat").write_text(f"anon 5\n{cache} {2**22}\n")
    assert host.memory_available_bytes() == 2**24 - 2**23 + 2**22
    assert host.cgroup_memory_bytes() == 2**24
    (tmp_path / use).write_text(str(2**25))
    assert host.memory_available_bytes() == 0
