"""`attnbench.run` measures by the functions of the verb, and returns what it stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnbench
from attnbench.measure import run_request
from attnbench.measure.runner import Stopped
from tests.running import without_forecast, without_rates

SUITE: dict[str, Any] = {
    "operators": ("softmax", {"identity": {}}),
    "sweep": [{"seq_len": np.array([16]).tolist()}],
    "problem": {"channels": np.int64(8), "heads": 2},
    "mode": ["fwd"],
    "measure": {"rounds": 1, "max_rounds": 1, "min_turns": 2, "max_turns": 2},
}


pytestmark = pytest.mark.filterwarnings("ignore:load|this machine's rates:UserWarning")


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        without_forecast(patch)
        without_rates(patch)
        yield


def test_a_mapping_is_measured_and_can_be_continued(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    with pytest.warns(UserWarning, match="rates are not measured") as warned:
        run = attnbench.run(SUITE, out=out, device="cpu", operators="softmax", impls=["reference"])
    assert {each.filename for each in warned} == {__file__}
    assert run.folder == out
    assert "check, 1 visit" in capfd.readouterr().err
    assert list(run.results["operator"]) == ["softmax"]
    assert (run.results["wall_time_s"] > 0).all()
    with pytest.warns(UserWarning, match="rates"):
        again = attnbench.run(resume=out, progress=False)
    assert capfd.readouterr().err == ""
    assert (again.results["wall_time_s"] == run.results["wall_time_s"]).all()


def test_why_it_ended_early_is_a_warning_and_what_was_measured_is_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(runner: Any) -> None:
        raise Stopped("the disk is full")

    monkeypatch.setattr(run_request.Runner, "run", stop)
    with pytest.warns(UserWarning, match="the run ended: the disk is full"):
        run = attnbench.run(SUITE, out=tmp_path / "run", device="cpu", progress=False)
    assert len(run.results) == 0
    assert "no cells" in run._repr_html_()
    assert len(run.crossovers()) == 0


def test_an_interrupt_passes_and_the_folder_can_be_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(runner: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_request.Runner, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        attnbench.run(SUITE, out=tmp_path / "run", device="cpu", progress=False)
    monkeypatch.setattr(run_request.Runner, "run", lambda runner: None)
    with pytest.warns(UserWarning, match="rates"):
        assert len(attnbench.run(resume=tmp_path / "run", progress=False).results) == 0


def test_where_all_is_skipped_there_is_nothing_to_show(tmp_path: Path) -> None:
    suite = {**SUITE, "operators": ["softmax"], "impls": ["reference"], "limits": {"budget": "1ms"}}
    run = attnbench.run(suite, out=tmp_path / "run", device="cpu", progress=False)
    assert set(run.results["status"]) == {"skipped"}
    assert len(run.crossovers()) == 0
    assert "nothing was measured" in run._repr_html_()
    with pytest.raises(attnbench.BadInput, match="nothing to draw"):
        run.plot()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"suite": "quik"}, "did you mean 'quick'"),
        ({"suite": {**SUITE, "operators": ["sofmax"]}}, "sofmax"),
        ({"suite": {**SUITE, "name": object()}}, "no YAML"),
        ({"suite": SUITE, "device": "gpu"}, "no such kind"),
        ({"suite": SUITE, "rounds": 0}, "rounds"),
        ({"suite": None}, "no SUITE"),
        ({"suite": SUITE, "resume": "a", "out": "b"}, "resume and out"),
    ],
)
def test_bad_input_measures_nothing(words: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(attnbench.BadInput, match=named):
        attnbench.run(**{"out": tmp_path / "run", **words} if "resume" not in words else words)
    assert not (tmp_path / "run").exists()
