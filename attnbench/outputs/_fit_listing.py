"""The rows of `fit`, and how people read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attnbench.outputs._listings import reasons
from attnbench.outputs._rows import Listing, Row
from attnbench.problem import canonical_params, operator_with_impl
from attnbench.units import count, percent, shown

if TYPE_CHECKING:
    from attnbench.analysis.memory_budget import Budget

_SEARCHED = {"seq_len": ("N", "token"), "image_size": ("side", "pixel"), "batch": ("batch", "sample")}
"""By axis the heading of its largest size, and one of what that many are of."""

_PARTS = {
    "parameter": "parameters",
    "gradient": "gradients",
    "saved": "kept for backward",
    "state": "state",
    "working": "working memory",
}
"""The parts of what is needed, as tables name them."""

_COUNTED = {
    "train": "parameters and their gradients, what each layer keeps for its backward, and the most that one layer "
    "holds at once, inputs included",
    "infer": "parameters, and the most that one layer holds at once, inputs included",
    "decode": "parameters, what is kept of all tokens, and the most that a step of one layer holds at once, inputs "
    "included",
}
"""By mode, what is counted of the layers."""


def listing(rows: Sequence[Row], held: Budget) -> Listing:
    """Of `fit`. held: the memory, and what of it is reserved."""
    axis = rows[0]["axis"]
    heading, unit = _SEARCHED[axis]
    from attnbench.analysis.series import series_names

    within = [{**row, "params": canonical_params(row["params"])} for row in rows if row["outcome"] == "fits"]
    names = series_names(within)
    fixed = [name for name in _FIXED if name not in _SET[axis]]
    fixed = [name for name in fixed if any(row[name] != row.get(_FOLLOWS.get(name, "")) for row in within)]
    differing = [name for name in fixed if len({row[name] for row in within}) > 1]

    def texts(row: Row) -> Row:
        needed, mark = row["memory_bytes"], "≥ " if row["at_bound"] else "" if row["exact"] else "≈ "
        units = row["batch"] * (1 if axis == "batch" else row["seq_len"])
        share = needed and row[f"{row['largest_part']}_bytes"] / needed
        return {
            "operator": names[row["operator"], row["impl"], row["params"]],
            **{name: row[name] for name in differing},
            heading: f"{mark}{row['largest']}",
            f"per {unit}": "" if row["at_bound"] or not needed else shown(needed / units, "bytes"),
            "mostly": f"{_PARTS[row['largest_part']]}, {percent(share)}" if share else "",
        }

    common = [_fixed_text(name, within[0][name]) for name in fixed if name not in differing] if within else []
    notes = (
        *([f"everywhere: {', '.join(common)}."] if common else ()),
        _held_text(held),
        f"counted of {count(rows[0]['layers'], 'layer')} of the operator: {_COUNTED[rows[0]['mode']]}. Not counted: "
        "optimizer states, and the rest of a model.",
        "predicted from shapes; nothing was computed.",
        *_notes(rows),
    )
    numbers = (heading, f"per {unit}", *differing)
    return Listing(rows, [texts(row) for row in within], numbers=numbers, notes=notes)


_FIXED = (
    "layers",
    "batch",
    "seq_len",
    "height",
    "width",
    "heads",
    "kv_heads",
    "query_len",
    "channels",
    "dtype",
    "causal",
    "scope",
)
"""What may be the same of all rows of a fit."""

_SET = {
    "seq_len": ("seq_len", "height", "width"),
    "image_size": ("seq_len", "height", "width"),
    "batch": ("batch",),
}
"""By axis, what its sizes set."""

_FOLLOWS = {"kv_heads": "heads", "query_len": "seq_len"}
"""What is told only where it is not that of another column."""


def _fixed_text(name: str, value: Any) -> str:
    if name == "causal":
        return "causal" if value else "full"
    return str(value) if name in ("dtype", "scope") else f"{name} {value}"


def _held_text(held: Budget) -> str:
    left, total = shown(held.left_bytes, "bytes"), shown(held.total_bytes, "bytes")
    of = f"{left} of the {total} of {held.of}"
    if held.library_bytes:
        return f"{of}: {shown(held.library_bytes, 'bytes')} are reserved for what libraries take inside a call."
    context, fragments = shown(held.context_bytes, "bytes"), shown(held.fragmentation_bytes, "bytes")
    return (
        f"{of}: {context} are reserved for CUDA's context and {fragments} "
        f"({percent(held.fragmentation_bytes / held.total_bytes)}) for fragmentation, both assumed."
    )


def _notes(rows: Sequence[Row]) -> list[str]:
    """What the marks of a fit mean, and why operators have no row."""
    within = [row for row in rows if row["outcome"] == "fits"]

    def name(row: Row) -> str:
        return operator_with_impl(row["operator"], row["impl"])

    expected = [f"{name(row)} {row['exact_up_to']}" for row in within if not row["exact"] and not row["at_bound"]]
    return [
        *(["≥: no larger size was tried."] if any(row["at_bound"] for row in within) else ()),
        *([f"≈: expected from sizes whose memory is known exactly: up to {', '.join(expected)}."] if expected else ()),
        *(f"{name(row)}: nothing larger than {row['largest']}: {row['reason']}." for row in within if row["reason"]),
        *reasons([row for row in rows if row["outcome"] != "fits"]),
    ]
