from __future__ import annotations

import json
from pathlib import Path

import pytest

from attnbench.analysis.compare.noise import Calibration, machine_of, noise_for, read, write
from attnbench.analysis.compare.tier1_paired import ASSUMED, Noise
from attnbench.errors import BadInput

HERE = {"device": "cpu", "cpu": "one", "threads": 1, "torch": "2.13.0", "load": 3.0}
FOUND = Calibration(Noise({"a.b": 0.02}, 0.03, 8), machine_of(HERE), "ci")


def test_noise_is_stored_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "noise" / "ci.json"
    write(path, FOUND)
    assert read(path) == FOUND
    noise, said = noise_for(path, {**HERE, "load": 9.0}, required=False)
    assert noise == FOUND.noise
    assert "from 8 pairs: 2.0% per cell, 3.0% shared" in said


def test_another_machine_s_noise_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "ci.json"
    write(path, FOUND)
    other = {**HERE, "threads": 4}
    noise, said = noise_for(path, other, required=False)
    assert noise is ASSUMED
    assert "another machine (threads 1, here 4)" in said
    with pytest.raises(BadInput, match="another machine"):
        noise_for(path, other, required=True)


def test_without_one_the_assumption_is_stated(tmp_path: Path) -> None:
    noise, said = noise_for(tmp_path / "none.json", HERE, required=False)
    assert noise is ASSUMED
    assert "4% from process to process is assumed" in said
    with pytest.raises(BadInput):
        noise_for(tmp_path / "none.json", HERE, required=True)


@pytest.mark.parametrize(
    "change", [{"own": 3}, {"own": {"a": -1}}, {"own": {"a": "x"}}, {"shared": None}, {"pairs": "8"}, {"machine": []}]
)
def test_damaged_files_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "ci.json"
    write(path, FOUND)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadInput, match="not noise that"):
        read(path)


def test_noise_of_pairs_measured_another_way_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ci.json"
    write(path, FOUND)
    path.write_text(json.dumps({**json.loads(path.read_text()), "turns": 1}))
    with pytest.raises(BadInput, match="Calibrate again"):
        read(path)
