from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.errors import BadInput
from attnbench.store.records import Sample
from tests import stored

FORMATS = ("table", "json", "markdown", "csv", "junit")


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["compare", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def folder(path: Path, seconds: float, *, rounds: int = 4, memory: int = 1000, contract: int = 3) -> str:
    visits, samples = [], []
    for n in (64, 128):
        for place, operator in enumerate(("softmax", "local", "linformer", "performer", "fnet")):
            cell = stored.cell(operator, seq_len=n)
            visits.append(stored.visit(cell, metrics={"peak_memory_bytes": memory, "flops": 10}))
            for number in range(1, rounds + 1):
                own = seconds if operator == "local" else 1e-3
                took = own * (1 + 0.001 * ((number * 7 + n) % 3) + 0.0002 * (number * (place + 2) % 5))
                visits.append(stored.timed(cell, number, took))
                samples += [Sample(cell.key, number, number, i, "wall", took) for i in range(5)]
    stored.folder(path, [replace(visit, contract=f"{contract} rounds={rounds}") for visit in visits], samples)
    return str(path)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str, str]:
    return folder(tmp_path / "a", 1e-3), folder(tmp_path / "b", 1.2e-3), folder(tmp_path / "c", 1e-3, memory=2000)


def test_exit_codes(runs: tuple[str, str, str], tmp_path: Path) -> None:
    a, b, c = runs
    assert run(a, b)[0] == 0
    assert run(a, a, "--fail-on", "wall_time:5%")[0] == 0
    assert run(a, b, "--fail-on", "wall_time:5%")[0] == 1
    assert run(b, a, "--fail-on", "wall_time:5%")[0] == 0
    assert run(a, a, c, "--fail-on", "peak_memory:0%")[0] == 1
    older = [folder(tmp_path / f"older {s}", s, contract=2) for s in (1e-3, 1.2e-3)]
    assert run(*older, "--fail-on", "wall_time:5%")[0] == 3, "its cells took no turns"
    once = folder(tmp_path / "once", 1e-3, rounds=1)
    assert run(once, folder(tmp_path / "again", 1.001e-3, rounds=1), "--fail-on", "wall_time:5%")[0] == 3


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_tells_the_slower_cell(runs: tuple[str, str, str], form: str) -> None:
    a, b, _ = runs
    code, text = run(a, b, "--fail-on", "wall_time:5%", "--format", form)
    assert code == 1
    assert "local" in text
    if form == "json":
        (found,) = json.loads(text)["comparisons"]
        assert (found["exit_code"], found["measured"]) == (1, 10)
        slower = [f for f in found["findings"] if f["regression"]]
        assert [f["verdict"] for f in slower] == ["slower", "slower"]
        assert slower[0]["ratio"] == pytest.approx(1.2, rel=0.01)
    elif form == "junit":
        assert ElementTree.fromstring(text.split("?>")[1]).attrib["failures"] == "2"
    elif form == "table":
        assert "not shown: " in text
        assert "same" in text
        assert "note: wall_time: made one after the other, these runs show" in text


def test_times_of_another_device_of_the_model_say_so(runs: tuple[str, str, str]) -> None:
    a, b, _ = runs

    def measured_on(folder: str, device: str) -> None:
        path = Path(folder) / "visits.jsonl"
        visits = [{**json.loads(line), "device_id": device} for line in path.read_text().splitlines()]
        path.write_text("".join(f"{json.dumps(each)}\n" for each in visits))

    measured_on(a, "aaaaaaaaaaaa")
    assert "aaaaaaaaaaaa" not in run(a, b)[1], "of one of the two it is not known"
    measured_on(b, "aaaaaaaaaaaa")
    assert "another device" not in run(a, b)[1], "the negative control: one device"
    measured_on(b, "bbbbbbbbbbbb")
    texts = {form: " ".join(run(a, b, "--format", form)[1].split()) for form in FORMATS}
    assert json.loads(texts.pop("json"))["comparisons"][0]["devices"] == [["aaaaaaaaaaaa"], ["bbbbbbbbbbbb"]]
    for form, text in texts.items():
        said = "of another device than those after, of one model (aaaaaaaaaaaa; bbbbbbbbbbbb)" in text
        assert said == (form != "csv"), form


def test_explain_shows_rounds_samples_and_why(runs: tuple[str, str, str]) -> None:
    a, b, _ = runs
    _, text = run(a, b, "--explain", "local")
    assert "slower, because 20.0% is outside" in text or "slower, because 19.9% is outside" in text
    assert "round 4" in text
    assert "5 samples" in text
    with pytest.raises(BadInput, match="no cell's key contains it"):
        run(a, b, "--explain", "nothing")


def test_bad_usage(runs: tuple[str, str, str], tmp_path: Path) -> None:
    a, b, _ = runs
    with pytest.raises(BadInput, match="two run folders"):
        run(a)
    with pytest.raises(BadInput, match="no such folder"):
        run(a, str(tmp_path / "none"))
    with pytest.raises(BadInput, match="is no metric"):
        run(a, b, "--fail-on", "speed:5%")
    (Path(b) / "environment.json").write_text(json.dumps({"torch": "9.9"}))
    with pytest.raises(BadInput, match=r"torch: 2.13.0 → 9.9"):
        run(a, b)
    assert run(a, b, "--across-machines")[0] == 0
