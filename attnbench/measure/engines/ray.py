"""Ray: a task for each shard on a cluster, or on one that is started on this machine and ends with the fleet.

A node needs attnbench and nothing else of this machine: a task carries its suite there, and brings its run folder back.
Ray makes a task again on another node where the one it ran on is lost.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Container, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnbench import files, interrupts
from attnbench.errors import BadInput, described, printable
from attnbench.measure.engines import CONTINUED, Connection, News, Task
from attnbench.measure.machine import host
from attnbench.modules import installed
from attnbench.units import count, quoted, suggestion

LOST_NODES = 3
"""A shard is made again so often where its node is lost; one that takes a node with it each time fails in the end."""

SILENT_S = 30.0
"""A shard that has not reported for so long is not at work: its node is lost, or it has ended."""

TICK_S = 1.0
CONNECT_S = 5.0
STORE_BYTES = 2**28
"""Of Ray's own memory on this machine: what waits there are run folders of single shards."""

LOOPBACK = ("127.", "localhost:")
LOOPBACK_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""By this Ray takes this machine for 127.0.0.1, as it does elsewhere than on Linux, and listens there alone."""

ADDRESS_HELP = (
    "Give HOST:PORT of `ray start --head`, auto for the cluster of this machine, or no --address to start one"
)

OPTIONS = {"num_cpus": float, "num_gpus": float, "memory": float, "accelerator_type": str}
"""What a task may ask of a node, as Ray names it."""


@contextlib.contextmanager
def connect(request: Connection) -> Iterator[Pool]:
    """A Ray cluster. Raises BadInput where Ray is not installed, or no cluster answers."""
    if not installed("ray"):
        raise BadInput("--on ray: Ray is not installed. Install the extra: pip install 'attnbench[fleet]'.")
    options = _options(request.options)
    address = request.address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        _check_answers(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None or address.startswith(LOOPBACK):
        os.environ |= LOOPBACK_ALONE
    if address is None:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray

    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    with contextlib.ExitStack() as ending:
        ending.enter_context(contextlib.redirect_stdout(Messages(request.tell)))
        ending.callback(ray.shutdown)  # which prints too
        try:
            if address is None:
                ray.init(
                    address="local",
                    num_cpus=request.devices or host.usable_cores(),
                    include_dashboard=False,
                    object_store_memory=STORE_BYTES,
                    **quiet,
                )
            else:
                ray.init(address=address, **quiet)
        except Exception as error:  # Ray raises a plain Exception where a node is too busy to start
            raise BadInput(f"--address {address or 'local'}: {described(error).rstrip('.')}. {ADDRESS_HELP}.") from None
        interrupts.heed()  # Ray has handlers of its own for SIGTERM
        pool = Pool(request, options)
        _check_devices(request, address, pool)
        yield pool


COLOURS = re.compile(r"\x1b\[[0-9;]*m")
MOST_QUOTED = 200
"""Characters of what Ray says; on a lost node it goes on for pages."""


class Messages(io.TextIOBase):
    """Stands for stdout while Ray prints to it what befalls nodes and tasks: of each such text its first line is told.

    Args:
        tell: takes a sentence for the user.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def write(self, text: str) -> int:
        """Tells the first line of a text, without colours, cut where it is long."""
        line = COLOURS.sub("", text).strip().partition("\n")[0]
        if line:
            self._tell(f"ray: {printable(line, MOST_QUOTED)}")
        return len(text)


