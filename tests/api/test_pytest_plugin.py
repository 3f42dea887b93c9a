"""The fixture, as a user's test has it: each of these tests runs in a pytest of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PLUGIN = "attnbench.api.pytest_plugin"

TESTS = """
import pytest
from tests.api.functions import a_fifth_slower, old, new

def test_not_slower(attnbench_compare):
    result = attnbench_compare(old, new, 2000).check(max_slowdown="10%")
    assert result.verdict == "same"

def test_slower(attnbench_compare):
    attnbench_compare(old, a_fifth_slower, 2000).check(max_slowdown="5%")

def test_undecided(attnbench_compare):
    attnbench_compare(old, new, 2000, budget="10ms").check(max_slowdown="0.1%")

def test_undecided_passes(attnbench_compare):
    attnbench_compare(old, new, 2000, budget="10ms").check(max_slowdown="0.1%", undecided="pass")

def test_different(attnbench_compare):
    attnbench_compare(old, lambda steps: 0.0, 2000).check()

def test_forgotten(attnbench_compare):
    attnbench_compare(old, new, 2000)

def test_skipped(attnbench_compare):
    comparison = attnbench_compare(old, new, 2000)
    pytest.skip("no GPU here")

def test_failed_before(attnbench_compare):
    comparison = attnbench_compare(old, new, 2000)
    assert old(3) == 4
    comparison.check()

def test_threshold(attnbench_compare):
    attnbench_compare(old, new, 2000, threshold="3%").check()

def test_light():
    import sys
    loaded = {"torch", "pandas", "numpy", "scipy"} & set(sys.modules)
    assert not loaded, loaded
"""


def test_what_is_slower_undecided_different_or_forgotten_fails(tmp_path: Path) -> None:
    (tmp_path / "test_times.py").write_text(TESTS)
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": os.getcwd()}
    words = ["-p", PLUGIN, "-rA", "-o", "addopts=", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    light, rest = (
        subprocess.run(
            [sys.executable, "-m", "pytest", *words, *chosen, str(tmp_path)],
            capture_output=True, text=True, check=False, env=environment, cwd=tmp_path,
        )
        for chosen in (["-k", "light"], ["-k", "not light"])
    )  # fmt: skip
    assert light.returncode == 0, light.stdout
    found = {(status, name) for status, name in re.findall(r"^(\w+) \S+::(\w+)", rest.stdout, re.MULTILINE)}
    assert found, rest.stdout + rest.stderr
    assert {name for status, name in found if status == "PASSED"} >= {"test_not_slower", "test_undecided_passes"}
    assert {name for status, name in found if status == "FAILED"} == {
        "test_slower",
        "test_undecided",
        "test_different",
        "test_failed_before",
        "test_threshold",
    }, rest.stdout
    assert {name for status, name in found if status == "ERROR"} == {"test_forgotten"}, "not what never came to it"
    assert "threshold is max_slowdown of .check" in rest.stdout
    assert "callables.py" not in rest.stdout, "the user's own lines, and what was found"
    assert "slower than max_slowdown=5% allows" in rest.stdout
    assert "a_fifth_slower takes" in rest.stdout
    assert "call .check(max_slowdown=…)" in rest.stdout
    assert "do not give the same" in rest.stdout


def test_pytest_is_told_of_it() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(rf'\[project\.entry-points\.pytest11\]\nattnbench = "{PLUGIN}"', text)
