"""A fleet on a Ray cluster of three nodes: one is killed, the fleet is interrupted and continued; nothing is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from attnbench.measure.engines.ray import LOOPBACK_ALONE
from tests.fleet.fleets import ended, environment, figures, kept, started, stored, units, until

SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""A node that answers no more is taken for lost after two seconds."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(RAY_USAGE_STATS_ENABLED="0", **LOOPBACK_ALONE).items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "num_gpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20}
        made = Cluster(True, False, {**node, "include_dashboard": False, "_system_config": SOON})
        for _ in range(2):
            made.add_node(**node)
        yield made
        made.shutdown()


def below(pid: int, fact: str) -> list[psutil.Process]:
    """The processes below one, with a fact of psutil's; without those that have ended meanwhile."""
    pids = {process.pid for process in psutil.Process(pid).children(recursive=True)}
    return [process for process in psutil.process_iter([fact]) if process.pid in pids and process.info[fact]]


def measuring(node: Any) -> list[psutil.Process]:
    """The shards that run below a node."""
    processes = below(node.all_processes["raylet"][0].process.pid, "cmdline")
    return [process for process in processes if process.info["cmdline"][1:4] == ["-m", "attnbench", "run"]]


def test_a_node_is_killed_and_nothing_is_lost(cluster: Any, suite: Path, whole: Path, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    words = ("--on", "ray", "--address", cluster.address, "--devices", "2", "--option", "num_gpus=1")
    first = started("fleet", suite, *words, "--device", "cpu", "--shards", "3", "--out", fleet)
    nodes = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]
    node, (lost, *_) = until(lambda: next(((n, m) for n in nodes if (m := measuring(n))), None), first)
    assert sum(len(measuring(each)) for each in cluster.list_all_nodes()) <= 2
    cluster.remove_node(node, allow_graceful=False)
    until(lambda: list(fleet.glob("shards/*.ended")), first)
    first.send_signal(signal.SIGINT)
    code, out, err = ended(first)
    assert code == 130, err
    assert out.splitlines()[-1] == str(fleet)
    assert "raylet" not in out  # stdout holds results alone
    lines = [line for line in err.splitlines() if "(raylet)" in line]
    assert 0 < len(lines) < 5, err
    assert all(line.startswith("ray: (raylet)") and len(line) < 210 for line in lines), err
    assert f"attnbench fleet --on ray --resume {fleet}" in err
    assert not lost.is_running()  # it ended with its node

    before = stored(fleet)
    done = {path: path.stat().st_mtime_ns for path in fleet.glob("shards/*.ended")}
    assert 0 < len(done) < 3
    code, out, err = ended(started("fleet", *words, "--resume", fleet))
    assert code == 0, err
    assert kept(before)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert figures(fleet) == figures(whole)
    assert units(fleet) == units(whole)


def test_services_listen_on_the_loopback_interface_alone(cluster: Any) -> None:
    listening = [
        connection.laddr.ip
        for process in below(os.getpid(), "net_connections")
        for connection in process.info["net_connections"]
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 3
    assert {address for address in listening if not address.removeprefix("::ffff:").startswith("127.")} == set()
