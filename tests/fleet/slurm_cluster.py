"""A Slurm of one node: munge, controller and node in a folder of their own, on the loopback interface alone."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "sinfo", "scancel")
START_S = 60.0

CONFIGURATION = """
ClusterName=attnbench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 Gres=gpu:2 State=UNKNOWN
PartitionName=p Nodes={host} Default=YES State=UP
"""
"""A requeued job waits until its old credential has expired: five seconds in place of two minutes."""


def path_of(program: str) -> str | None:
    """Where a program is; None: nowhere."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def missing() -> list[str]:
    """The programs that are not here."""
    return [program for program in PROGRAMS if path_of(program) is None]


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Yields the variables by which Slurm's commands find it. folder: empty."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    for name in ("card0", "card1"):
        (folder / name).touch()
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/card[0-1]\n")
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=host, ports=_free_ports(2), user=getpass.getuser(), folder=folder, cpus=os.cpu_count()
        )
    )
    variables = {"SLURM_CONF": str(configuration)}
    files = {name: f"--{option}={folder}/{name}" for name, option in MUNGE.items()}
    commands = {
        "munged.pid": ["munged", "--force", *files.values()],
        "slurmctld.pid": ["slurmctld", "-f", str(configuration)],
        "slurmd.pid": ["slurmd", "-f", str(configuration)],
    }
    try:
        for program, *words in commands.values():
            subprocess.run(
                [str(path_of(program)), *words], env={**os.environ, **variables}, check=True, timeout=START_S
            )
        _wait_for_node(variables, folder)
        yield variables
    finally:
        for name in reversed(commands):
            _stop(folder / name)


MUNGE = {
    "munge.key": "key-file",
    "munge.socket": "socket",
    "munged.pid": "pid-file",
    "munged.log": "log-file",
    "munge.seed": "seed-file",
}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_for_node(variables: dict[str, str], folder: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        command = ["sinfo", "--noheader", "--format=%t"]
        done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    logs = "\n".join(path.read_text(errors="replace") for path in folder.glob("*.log"))
    raise AssertionError(f"Slurm's node is not idle: {done.stdout} {done.stderr}\n{logs}")


def _stop(pid_file: Path) -> None:
    """Ends a service, and waits until it has ended."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            os.kill(pid, 0)
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
