"""attnbench doctor: what this machine can measure, what would disturb it, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from attnbench.outputs.listing import Format, write


def command(
    form: Annotated[Format, typer.Option("--format", help="json: one object per line of the table.")] = "table",
) -> None:
    """Look at the machine for about ten seconds: GPU, clocks, load, limits, timer, and a short self-test.

    Exit code: 1 only where nothing can be measured.

    Example: attnbench doctor --format json
    """
    from attnbench import conditions

    found = [*conditions.host(), *conditions.device()]
    able = all(condition.level != "missing" for condition in found)
    if able:
        found.append(conditions.self_test())
    shown = [{"": c.level, "what": c.subject, "found": c.found, "what to do": c.todo} for c in found]
    write([asdict(condition) for condition in found], form, table=shown)
    raise typer.Exit(0 if able else 1)
