"""What a crossover search is asked: as a suite, and as a file in its run folder, from which it can be gone on with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from attnbench.errors import BadInput
from attnbench.files import replace, storing
from attnbench.plan.suite import written
from attnbench.problem import Axis, operator_and_impl
from attnbench.store.records import SUITE, Visit
from attnbench.store.trusted_json import REPAIR, parse_object, read_text
from attnbench.yaml_file import parse

FILE = "search.json"


@dataclass(frozen=True)
class Question:
    """operators, baseline: `operator` or `operator:impl`. low, high: the ends of the axis; of an image its side.
    precision: half of the interval's width at which to stop, relative. column: of the visits, what is compared.
    """

    operators: tuple[str, ...]
    baseline: str
    axis: Axis
    low: int
    high: int
    precision: float
    column: str

    def names(self) -> list[tuple[str, str]]:
        """(operator, impl) of each, the baseline last. Raises BadInput where there is nothing but the baseline."""
        baseline = operator_and_impl(self.baseline)
        found = [name for name in dict.fromkeys(map(operator_and_impl, self.operators)) if name != baseline]
        if not found:
            raise BadInput(f"OP: only the baseline {self.baseline} was given. Name an operator to compare with it.")
        return [*found, baseline]


def suite_text(
    asked: Question,
    shape: dict[str, Any],
    seq_len: int,
    mode: str,
    scope: str,
    params: Sequence[str],
    operators_from: Sequence[str],
) -> str:
    """The suite that says the same; its sizes are the ends of the axis. shape: its `problem`. seq_len: where channels
    are varied. params: `key=value` each. Raises BadInput."""
    from attnbench.analysis.crossover_search import MOST_ROUNDS

    names = asked.names()
    if asked.axis == "channels":
        shape = {key: value for key, value in shape.items() if key != "channels"}
    sizes = {asked.axis: [asked.low, asked.high]}
    data = {
        "name": "crossover",
        "description": f"a search for where {', '.join(':'.join(name) for name in names[:-1])} pass {asked.baseline}",
        "baseline": operator_and_impl(asked.baseline)[0],
        **({"operators_from": list(operators_from)} if operators_from else {}),
        "operators": _with_params(list(dict.fromkeys(name for name, _ in names)), params, operators_from),
        "impls": list(dict.fromkeys(impl for _, impl in names)),
        "scope": [scope],
        "sweep": [{"seq_len": [seq_len], **sizes} if asked.axis == "channels" else sizes],
        "problem": shape,
        "mode": [mode],
        "measure": {
            "rounds": MOST_ROUNDS, "within_process_precision": "3%", "min_samples": 5, "max_samples": 200,
            "max_time": "500ms",
        },
        "limits": {"memory": "60%", "cell_timeout": "60s"},
    }  # fmt: skip
    return written(data)


def _with_params(names: list[str], given: Sequence[str], operators_from: Sequence[str]) -> list[Any]:
    """The operators, each with those of the given params that it has. Raises BadInput for one that none has."""
    if not given:
        return list(names)
    from attnbench.plan.mistakes import Notes
    from attnbench.plan.schema import read_given
    from attnbench.registry import operators

    sources = operators(operators_from)
    notes = Notes("the command line")
    has = {name: list(sources[name].load().params) if name in sources else [] for name in names}
    chosen = read_given(given, has, notes)
    notes.close()
    return [{name: {key: [v] for key, v in grid.items()}} if grid else name for name, grid in chosen.items()]


def keep(asked: Question, folder: Path) -> None:
    """Stores the question in a run folder. Raises BadInput where that cannot be written."""
    with storing(folder):
        replace(folder / FILE, json.dumps(asdict(asked), indent=2) + "\n")


def kept(folder: Path) -> Question:
    """The question of a stored search. Raises BadInput where the folder is none, or the file is damaged."""
    path = folder / FILE
    if not os.path.isfile(path):
        raise BadInput(
            f"--resume {folder}: not a folder that `attnbench crossover` wrote, it has no {FILE}. "
            f"Go on with a suite's run by: attnbench run --resume {folder}"
        )
    data = parse_object(read_text(path), str(path))
    types: dict[str, Any] = {"operators": list, "low": int, "high": int, "precision": float}
    wrong = {f.name for f in fields(Question)} ^ set(data)
    wrong |= {name for name, value in data.items() if type(value) is not types.get(name, str)}
    if wrong or not all(isinstance(name, str) for name in data["operators"]):
        raise BadInput(f"{path}: {', '.join(sorted(wrong)) or 'operators'}: missing, foreign or mistyped. {REPAIR}")
    return Question(**{**data, "operators": tuple(data["operators"])})


def name_sizes(asked: Question, folder: Path, visits: Iterable[Visit]) -> None:
    """Makes suite.yaml name the sizes that were visited, so that it describes the run; unchanged where none was."""
    column = {"image_size": "height"}.get(asked.axis, asked.axis)
    sizes = sorted({visit.cell[column] for visit in visits})
    data = parse(read_text(folder / SUITE), str(folder / SUITE))
    if sizes and data["sweep"][0][asked.axis] != sizes:
        data["sweep"][0][asked.axis] = sizes
        with storing(folder):
            replace(folder / SUITE, written(data))
