"""What operators put into an answer, made fit to be stored."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from attnbench.errors import MOST_OF_A_REASON, printable
from attnbench.measure.protocol import CellAnswer, VisitAnswer
from attnbench.store.reading import is_metric

A = TypeVar("A", bound=CellAnswer)


def storable(answer: A) -> A:
    """An answer of which all can be stored, read again and shown, whatever an operator has put into it."""
    figures, left_out = _figures(answer) if isinstance(answer, VisitAnswer) else ({}, ())
    return replace(
        answer,
        reason=printable(answer.reason, MOST_OF_A_REASON),
        warnings=tuple(printable(text, MOST_OF_A_REASON) for text in (*answer.warnings, *left_out)),
        **figures,
    )


def _figures(answer: VisitAnswer) -> tuple[dict[str, Any], list[str]]:
    """The fields of a visit that it alone has, and a sentence about each metric that is left out."""
    metrics = {name: _number(value) for name, value in answer.metrics.items()}
    left_out = [
        f"{name} = {printable(metrics.pop(name), 60)} is no value that it can have, and left out"
        for name in [name for name, value in metrics.items() if not is_metric(name, value)]
    ]
    operations: dict[str, int] = {}
    for name, count in answer.operations.items():
        operations[printable(name)] = operations.get(printable(name), 0) + count
    return {"kernel": printable(answer.kernel), "metrics": metrics, "operations": operations}, left_out


def _number(value: Any) -> Any:
    """NumPy's and torch's numbers as Python's; anything else as it is."""
    try:
        return value if type(value) in (int, float) else value.item()
    except Exception:
        return value
