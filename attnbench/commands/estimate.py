"""attnbench estimate: the analytic cost of operators at any size, and memory from shapes; nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnbench.commands._options import format_option
from attnbench.outputs import _formats as formats
from attnbench.outputs._rows import Listing, Row
from attnbench.units import shown

if TYPE_CHECKING:
    from attnbench.operator import Operator
    from attnbench.plan.mistakes import Notes
    from attnbench.problem import Cell, Problem

FIGURES = {
    "FLOPs": ("flops", "flop"),
    "reference": ("reference_flops", "flop"),
    "mult-adds": ("multiply_adds", "flop"),
    "traffic": ("bytes_required", "bytes"),
    "memory": ("peak_memory_bytes", "bytes"),
}
"""What the table shows, by heading: the field of a row, and its unit."""

INTENSITY = "FLOP/byte"

NOTES = (
    "analytic: from the formulas of the operators' files; nothing was computed.",
    "traffic: bytes that any impl must read and write. memory: predicted from shapes, the most that the reference "
    "holds beside its inputs, parameters included.",
)

Several = Annotated[list[str] | None, typer.Option(help="One or several: repeat it, or separate by commas.")]


def command(
    operator: Annotated[
        list[str], typer.Argument(help="Names, as `attnbench list operators` shows them.", metavar="OP...")
    ],
    seq_len: Several = None,
    image_size: Several = None,
    channels: Several = None,
    heads: Annotated[str, typer.Option(help="Number of heads; divides the channels.")] = "8",
    batch: Annotated[str, typer.Option(help="Number of samples.")] = "1",
    dtype: Annotated[str, typer.Option(help="float64, float32, bfloat16 or float16.")] = "float32",
    causal: Annotated[bool, typer.Option("--causal", help="Token i sees only tokens up to i.")] = False,
    mode: Annotated[str, typer.Option(help="fwd, or fwd_bwd.")] = "fwd",
    scope: Annotated[str, typer.Option(help="core, or layer (with the projections).")] = "core",
    param: Annotated[
        list[str] | None, typer.Option(help="key=value; applied to the operators that have the key.")
    ] = None,
    operators_from: Annotated[list[str] | None, typer.Option(help="A .py file or package of your own.")] = None,
    form: Annotated[str, format_option("rows", "json: one object per operator and size.")] = "table",
) -> None:
    """Show FLOPs, multiply-adds, required traffic, arithmetic intensity and peak memory; nothing is computed.

    Sizes: --seq-len 1024,4096 or --image-size 28,32x64. A multiply-add counts as 2 FLOPs. traffic: bytes that any
    impl must read and write. memory: the most that the reference holds at once beside its inputs, parameters included.

    Example: attnbench estimate softmax linformer --seq-len 1024,65536 --param k=128
    """
    from attnbench.errors import BadInput
    from attnbench.plan.mistakes import Notes
    from attnbench.problem import MODES, SCOPES, Cell
    from attnbench.registry import outside_definition
    from attnbench.units import choice

    notes = Notes("the command line")
    modes = _read(notes, "--mode", [mode], choice(MODES))
    scopes = _read(notes, "--scope", [scope], choice(SCOPES))
    problems = _problems(notes, seq_len, image_size, channels, heads, batch, dtype, causal)
    loaded = _load(notes, operator, operators_from or [])
    params = _params(notes, loaded, param or [])
    notes.close()
    rows: list[Row] = []
    for name, one in loaded.items():
        for problem in problems:
            cell = Cell(name, "reference", scopes[0], modes[0], problem, params[name])
            rows.append(_row(one, cell, outside_definition(one, problem, params[name], scopes[0])))
    if all(row["flops"] is None for row in rows):
        raise BadInput("\n".join(dict.fromkeys(f"{row['operator']}: {row['reason']}." for row in rows)))
    glances = [_glance(row) for row in rows]
    if len({row["channels"] for row in rows}) == 1:
        glances = [{name: value for name, value in glance.items() if name != "C"} for glance in glances]
    reasons = dict.fromkeys(f"— {row['operator']}: {row['reason']}." for row in rows if row["reason"])
    listing = Listing(rows, glances, numbers=("N", "C", *FIGURES, INTENSITY), notes=(*NOTES, *reasons))
    formats.show("rows", listing, form)


def _read(notes: Notes, option: str, values: Sequence[Any], read: Any) -> list[Any]:
    result = []
    for value in values:
        try:
            result.append(read(value))
        except ValueError as error:
            notes.add(option, str(error))
    return result


def _split(values: Sequence[str] | None) -> list[Any]:
    """The parts of an option that takes several values, each as a suite reads it; as text where it is no value."""
    from attnbench.yaml_file import scalar

    parts = [part.strip() for value in values or () for part in value.split(",")]
    found: list[Any] = []
    for part in parts:
        try:
            found.append(scalar(part))
        except ValueError:
            found.append(part)
    return found


def _problems(
    notes: Notes,
    seq_len: Sequence[str] | None,
    image_size: Sequence[str] | None,
    channels: Sequence[str] | None,
    heads: str,
    batch: str,
    dtype: str,
    causal: bool,
) -> list[Problem]:
    from attnbench.plan.sweep import CHANNELS, MAX_BATCH, MAX_CHANNELS, MAX_TOKENS, Shape, Sweep, problems, read_side
    from attnbench.problem import DTYPES
    from attnbench.units import choice, whole

    found = len(notes.found)
    lengths = _read(notes, "--seq-len", _split(seq_len), whole(1, MAX_TOKENS))
    sides = _read(notes, "--image-size", _split(image_size), read_side)
    depths = _read(notes, "--channels", _split(channels) or [CHANNELS], whole(1, MAX_CHANNELS))
    head = _read(notes, "--heads", _split([heads]), whole(1, MAX_CHANNELS))
    batches = _read(notes, "--batch", _split([batch]), whole(1, MAX_BATCH))
    dtypes = _read(notes, "--dtype", [dtype], choice(DTYPES))
    if not (seq_len or image_size):
        notes.add("--seq-len", "missing. Give --seq-len 1024 or --image-size 32x32")
    if len(notes.found) > found:
        return []
    shape = Shape(batches[0], head[0], None, depths[0], dtypes[0], causal)
    _read(notes, "--channels", depths, shape.heads_of)
    sweep = Sweep(tuple(lengths), tuple(sides), tuple(depths))
    return problems(sweep, shape) if len(notes.found) == found else []


def _load(notes: Notes, names: Sequence[str], places: Sequence[str]) -> dict[str, Operator]:
    from attnbench.plan.schema import read_operator_name
    from attnbench.registry import operators

    sources = operators(places)
    chosen = sources if "all" in names else dict.fromkeys(_read(notes, "OP", names, read_operator_name(sources)))
    return {name: sources[name].load() for name in chosen}


def _params(notes: Notes, loaded: Mapping[str, Operator], given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By operator, its params: defaults, and what was given for keys it has."""
    from attnbench.plan.schema import read_given
    from attnbench.registry import resolve

    result = {}
    chosen = read_given(given, {name: list(operator.params) for name, operator in loaded.items()}, notes)
    for name, operator in loaded.items():
        try:
            result[name] = resolve(operator, chosen[name])
        except ValueError as error:
            notes.add(f"--param, for {name}", str(error))
    return result


