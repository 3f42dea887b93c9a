"""What runs the tests in a browser and on clusters: it says what could not be installed, and then fails nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from tests import installing
from tests.browser import __main__ as browser
from tests.fleet import __main__ as fleet

FAILS = ((sys.executable, "-c", "import sys; sys.exit('no such package')"),)


@pytest.fixture
def nothing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "executable", lambda: None)
    monkeypatch.setattr(browser, "debian", lambda *packages: FAILS)
    monkeypatch.setattr(fleet, "NEEDS", {"ray": lambda: FAILS, "slurm": lambda: (("no-such-program",),)})


@pytest.mark.usefixtures("nothing_there")
@pytest.mark.parametrize(
    ("target", "told"),
    [
        (browser, ["browser-test: skipped, no test of the HTML report was run: ", "ended with 1: no such package"]),
        (fleet, ["no test of a fleet on ray was run: ", "no such package", "on slurm was run: no-such-program: "]),
    ],
)
def test_a_failed_installation_is_told_and_fails_nothing(
    target: ModuleType, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert target.main() == 0
    printed = capsys.readouterr().err
    assert [text for text in told if text not in printed] == []


def test_what_is_there_is_tested_and_its_tests_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: what is there is not skipped."""
    ran: list[Sequence[str]] = []

    def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(browser, "executable", lambda: "/usr/bin/chromium")
    monkeypatch.setattr(browser, "extra", lambda name, *modules: installing.extra(name, "json"))
    monkeypatch.setattr(fleet, "NEEDS", {"ray": lambda: installing.extra("fleet", "json"), "slurm": lambda: FAILS})
    monkeypatch.setattr(sys, "argv", ["target", "-x"])
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **named: real(command, **named) if named else run(command))
    assert (browser.main(), fleet.main()) == (1, 1)
    pytest_ = [sys.executable, "-m", "pytest"]
    here = Path(fleet.__file__).parent
    assert ran == [
        [*pytest_, str(Path(browser.__file__).parent), "-x"],
        [*pytest_, str(here / "test_figures.py"), str(here / "test_ray.py"), "-n", "1", "--dist", "loadfile", "-x"],
    ]
