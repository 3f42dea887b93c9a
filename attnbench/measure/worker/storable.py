"""What operators put into an answer, made fit to be stored."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attnbench.errors import MOST_OF_A_REASON, printable
from attnbench.measure.protocol import VisitAnswer
from attnbench.store.reading import is_metric


def storable(answer: VisitAnswer) -> VisitAnswer:
    """A visit's answer, of which all can be stored, read again and shown, whatever an operator has put into it."""
    metrics = {name: _number(value) for name, value in answer.metrics.items()}
    left_out = [name for name, value in metrics.items() if not is_metric(name, value)]
    warnings = [
        f"{name} = {printable(metrics.pop(name), 60)} is no value that it can have, and left out" for name in left_out
    ]
    operations: dict[str, int] = {}
    for name, count in answer.operations.items():
        operations[printable(name)] = operations.get(printable(name), 0) + count
    return replace(
        answer,
        reason=printable(answer.reason, MOST_OF_A_REASON),
        kernel=printable(answer.kernel),
        metrics=metrics,
        operations=operations,
        warnings=tuple(printable(text, MOST_OF_A_REASON) for text in (*answer.warnings, *warnings)),
    )


def _number(value: Any) -> Any:
    """NumPy's and torch's numbers as Python's; anything else as it is."""
    try:
        return value if type(value) in (int, float) else value.item()
    except Exception:
        return value
