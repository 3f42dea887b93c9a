"""attnbench doctor: what this machine can measure, what would disturb it, and what to do about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from attnbench.measure.machine.condition import Condition
    from attnbench.measure.self_test import SelfTest

VERSION = 1
"""Of the JSON: raised when the meaning of a field changes or one is taken away; fields may be added."""


def command(
    form: Annotated[Literal["table", "json"], typer.Option("--format", help="How it is printed.")] = "table",
) -> None:
    """Look at the machine for about ten seconds: GPU, clocks, load, limits, timer, and a short self-test.

    Two fresh processes measure one small cell in turns; how far these may differ is the noise.
    Exit code: 0; 3 only where nothing can be measured.

    Example: attnbench doctor --format json
    """
    from attnbench.measure.examination import examine
    from attnbench.measure.platforms import check_can_measure

    check_can_measure("doctor")
    conditions, test = examine()
    if form == "json":
        sys.stdout.write(json.dumps(_document(conditions, test), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        _print(conditions, test)
    if test is None:
        raise typer.Exit(3)


def _document(conditions: Sequence[Condition], test: SelfTest | None) -> dict[str, Any]:
    """`version`, `measurable`, `self_test` (null where nothing can be measured) and `conditions`.

    self_test: device, noise_floor (a fraction; null beyond 1000), pairs (seconds of one call by the first and the
    second process), samples, flagged (samples by flag) and the columns that were measured.
    """
    tested = None
    if test is not None:
        tested = {
            "device": test.device,
            "noise_floor": test.noise if test.noise < 1000 else None,
            "pairs": [list(pair) for pair in test.pairs],
            "samples": test.samples,
            "flagged": dict(test.flagged),
            "columns": sorted(test.metrics),
        }
    rows = [asdict(condition) for condition in conditions]
    return {"version": VERSION, "measurable": test is not None, "self_test": tested, "conditions": rows}


def _print(conditions: Sequence[Condition], test: SelfTest | None) -> None:
    from attnbench.outputs import table
    from attnbench.outputs._rows import Listing
    from attnbench.units import count

    rows = [{"": c.level, "what": c.subject, "found": c.found, "what to do": c.todo} for c in conditions]
    table.rows(Listing(rows, sentences=("what to do",)))
    warnings = sum(c.level == "warning" for c in conditions)
    disturbances = count(warnings, "warning") if warnings else "nothing disturbs it"
    if test is None:
        print("Nothing can be measured here: see what is missing above.")
    else:
        print(f"This machine can measure on {test.device}; {disturbances}.")