def _row(operator: Operator, cell: Cell, outside: str | None) -> Row:
    from attnbench.measure.worker.forecast import footprint

    p = cell.problem
    form = operator.forms[cell.scope] if outside is None else None
    cost = form and form.cost(p, cell.params, cell.mode)
    memory = form and footprint(form, p, cell.params, cell.mode)
    return {
        "operator": cell.operator,
        "params": dict(cell.params),
        "scope": cell.scope,
        "mode": cell.mode,
        "dtype": p.dtype,
        "batch": p.batch,
        "heads": p.heads,
        "seq_len": p.seq_len,
        "height": p.height,
        "width": p.width,
        "channels": p.channels,
        "causal": p.causal,
        "source": "analytic",
        "flops": cost and cost.flops,
        "reference_flops": cost and cost.reference_flops,
        "multiply_adds": cost and _halved(cost.flops),
        "elementwise": cost and cost.elementwise,
        "bytes_required": cost and cost.bytes_required,
        "arithmetic_intensity": cost.flops / cost.bytes_required if cost and cost.bytes_required else None,
        "passes": cost and cost.passes,
        "reason": outside,
        "peak_memory_bytes": memory and memory.peak_bytes,
        "input_bytes": memory and memory.input_bytes,
        "parameter_bytes": memory and memory.parameter_bytes,
    }


def _halved(flops: int) -> int | float:
    return flops // 2 if flops % 2 == 0 else flops / 2


def _glance(row: Row) -> Row:
    """What the table shows. A dash: outside the definition, not known, or (intensity) nothing to divide by."""
    size = f"{row['height']}x{row['width']}" if row["height"] else str(row["seq_len"])
    amounts = {name: row[key] for name, (key, _) in FIGURES.items()}
    if row["peak_memory_bytes"] is not None:  # with the parameters, as the tables of a run show it
        amounts["memory"] += row["parameter_bytes"]
    intensity = row["arithmetic_intensity"]
    return {
        "operator": row["operator"],
        "N": size,
        "C": row["channels"],
        **{name: "—" if amount is None else shown(amount, FIGURES[name][1]) for name, amount in amounts.items()},
        INTENSITY: "—" if intensity is None else f"{intensity:.3g}",
    }