def _options(given: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name not in OPTIONS:
            raise BadInput(
                f"--option {name}={text}: ray has no such option{suggestion(name, OPTIONS)}; allowed: "
                f"{', '.join(OPTIONS)}."
            )
        try:
            values[name] = OPTIONS[name](text)
        except ValueError:
            raise BadInput(f"--option {name}={text}: {quoted(text)} is no number. Give one.") from None
    return values


def _check_answers(address: str) -> None:
    """Raises BadInput where nobody listens at an address: Ray itself would wait for minutes."""
    name, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    try:
        socket.create_connection((name, int(port)), CONNECT_S).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not HOST:PORT"
        raise BadInput(f"--address {address}: no Ray cluster answers there: {reason}. {ADDRESS_HELP}.") from None


def _check_devices(request: Connection, address: str | None, pool: Pool) -> None:
    """Says what is missing of the devices that are asked for. Raises BadInput where they will never come."""
    if request.accelerated and not pool.accelerated:
        if address is None:
            raise BadInput(
                "--on ray: this machine has no GPU that Ray knows. Give the --address of a cluster that has."
            )
        request.tell("no node has a GPU now: shards wait until the cluster adds one")
    if address is None and (request.devices or 0) > host.usable_cores():
        request.tell(
            f"warning: {request.devices} shards at once on {count(host.usable_cores(), 'core')}: they disturb each "
            "other's times"
        )


@dataclass(frozen=True)
class Pool:
    """See `engines.Pool`. options: of a task, as Ray takes them."""

    request: Connection
    options: Mapping[str, Any]
    most: None = None

    @property
    def accelerated(self) -> bool:
        """Whether a node has a GPU."""
        import ray

        return bool(ray.cluster_resources().get("GPU"))

    @property
    def at_once(self) -> int | None:
        """As many as it has processors, or GPUs, for now."""
        import ray

        every, asked = ray.cluster_resources(), {"CPU": self.options.get("num_cpus", 1)}
        if self.request.accelerated:
            asked["GPU"] = self.options.get("num_gpus", 1)
        return min((int(every.get(name, 0) // each) for name, each in asked.items() if each), default=None)

    def lease(self, tasks: Sequence[Task]) -> Generator[Sequence[News], None, None]:
        """See `engines.Pool`."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        desk = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(Desk).remote()
        waiting, running = deque(tasks), dict[Any, Task]()
        notes: dict[int, tuple[int, str, int]] = {}
        most = self.request.devices or len(tasks)
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    task = waiting.popleft()
                    running[self._begun(task, desk)] = task
                done, _ = ray.wait(list(running), num_returns=len(running), timeout=TICK_S)
                ended = [_gathered(ref, running.pop(ref)) for ref in done]
                notes = _notes(desk) or notes
                left = (notes[task.number] for task in running.values() if task.number in notes)
                yield [*ended, *(News(number, "running", node, units) for number, node, units in left)]
        finally:
            if running:
                _end(desk, running, _notes(desk) or notes)

    def _begun(self, task: Task, desk: Any) -> Any:
        """The reference of a task that is handed to Ray."""
        import ray

        from attnbench.measure.device import device_of

        asked = {"num_cpus": 1, "num_gpus": 0 if device_of(task.device).is_host else 1, **self.options}
        function = ray.remote(max_retries=LOST_NODES, **asked)(_measured)
        return function.remote(task, _files(task.suite.parent), _files(task.folder), desk)


class Desk:
    """Where tasks report, and hear whether they are to end. An actor on the node of who leases."""

    def __init__(self) -> None:
        self._notes: dict[int, tuple[int, str, int]] = {}
        self._noted: dict[int, float] = {}
        self._stopped = False

    def note(self, number: int, node: str, units: int) -> bool:
        """A shard is at work. Returns whether it is to end.

        Args:
            node: where.
            units: blocks of rounds that are measured.
        """
        self._notes[number], self._noted[number] = (number, node, units), time.monotonic()
        return self._stopped

    def all(self) -> dict[int, tuple[int, str, int]]:
        """By number, the last note of every shard that has reported lately."""
        since = time.monotonic() - SILENT_S
        return {number: note for number, note in self._notes.items() if self._noted[number] > since}

    def stop(self) -> None:
        """Every shard is to end."""
        self._stopped = True


def _measured(task: Task, inputs: Mapping[str, bytes], begun: Mapping[str, bytes], desk: Any) -> tuple[Any, ...]:
    """Measures a shard on the node where this is called.

    Args:
        inputs: the suite and what it names, by path beside it.
        begun: what was measured of the shard before, by path in its folder.

    Returns: the exit code, the run folder's files, what was printed, and whether these are of a run begun anew.
    """
    import ray

    from attnbench.measure import shard_process
    from attnbench.measure.fleet_folder import units_done
    from attnbench.measure.scratch import scratch_folder

    node = ray.get_runtime_context().get_node_id()
    with scratch_folder("shard") as top:
        _put(top / "inputs", inputs)
        _put(top / "run", begun)
        suite = top / "inputs" / task.suite.name
        here = replace(task, suite=suite, folder=top / "run", log=top / "log.txt")

        answer = desk.note.remote(task.number, node, 0).future()

        def stopped() -> bool:
            # Never waits: while a task waits for Ray, Ray gives its processor to another one.
            nonlocal answer
            if not answer.done():
                return False
            told = answer.exception() is None and answer.result()
            answer = desk.note.remote(task.number, node, units_done(here.folder)).future()
            return bool(told)

        code = shard_process.measure(here, stopped)
        anew = here.folder.with_name("run.aside-1").exists()
        return code, _files(here.folder), _files(top, "log.txt").get("log.txt", b""), anew


def _gathered(ref: Any, task: Task) -> News:
    """Stores what a task has brought back."""
    import ray

    from attnbench.measure.shard_process import MEASURED, set_aside
    from attnbench.store.records import FILES, VISITS

    try:
        code, content, printed, anew = ray.get(ref)
    except ray.exceptions.RayError as error:
        return News(task.number, "failed", reason=printable(described(error)))
    with files.going_on(task.folder, CONTINUED), task.log.open("ab") as log:
        log.write(printed)
        if anew and task.folder.is_dir():
            set_aside(task.folder)
    _put(task.folder, {name: content[name] for name in FILES if name in content})
    if code in MEASURED and VISITS in content:
        with files.going_on(task.folder, CONTINUED):
            files.replace(task.mark, f"{code}\n")
        return News(task.number, "ended", code=code)
    return News(task.number, "failed", code=code)


def _notes(desk: Any) -> dict[int, tuple[int, str, int]]:
    """See `Desk.all`; none while the desk is started again, as its node was lost."""
    import ray

    try:
        notes: dict[int, tuple[int, str, int]] = ray.get(desk.all.remote(), timeout=CONNECT_S)
    except ray.exceptions.RayError:
        return {}
    return notes


def _end(desk: Any, running: Mapping[Any, Task], begun: Container[int]) -> None:
    """Ends what runs, and stores what was measured of it. begun: the numbers of the shards that have been at work."""
    import ray

    from attnbench.measure.shard_process import GRACE_S, LOOKED_EVERY_S

    at_work = {ref: task for ref, task in running.items() if task.number in begun}
    for ref in running.keys() - at_work.keys():
        ray.cancel(ref)
    end = time.monotonic() + GRACE_S + 2 * LOOKED_EVERY_S
    while at_work and time.monotonic() < end:
        desk.stop.remote()
        done, _ = ray.wait(list(at_work), num_returns=len(at_work), timeout=TICK_S)
        for ref in done:
            _gathered(ref, at_work.pop(ref))
    for ref in at_work:
        ray.cancel(ref, force=True)


def _files(folder: Path, pattern: str = "**/*") -> dict[str, bytes]:
    """The regular files of a folder, by their paths in it; none where it is not there."""
    found = sorted(path for path in folder.glob(pattern) if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): files.read(path) for path in found}


def _put(folder: Path, content: Mapping[str, bytes]) -> None:
    """Writes files below a folder, by their paths in it."""
    with files.going_on(folder, CONTINUED):
        for name, data in content.items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            files.replace(place, data)
