"""The composite action's gate step, run by bash as a runner would."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from tests.commands.test_gate import SUITE, example, git, only, plant
from tests.running import lean

ACTION = yaml.safe_load((Path(__file__).parents[1] / "action.yml").read_text())
EXPRESSION = re.compile(r"\$\{\{ *inputs\.(\w+) *\}\}")


def gate_step(root: Path, command: str, **inputs: str) -> tuple[int, str, str, str]:
    """(exit status, code that later steps see, step summary, what it printed). command: what stands for `attnbench`."""
    (step,) = (s for s in ACTION["runs"]["steps"] if s.get("id") == "gate")
    aside = root.parent / "runner"
    program = aside / "attnbench" / "bin" / "attnbench"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!/usr/bin/env bash\n{command}\n")
    program.chmod(0o755)
    given = {name: entry.get("default", "") for name, entry in ACTION["inputs"].items()} | inputs
    output, summary = aside / "output", aside / "summary"
    output.write_text("")
    summary.write_text("")
    environment = {
        **os.environ,
        **{name: EXPRESSION.sub(lambda match: given[match[1]], text) for name, text in step["env"].items()},
        "RUNNER_TEMP": str(aside),
        "GITHUB_OUTPUT": str(output),
        "GITHUB_STEP_SUMMARY": str(summary),
    }
    shell = [step["shell"], "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(shell, cwd=root, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, output.read_text(), summary.read_text(), done.stdout + done.stderr


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return example(tmp_path / "repository", SUITE)


def test_the_step_passes_an_unchanged_tree_and_finds_a_lost_complexity(repository: Path) -> None:
    command = f'{shlex.join(lean())} "$@"'
    inputs = {"suite": "own.yaml", "tier": "0"}
    status, code, summary, printed = gate_step(repository, command, **inputs, base="HEAD")
    assert (status, code) == (0, "code=0\nsarif=attnbench-gate/gate.sarif\n"), printed
    assert "pass" in summary
    out = (repository / "attnbench-gate").rename(repository / "stored")
    assert {"gate.json", "junit.xml", "gate.sarif", "base", "head"} <= {path.name for path in out.iterdir()}
    assert only((out / "gate.json").read_text())["measured"] == 6
    plant(repository)
    status, code, summary, printed = gate_step(repository, command, **inputs, against="stored/head")
    assert (status, code) == (1, "code=1\nsarif=attnbench-gate/gate.sarif\n"), printed
    assert "decayed" in summary
    assert "MORE" in summary
    out = repository / "attnbench-gate"
    findings = only((out / "gate.json").read_text())["findings"]
    failing = [(f["name"].split()[0], f["metric"]) for f in findings if f["regression"]]
    assert ("decayed", "peak_memory") in failing
    assert {name.split(":")[0] for name, _ in failing} == {"decayed"}
    (log,) = json.loads((out / "gate.sarif").read_text())["runs"]
    assert sum(result["level"] == "error" for result in log["results"]) == len(failing)
    assert int(ElementTree.parse(out / "junit.xml").getroot().attrib["failures"]) == len(failing)
    assert git(repository, "worktree", "list").count("\n") == 1


@pytest.mark.parametrize(("undecided", "expected"), [("warn", 0), ("fail", 3)])
def test_undecided_warns_or_fails_as_asked(repository: Path, undecided: str, expected: int) -> None:
    status, code, _, printed = gate_step(repository, "exit 3", suite="own.yaml", base="HEAD", undecided=undecided)
    assert (status, code) == (expected, "code=3\n")
    assert ("::warning::" in printed) == (undecided == "warn")


def test_every_input_reaches_the_command(repository: Path) -> None:
    command = 'echo "words: $*; threads: $OMP_NUM_THREADS"'
    inputs = {"suite": "--help", "against": "stored", "tier": "1", "threads": "2", "folder": "my folder/gate"}
    status, _, _, printed = gate_step(repository, command, **inputs)
    assert status == 0, printed
    for words in ("gate --tier 1", "--against stored", "--out my folder/gate ", "-- --help;", "threads: 2"):
        assert words in printed
    assert "--base" not in printed


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"undecided": "Warn"}, "::error::undecided: 'Warn'; allowed: warn, fail"),
        ({"threads": ""}, "::error::threads: ''; allowed: a number from 1"),
        ({"threads": "0"}, "::error::threads: '0'"),
    ],
)
def test_an_input_that_would_be_passed_over_is_told(repository: Path, inputs: dict[str, str], told: str) -> None:
    status, code, _, printed = gate_step(repository, "echo it ran", suite="own.yaml", base="HEAD", **inputs)
    assert (status, code) == (2, "")
    assert told in printed
    assert "it ran" not in printed


def test_a_job_gates_two_suites_in_folders_of_their_own(repository: Path) -> None:
    """What stands for `attnbench` refuses a folder that is not empty, as it does."""
    command = """
        while [ $# -gt 0 ]; do
            case "$1" in --out) out="$2" ;; --junit) junit="$2" ;; --sarif) sarif="$2" ;; esac
            shift
        done
        [ -d "$out" ] && exit 2
        mkdir -p "$out" && echo "$out" | tee "$junit" "$sarif" > "$out/gate.json"
    """
    for folder in ("attnbench-gate", "my folder/two"):
        given = {} if folder == "attnbench-gate" else {"folder": folder}
        status, output, _, printed = gate_step(repository, command, suite="own.yaml", base="HEAD", **given)
        assert (status, output) == (0, f"code=0\nsarif={folder}/gate.sarif\n"), printed
        assert {path.name for path in (repository / folder).iterdir()} == {"gate.json", "gate.sarif", "junit.xml"}
        assert (repository / folder / "gate.sarif").read_text() == f"{folder}\n"
    status, output, _, _ = gate_step(repository, command, suite="own.yaml", base="HEAD")
    assert (status, output) == (2, "code=2\n"), "no decision of an earlier step is taken for this one's"
    assert ACTION["outputs"]["folder"]["value"] == "${{ inputs.folder }}"
