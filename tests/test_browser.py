"""What runs the tests in a browser: it says what could not be installed, and then fails nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.browser import __main__ as browser


def test_a_failed_installation_is_told_and_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(browser, "executable", lambda: None)
    monkeypatch.setattr(browser, "INSTALL", [(sys.executable, "-c", "import sys; sys.exit('no such package')")])
    assert browser.main() == 0
    assert "skipped, no test of the HTML report was run" in (told := capsys.readouterr().err)
    assert "no such package" in told
    monkeypatch.setattr(browser, "INSTALL", [("no-such-program",)])
    assert browser.main() == 0
    assert "no-such-program" in capsys.readouterr().err


def test_with_a_browser_the_tests_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: what is there is not skipped."""
    ran: list[Sequence[str]] = []

    def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(browser, "executable", lambda: "/usr/bin/chromium")
    monkeypatch.setattr(browser, "PACKAGES", ("json",))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["browser"])
    assert browser.main() == 1
    assert ran == [[sys.executable, "-m", "pytest", str(Path(browser.__file__).parent)]]
