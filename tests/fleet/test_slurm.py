"""A fleet on a Slurm of one node: interrupted, continued, a job killed and requeued; and nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fleet.fleets import ended, figures, kept, started, stored, units, until
from tests.fleet.slurm_cluster import slurm

WORDS = ("--on", "slurm", "--devices", "2", "--option", "gres=gpu:1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    # A socket's path has at most 107 characters, and the folders of tests have long names.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    with slurm(folder) as variables:
        yield variables
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(folder) in str(process.info["cmdline"])]
    shutil.rmtree(folder)


def output(variables: dict[str, str], *words: str) -> str:
    done = subprocess.run(words, env={**os.environ, **variables}, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_services_listen_on_the_loopback_interface_alone(cluster: dict[str, str]) -> None:
    places = [
        connection.laddr.ip
        for process in psutil.process_iter(["name", "net_connections"])
        if process.info["name"] in ("slurmctld", "slurmd")
        for connection in process.info["net_connections"]
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(places) == 2
    assert set(places) == {"127.0.0.1"}


def test_a_job_is_killed_requeued_and_resumed(
    cluster: dict[str, str], suite: Path, whole: Path, tmp_path: Path
) -> None:
    fleet = tmp_path / "fleet"
    first = started("fleet", suite, *WORDS, "--device", "cpu", "--shards", "2", "--out", fleet, **cluster)
    until(lambda: any(stored(fleet).values()), first)
    first.send_signal(signal.SIGINT)
    code, out, err = ended(first)
    assert code == 130, err
    assert out.splitlines()[-1] == str(fleet)
    assert f"attnbench fleet --on slurm --resume {fleet}" in err
    assert output(cluster, "squeue", "--noheader") == ""
    before = stored(fleet)
    assert any(before.values())

    again = started("fleet", *WORDS, "--resume", fleet, **cluster)
    until(lambda: output(cluster, "squeue", "--noheader", "--states=RUNNING"), again)
    job = (fleet / "slurm-jobs.txt").read_text().split()[-1]
    running = output(cluster, "squeue", "--noheader", "--array", "--states=RUNNING", "--format=%K").split()[0]
    output(cluster, "scontrol", "requeue", f"{job}_{running}")
    code, out, err = ended(again)
    assert code == 0, err
    print((fleet / "logs" / f"slurm-{running}.log").read_text())
    assert "DUE TO JOB REQUEUE" in (fleet / "logs" / f"slurm-{running}.log").read_text()
    assert kept(before)
    assert figures(fleet) == figures(whole)
    assert units(fleet) == units(whole)
