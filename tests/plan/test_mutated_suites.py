"""Mutated suites: refused with a message that names the file, or read as the original; never executed."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from attnbench.errors import BadInput
from attnbench.plan import suite as suites
from tests.mutated import judged
from tests.mutated.judged import judge_suite
from tests.mutated.mutation import Mutation
from tests.mutated.suites import FULL

LONGEST_S = 20.0
"""What one suite may take, on a loaded machine; alone it takes milliseconds."""


@pytest.mark.parametrize("case", range(100))
def test_a_mutated_suite_is_refused_or_read_as_it_says(case: int, tmp_path: Path) -> None:
    begun = time.monotonic()
    judge_suite(tmp_path, random.Random(f"suite {case}"), cells=case % 5 == 0)
    assert time.monotonic() - begun < LONGEST_S


def test_a_suite_of_100_mb_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.write(FULL.encode())
        file.truncate(100 * 2**20)
    begun = time.monotonic()
    with pytest.raises(BadInput, match=r"large\.yaml"):
        suites.load(str(path))
    assert time.monotonic() - begun < LONGEST_S


@pytest.mark.parametrize(
    ("expected", "text", "message"),
    [
        ("refused", FULL, "accepted"),
        ("same", "name: x", "refused"),
        ("same", FULL.replace("rounds: 2", "rounds: 3"), "control"),
    ],
)
def test_what_is_not_as_expected_would_be_noticed(
    expected: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (text.encode(), Mutation("control", expected))  # type: ignore[arg-type]
    monkeypatch.setattr(judged, "mutated_suite", lambda draw, bait: made)
    with pytest.raises(AssertionError, match=message):
        judge_suite(tmp_path, random.Random(0), cells=False)


def test_a_suite_that_executes_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bait").touch()
    with pytest.raises(AssertionError, match="executed"):
        judge_suite(tmp_path, random.Random("suite 0"), cells=False)
