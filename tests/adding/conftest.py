"""Two small runs of copies to which two things each are added, with what was printed beside the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adding import test_axis, test_device, test_metric, test_operator
from tests.adding.tree import run_suite, tree_with_all

BY_METRIC_ON_DEVICE = """
operators: [softmax, linear_transformer]
impls: [reference]
sweep: [{seq_len: [16, 32]}]
problem: {channels: 16, heads: 2}
measure: {rounds: 2, crossover_precision: null, min_turns: 2, max_turns: 2}
limits: {budget: 20m}
"""
OPERATOR_ALONG_AXIS = """
operators: [softmax, doubled]
impls: [reference, mine]
sweep: [{seq_len: 16, depth: {from: 1, to: 4, factor: 2}}]
problem: {channels: 16, heads: 2}
measure: {rounds: 1, crossover_precision: null, min_turns: 2, max_turns: 2}
"""


@pytest.fixture(scope="session")
def metric_and_device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy; its run is in `run`."""
    files = {test_device.PATH: test_device.DEVICE, test_metric.PATH: test_metric.METRIC}
    tree = tree_with_all(tmp_path_factory.mktemp("metric_and_device"), files)
    measured = run_suite(tree, BY_METRIC_ON_DEVICE, tree, "pretend", rates=True)
    assert measured.returncode == 0, measured.stderr
    (tree / "printed").write_text(measured.stdout, encoding="utf-8")
    return tree


@pytest.fixture(scope="session")
def operator_and_axis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy; its run is in `run`."""
    files = {test_operator.PATH: test_operator.OPERATOR}
    tree = tree_with_all(tmp_path_factory.mktemp("operator_and_axis"), files, *test_axis.ADDED)
    measured = run_suite(tree, OPERATOR_ALONG_AXIS, tree, forecast=True)
    assert measured.returncode == 0, measured.stderr
    return tree


@pytest.fixture
def run(tree: Path) -> Path:
    """Of the copy that a file's own `tree` is."""
    return tree / "run"
