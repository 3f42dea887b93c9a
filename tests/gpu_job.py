"""Tests as a job with a time limit, on a GPU that others wait for: `python -m tests.gpu_job FOLDER TEST_FILES`.

A plugin of pytest, and the command that runs pytest with it: first what many processes can test beside each other, the
most telling tests first (marker `later`), then what needs the GPU alone (marker `alone`). The folder has three files:
tests.jsonl, one line per test as soon as it ends, and pytest's junit.xml and junit-alone.xml of the last job. A job
that is given a folder of earlier ones leaves out what passed there on the same card, in the same versions of torch and
Triton, with the same code (marker `code`). A process whose CUDA context is lost ends, and another takes its place.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from attnbench.plan.measured_code import code_imported_by

BEGUN = time.time()

LOG = "tests.jsonl"

RESERVE_S = 15.0
"""What pytest takes at most to end its processes and write its reports."""

TEST_S = 240
"""A test that takes longer hangs: its process is ended."""

MOST_OF_A_MESSAGE = 2000


def main(words: list[str]) -> int:
    """Runs the tests; 0 where every one has passed now or earlier, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_job", description="Tests within a time limit.")
    parser.add_argument("folder", type=Path, help="what is written, and what passed in earlier jobs")
    parser.add_argument("files", nargs="+", help="pytest's arguments")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds after which all must have ended")
    parser.add_argument("--reserve", type=float, default=RESERVE_S, help="seconds of it that are for the reports")
    parser.add_argument("--processes", type=int, default=12)
    parser.add_argument("--on", help="the card and the versions that results hold for; by default what torch says")
    args = parser.parse_args(words)
    args.folder.mkdir(parents=True, exist_ok=True)
    on = args.on or _setting()
    with (args.folder / LOG).open("a") as log:
        log.write("\n" + json.dumps({"on": on, "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}) + "\n")
    end = BEGUN + args.limit
    job = [f"--job-folder={args.folder}", f"--job-on={on}", f"--job-last={end - args.reserve}", f"--job-end={end}"]
    together = ["-n", str(args.processes), "--maxschedchunk", "1", "--max-worker-restart", "1000"]
    codes: list[int] = []
    for part, report, options in (("not alone", "junit.xml", together), ("alone", "junit-alone.xml", ["-n", "0"])):
        if pytest.ExitCode.INTERRUPTED not in codes:
            report = f"--junitxml={args.folder / report}"
            codes.append(_pytest([*job, report, "-m", f"gpu and {part}", *options, *args.files]))
    print(f"gpu-test: {args.folder / LOG}: {_summary(args.folder / LOG, on)}", flush=True)
    if pytest.ExitCode.INTERRUPTED in codes:
        print("gpu-test: interrupted, or out of time; the same command goes on from what is in that folder", flush=True)
    return int(not set(codes) <= {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED})


def _pytest(options: list[str]) -> int:
    """pytest's exit code, with this plugin and one process of torch's compiler in each of its own."""
    command = [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-p", "no:cacheprovider", "-p", "tests.gpu_job"]
    command += ["-vv", "--tb=short", f"--timeout={TEST_S}", "--timeout-method=thread", *options]
    environment = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONUNBUFFERED": "1", **os.environ}
    return subprocess.run(command, env=environment).returncode


def _setting() -> str:
    """`card_and_versions` of a process that then ends, and holds no memory of the GPU any more."""
    code = "from tests.gpu_job import card_and_versions; print(card_and_versions())"
    return subprocess.run([sys.executable, "-c", code], check=True, text=True, stdout=subprocess.PIPE).stdout.strip()


def card_and_versions() -> str:
    """What a result holds for, apart from the code."""
    import torch

    card = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    versions = [f"{name} {_version(name)}" for name in ("torch", "triton")]
    return ", ".join([card, *versions])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def last_results(log: Path, on: str) -> dict[str, dict[str, Any]]:
    """The last line of each test that ended on this card and in these versions, by the test's name."""
    results: dict[str, dict[str, Any]] = {}
    same = False
    for text in log.read_text().splitlines() if log.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:  # empty, or a job was killed within it
            continue
        if "on" in line:
            same = line["on"] == on
        elif same:
            results[line["test"]] = line
    return results


def _summary(log: Path, on: str) -> str:
    outcomes = [line["outcome"] for line in last_results(log, on).values()]
    return ", ".join(f"{outcomes.count(name)} {name}" for name in ("passed", "failed", "skipped")) + f" on {on}"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("a job with a time limit")
    group.addoption("--job-folder", type=Path)
    group.addoption("--job-last", type=float, help="when tests are interrupted, in seconds since 1970")
    group.addoption("--job-end", type=float, help="when all has ended")
    group.addoption("--job-on", default="")


def pytest_configure(config: pytest.Config) -> None:
    """In the process that the others report to: a log, and the end of the time."""
    if not hasattr(config, "workerinput") and config.getoption("job_folder") is not None:
        config.pluginmanager.register(Job(config), "job")


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Interrupts the process that reports, and ends those that test a second later, and what no interrupt reaches."""
    last, end = (session.config.getoption(name) for name in ("job_last", "job_end"))
    if last is None:
        return

    def interrupt() -> None:
        session.shouldstop = "the time limit"
        os.kill(os.getpid(), signal.SIGINT)

    if hasattr(session.config, "workerinput"):
        _at(last + 1, os._exit, 1)
    else:
        _at(last, interrupt)
        _at(end, os._exit, int(pytest.ExitCode.INTERRUPTED))


def _at(moment: float, act: Callable[..., object], *arguments: int) -> None:
    timer = Timer(max(0.0, moment - time.time()), act, arguments)
    timer.daemon = True
    timer.start()


@cache
def code_digest(path: Path, module: str | None) -> str:
    """A digest of a file of tests and of the module that its marker names, with all that this imports."""
    code = None if module is None else code_imported_by(module)
    parts = [path.read_bytes(), repr(code).encode()]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The most telling first; what has passed with the same code is left out."""
    passed = getattr(config, "workerinput", vars(config.option)).get("job_passed")
    if passed is None:
        return
    left_out = []
    for item in items:
        marker = item.get_closest_marker("code")
        digest = code_digest(item.path, None if marker is None else marker.args[0])
        item.user_properties.append(("code", digest))
        if passed.get(item.nodeid) == digest:
            left_out.append(item)
    config.hook.pytest_deselected(items=left_out)
    names = {item.nodeid for item in left_out}
    items[:] = sorted((item for item in items if item.nodeid not in names), key=steps)


def steps(item: pytest.Item) -> int:
    """How many steps after the most telling tests this one comes."""
    return sum(int(marker.args[0]) for marker in item.iter_markers("later"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Ends a process whose CUDA context is lost, or every later test in it would fail; it has reported this one."""
    result = yield
    torch = sys.modules.get("torch")
    if hasattr(item.config, "workerinput") and torch is not None and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # the other processes need it
        except Exception as error:
            print(f"{item.nodeid} lost the CUDA context: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return result


class Job:
    """Writes a line per test as it ends, and interrupts pytest in time."""

    def __init__(self, config: pytest.Config) -> None:
        """Reads what passed in earlier jobs."""
        self.path = config.getoption("job_folder") / LOG
        self.results: dict[str, dict[str, Any]] = {}
        lines = last_results(self.path, config.getoption("job_on")).values()
        self.passed = {line["test"]: line["code"] for line in lines if line["outcome"] == "passed"}
        config.option.job_passed = self.passed

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Every process leaves out the same tests, one that replaces a crashed one too."""
        node.workerinput["job_passed"] = self.passed

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keeps the worst of a test's phases, and writes it when its last ends."""
        line = self.results.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        line["seconds"] = round(line["seconds"] + report.duration, 3)
        if report.outcome != "passed" and line["outcome"] != "failed":
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            errors = [text for text in reason.splitlines() if text.startswith("E ")]
            line |= {"outcome": report.outcome, "message": "\n".join(errors or [reason])[:MOST_OF_A_MESSAGE]}
        line |= {name: value for name, value in report.user_properties if name == "code"}
        if report.when not in ("setup", "call"):  # of a process that crashed there is one report, of no phase
            with self.path.open("a") as log:
                log.write(json.dumps({"test": report.nodeid, **line}) + "\n")
            del self.results[report.nodeid]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
