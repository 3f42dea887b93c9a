"""Takes a mutated suite or run folder through what reads it, and raises AssertionError where that is not right."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench.analysis.compare.stored_runs import compare
from attnbench.analysis.run import Run, read_run
from attnbench.analysis.summary import Summary, summarise
from attnbench.errors import BadInput
from attnbench.outputs import bencher, csv, github_benchmark, html, markdown, parquet, pytorch_benchmark, table
from attnbench.outputs import json as json_output
from attnbench.outputs._formats import formats, show
from attnbench.outputs._html_page import LIMIT_BYTES
from attnbench.plan import cells as expansion
from attnbench.plan import suite as suites
from attnbench.thresholds import Gate
from tests.mutated.mutation import Mutation
from tests.mutated.runs import mutated_folder
from tests.mutated.suites import FULL, mutated_suite

FORMS = formats("comparisons")
GATE = Gate({"flops": 0.0, "peak_memory": 0.0, "wall_time": 0.05})


@dataclass(frozen=True)
class Outcome:
    """What became of a mutation that was treated rightly."""

    mutation: Mutation
    refused: bool


def judge_suite(folder: Path, draw: random.Random, *, cells: bool) -> Outcome:
    """One mutated suite. cells: whether its cells are made as well, where it is accepted."""
    path, bait = folder / "suite.yaml", folder / "bait"
    data, mutation = mutated_suite(draw, bait)
    path.write_bytes(data)
    try:
        found = suites.read(path)
        if cells:
            expansion.cells(found)
    except BadInput as error:
        _is_message(str(error), str(path))
        refused = True
    else:
        refused = False
        if mutation.expected == "same":
            assert _meaning(found) == _meaning(suites.from_text(FULL, "original", folder)), mutation.kind
    assert not bait.exists(), f"{mutation.kind}: the suite was executed"
    return _outcome(mutation, refused)


def _meaning(suite: suites.Suite) -> dict[str, Any]:
    return {k: v for k, v in vars(suite).items() if k not in ("where", "directory", "text")}


def judge_folder(folder: Path, original: Run, draw: random.Random) -> Outcome:
    """One mutated run folder through load, show in every form, and compare with the original, before or after it."""
    mutation = mutated_folder(folder, draw)
    try:
        run = read_run(folder)
        summary = summarise(run)
        document = _shown(summary)
    except BadInput as error:
        _is_message(str(error), str(folder))
        return _outcome(mutation, True)
    _is_honest(document, folder)
    if mutation.expected == "same":
        assert _sorted(document) == _sorted(_document(summarise(original))), f"{mutation.kind}: shown otherwise"
    sides = (original, run) if draw.random() < 0.5 else (run, original)
    refused = _compared(sides, run, mutation, folder)
    try:
        _samples_are_honest(run, original, mutation)
    except BadInput as error:
        _is_message(str(error), str(folder))
        refused = True
    return _outcome(mutation, refused)


def _outcome(mutation: Mutation, refused: bool) -> Outcome:
    assert mutation.expected != "refused" or refused, f"{mutation.kind}: accepted"
    assert mutation.expected != "same" or not refused, f"{mutation.kind}: refused"
    return Outcome(mutation, refused)


def _is_message(text: str, place: str) -> None:
    """A paragraph that names the file, and no traceback."""
    assert place in text, f"names no file: {text[:300]}"
    assert "Traceback" not in text
    assert len(text) < 20_000, f"{len(text)} characters: {text[:300]}"


def _shown(summary: Summary) -> dict[str, Any]:
    """The JSON of `show`, after every other form was written."""
    from rich.console import Console

    for write in (table.write_answer, table.write):
        write(summary, Console(highlight=False, file=io.StringIO(), width=120))
    csv.run(summary)
    markdown.run(summary)
    markdown.tables(summary)
    assert len(html.run(summary).encode()) <= LIMIT_BYTES
    for export in (bencher, github_benchmark, pytorch_benchmark):
        json.loads(export.run(summary), parse_constant=_no_constant)
    parquet.run(summary)
    return _document(summary)


def _document(summary: Summary) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json_output.run(summary), parse_constant=_no_constant)
    return found


def _sorted(value: Any) -> Any:
    """The same whatever the order of series; floats to nine digits, as sums in another order give them."""
    if isinstance(value, dict):
        return {key: _sorted(child) for key, child in value.items()}
    if isinstance(value, list):
        return sorted((_sorted(child) for child in value), key=lambda child: json.dumps(child, sort_keys=True))
    return float(f"{value:.9g}") if isinstance(value, float) else value


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} in JSON")


def _figures(document: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """(metric, what identifies the cell, value or None) of everything in the tables."""
    for panel in document["panels"]:
        fixed = panel["fixed"]
        for metric in panel["metrics"]:
            for series in metric["series"]:
                for figure in series["figures"]:
                    seq_len = figure["size"]
                    params = json.dumps(series["params"], sort_keys=True)
                    yield (
                        metric["metric"],
                        (series["operator"], series["impl"], params, fixed["mode"], seq_len, fixed.get("channels")),
                        figure["value"],
                    )


def _is_honest(document: Mapping[str, Any], folder: Path) -> None:
    """Every figure is what visits.jsonl says, read again by nothing but `json`; and nothing that it says is lost."""
    visits = [json.loads(line) for line in (folder / "visits.jsonl").read_bytes().split(b"\n")[:-1]]
    by_cell: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for visit in visits:
        by_cell.setdefault(_place(visit["cell"]), []).append(visit)
    told: dict[tuple[str, tuple[Any, ...]], float] = {}
    for metric, place, value in _figures(document):
        own = [v for key, group in by_cell.items() for v in group if _matches(key, place)]
        assert own, f"{metric} of {place}: nobody measured it"
        if value is not None:
            told[metric, place] = value
            _figure_is_honest(metric, value, own)
    for key, group in by_cell.items():
        checks = [v for v in group if v["round"] == 0]
        if checks and all(v["status"] == "ok" for v in group) and "flops" in checks[0]["metrics"]:
            assert any(m == "flops" and _matches(key, place) for m, place in told), f"flops of {key} are lost"


def _place(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    params = json.dumps(json.loads(cell["params"]), sort_keys=True)
    return (cell["operator"], cell["impl"], params, cell["mode"], cell["seq_len"], cell["channels"])


def _matches(key: tuple[Any, ...], place: tuple[Any, ...]) -> bool:
    """In a panel over channels the size is the channels, and `fixed` has none."""
    if place[5] is None:
        return key[:4] == place[:4] and place[4] in (key[4], key[5])
    return key == place


def _figure_is_honest(metric: str, value: float, own: list[dict[str, Any]]) -> None:
    if metric in ("wall_time", "device_time"):
        times = [t for v in own if v["round"] > 0 and v["status"] == "ok" and (t := v["metrics"].get(f"{metric}_s", 0))]
        assert times, f"{metric} = {value}, and no visit has one"
        assert min(times) / 1.5 <= value <= max(times) * 1.5, f"{metric} = {value} from {times}"
        return
    column = {"peak_memory": "peak_memory_bytes"}.get(metric, metric)
    allowed = [
        v["metrics"][column] + (v["metrics"].get("parameter_bytes", 0) if metric == "peak_memory" else 0)
        for v in own
        if column in v["metrics"]
    ]
    assert any(math.isclose(value, number, rel_tol=1e-12) for number in allowed), f"{metric} = {value}, not {allowed}"


def _compared(sides: tuple[Run, Run], run: Run, mutation: Mutation, folder: Path) -> bool:
    """Compares the two, and writes that in every form. Returns whether it was refused."""
    try:
        found = compare(*sides, GATE)
    except BadInput as error:
        _is_message(str(error), str(folder))
        return True
    with redirect_stdout(io.StringIO()):
        for form in FORMS:
            show("comparisons", [found], form)
    if mutation.expected == "same":
        assert found.exit_code == 0, f"{mutation.kind}: {found.decision}"
        assert {f.verdict for f in found.findings} <= {"same"}, f"{mutation.kind}: {found.findings[:2]}"
    if sides[1] is run and found.exit_code == 0:
        lost = set(sides[0].results["key"]) - set(run.results["key"])
        assert not lost, f"{mutation.kind}: {lost} are lost, and the gate passed"
    return False


def _samples_are_honest(run: Run, original: Run, mutation: Mutation) -> None:
    samples = run.samples
    assert ((samples["seconds"] >= 0) & (samples["seconds"] < 1e30)).all()
    if mutation.expected == "same":
        kept = original.samples
        assert sorted(samples["seconds"]) == sorted(kept["seconds"])
