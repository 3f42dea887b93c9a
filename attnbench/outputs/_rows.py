"""Rows of plain values, for what is listed, not measured. No pandas."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Listing:
    """Rows that share their keys, and how people read them.

    Args:
        rows: every field, in base units: what JSON and CSV hold. Nested values are JSON in CSV; None is an empty field.
        table: what tables show instead, where `rows` hold more than a person reads at a glance; None: the rows.
        numbers: columns that are set to the right.
        sentences: columns that stand below their row, on lines of their own.
        lead, notes: lines above and below the table.
        document: what JSON shows instead of the rows, where they are a part of it.
    """

    rows: Sequence[Row]
    table: Sequence[Row] | None = None
    numbers: Sequence[str] = ()
    sentences: Sequence[str] = ()
    lead: Sequence[str] = ()
    notes: Sequence[str] = ()
    document: Mapping[str, Any] | None = None

    @property
    def shown(self) -> Sequence[Row]:
        """The rows of a table."""
        return self.rows if self.table is None else self.table


def text_of(value: Any) -> str:
    """A value in a field of a table or of CSV."""
    if value is None:
        return ""
    if isinstance(value, (dict, list, tuple, bool)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
