"""A suite, and the run of it that no fleet has measured."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fleet.fleets import command, environment
from tests.running import made_once
from tests.tiny_suite import TINY


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def whole(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unsharded run, which the tests of all engines share."""

    def make(folder: Path) -> None:
        words = command("run", suite, "--device", "cpu", "--out", folder / "whole")
        subprocess.run(words, env=environment(), check=True, capture_output=True, timeout=600)

    return made_once(tmp_path_factory, "whole", make) / "whole"
