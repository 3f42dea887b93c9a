"""A suite, and the run of it that no fleet has measured."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fleet.fleets import SUITE, command, environment


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "tiny.yaml"
    path.write_text(SUITE, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def whole(suite: Path) -> Path:
    """The unsharded run."""
    folder = suite.parent / "whole"
    words = command("run", suite, "--device", "cpu", "--out", folder)
    subprocess.run(words, env=environment(), check=True, capture_output=True, timeout=600)
    return folder
