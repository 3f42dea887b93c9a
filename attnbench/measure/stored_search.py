"""What a crossover search was asked, as a file of its run folder, by which it can be resumed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from attnbench.axes import AXES
from attnbench.errors import BadInput
from attnbench.files import going_on, is_file, replace
from attnbench.plan.search_request import SearchRequest
from attnbench.plan.sweep import facts_of
from attnbench.problem import problem_of
from attnbench.store.journal import stored_environment
from attnbench.store.records import ENVIRONMENT, SEARCH, SUITE, Visit
from attnbench.store.trusted_json import REPAIR, parse_object, read_text
from attnbench.yaml_file import parse, written


def write_request(request: SearchRequest, folder: Path) -> None:
    """Stores a request in a run folder. Raises BadInput where that cannot be written."""
    with going_on(folder):
        replace(folder / SEARCH, json.dumps(asdict(request), indent=2) + "\n")


def read_request(folder: Path) -> SearchRequest:
    """The request of a stored search. Raises BadInput where the folder is none, or the file is damaged."""
    path = folder / SEARCH
    if not is_file(path):
        raise BadInput(
            f"--resume {folder}: not a folder that `attnbench crossover` wrote, it has no {SEARCH}. "
            f"Continue a suite's run with: attnbench run --resume {folder}"
        )
    data = parse_object(read_text(path), str(path))
    data = {"over": "", "values": [], **data}  # searches of one axis alone were stored without
    types: dict[str, Any] = {"operators": list, "low": int, "high": int, "precision": float, "values": list}
    wrong = {f.name for f in fields(SearchRequest)} ^ set(data)
    wrong |= {name for name, value in data.items() if type(value) is not types.get(name, str)}
    wrong |= {"axis"} if str(data.get("axis")) not in AXES else set()
    wrong |= set() if "over" in wrong or data["over"] in ("", *AXES) else {"over"}
    wrong |= set() if "values" in wrong or all(type(value) in (int, str) for value in data["values"]) else {"values"}
    if wrong or not all(isinstance(name, str) for name in data["operators"]):
        raise BadInput(f"{path}: {', '.join(sorted(wrong)) or 'operators'}: missing, foreign or mistyped. {REPAIR}")
    return SearchRequest(**{**data, "operators": tuple(data["operators"]), "values": tuple(data["values"])})


def name_sizes(request: SearchRequest, folder: Path, visits: Iterable[Visit]) -> None:
    """Writes the sizes that were visited into suite.yaml and environment.json, so that they describe the run; unchanged
    where none was."""
    column = AXES[request.axis].columns[0]
    problems = {problem_of(visit.cell) for visit in visits}
    sizes = sorted({getattr(problem, column) for problem in problems})
    data = parse(read_text(folder / SUITE), str(folder / SUITE))
    if sizes and data["sweep"][0][request.axis] != sizes:
        data["sweep"][0][request.axis] = sizes
        facts = {**stored_environment(folder), "sweep": [facts_of(problems, [*data["sweep"][0]])]}
        with going_on(folder):
            replace(folder / ENVIRONMENT, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
            replace(folder / SUITE, written(data))
