"""The rows of each verb that lists something, and how people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from attnbench.axes import AXES
from attnbench.groups import groups_of
from attnbench.outputs._rows import Listing, Row
from attnbench.problem import canonical_params, columns_of, operator_with_impl
from attnbench.units import count, shown

if TYPE_CHECKING:
    from attnbench.analysis.cards import Rates
    from attnbench.analysis.crossover import Pair
    from attnbench.analysis.crossover_search import Search
    from attnbench.analysis.roofline import Roofline
    from attnbench.problem import Cell

_FIGURES = {
    "FLOPs": ("flops", "flop"),
    "eager": ("reference_flops", "flop"),
    "traffic": ("bytes_moved", "bytes"),
    "state": ("state_bytes", "bytes"),
    "memory": ("peak_memory_bytes", "bytes"),
}
"""What the table shows, by heading: the field of a row, and its unit."""

_INTENSITY = "FLOP/B"

_ANALYTIC = "analytic: from the formulas of the operators' files; nothing was computed."

_MEANINGS = {
    "eager": "FLOPs of the reference.",
    "traffic": "bytes that any impl must read and write.",
    "state": "what is kept of all tokens to continue from.",
    "memory": "predicted from shapes, the most that the reference holds beside its inputs, parameters included.",
}
"""Of columns of `estimate`."""

_UNKNOWN_MEMORY = (
    "not known from shapes, or by more operations than are followed for so many operators: estimate it alone"
)

_FASTER = (
    "below 1 ×: the copy rate is that of memory; what a call reads can stay in the chip's caches from call to call."
)

_READ_ONCE = (
    "measured by an earlier version, which did not store what must be read again: traffic counts every tensor once, so "
    "that the true roofline can be higher."
)

_SIZES = {"B": "batch", "H": "heads", "Hk": "kv_heads", "N": "seq_len", "Q": "query_len", "C": "channels"}
"""The sizes of a problem by heading."""

_FOLLOWED = {"Hk": "H", "Q": "N"}
"""What a size is that was not given."""


def _sizes(columns: Mapping[Any, Any]) -> dict[str, Any]:
    """Every size of a cell by its columns, under the table's heading."""
    sizes = {heading: columns.get(name) for heading, name in _SIZES.items()}
    sizes |= {heading: sizes[other] for heading, other in _FOLLOWED.items() if not isinstance(sizes[heading], int)}
    new = sizes["Q"] if sizes["Q"] != sizes["N"] else _tokens(columns)
    return {**sizes, "N": _tokens(columns), "Q": new}


def _without_common_sizes(table: Sequence[Row]) -> tuple[list[Row], str]:
    """The rows without the sizes that all have in common, N apart, and these in one line; Hk and Q only where some row
    has another H or N."""
    followed = {heading for heading, other in _FOLLOWED.items() if all(row[heading] == row[other] for row in table)}
    common = {heading for heading in _SIZES if heading != "N" and len({row[heading] for row in table}) == 1}
    rows: list[Row] = [{name: value for name, value in row.items() if name not in common | followed} for row in table]
    named = [f"{_SIZES[name]} {table[0][name]}" for name in _SIZES if name in common - followed]
    return rows, f"everywhere: {', '.join(named)}." if named else ""


def _telling(rows: Sequence[Mapping[Any, Any]], names: Sequence[str]) -> list[str]:
    """Of some columns those in which rows of the same operator differ."""
    values: dict[tuple[str, str], set[Any]] = {}
    for row in rows:
        for name in names:
            values.setdefault((name, row["operator"]), set()).add(row[name])
    several = {name for (name, _), texts in values.items() if len(texts) > 1}
    return [name for name in names if name in several]


def planned(cells: Sequence[Cell], skipped: Mapping[str, str], seconds: Mapping[str, float]) -> Listing:
    """Of `run --dry-run`.

    Args:
        cells: of the run.
        skipped: by key, why a cell cannot run.
        seconds: by key, what the others are expected to take.
    """
    rows = []
    for cell in cells:
        outlook = {"key": cell.key, "skipped": skipped.get(cell.key, ""), "expected_s": seconds.get(cell.key)}
        rows.append({**columns_of(cell), "size": cell.problem.size, **outlook})
    names = ["operator", "impl", "scope", "mode"]
    names += [name for name in ("dtype", "causal") if len({row[name] for row in rows}) > 1]
    table = [{**{name: row[name] for name in names}, **_sizes(row)} for row in rows]
    shown_rows, common = _without_common_sizes(table)
    return Listing(rows, shown_rows, numbers=tuple(_SIZES), notes=(common,) if common else ())


def rooflines(cells: Sequence[Roofline], rates: Rates) -> Listing:
    """Of `roofline`: every timed cell. rates: those of the hardware, for the note."""
    from attnbench.analysis.series import series_names

    every = [roofline.cell for roofline in cells]
    telling = _telling(every, ("scope", "causal", "params"))
    shown_as = series_names([{name: cell[name] for name in ("operator", "impl", "params")} for cell in every])
    columns = [name for name in ("scope", "causal", "mode", "dtype") if len({cell[name] for cell in every}) > 1]
    common = ", ".join(str(every[0][name]) for name in ("mode", "dtype") if every and name not in columns)

    def row(roofline: Roofline) -> Row:
        cell = roofline.cell
        names = {name: cell[name] for name in ("operator", "impl", *telling, "mode", "dtype")}
        ratio = roofline.ratio if roofline.roofline_s else None
        figures = {"seconds": roofline.seconds, "roofline_s": roofline.roofline_s, "ratio": ratio}
        return {**names, **_sizes(cell), **figures, "bound": roofline.bound}

    def texts(roofline: Roofline) -> Row:
        cell, required = roofline.cell, roofline.roofline_s
        return {
            "operator": shown_as[cell["operator"], cell["impl"], cell["params"]],
            **{name: cell[name] for name in columns},
            **_sizes(cell),
            "time": shown(roofline.seconds, "s"),
            "roofline": shown(required, "s") if required else "—",
            "over": f"{roofline.ratio:.3g}×" if required else "—",
            "bound": roofline.bound if required else "—",
        }

    matmul = ", ".join(f"{rate / 1e12:.3g} TFLOP/s {dtype}" for dtype, rate in rates.matmul_flops_per_s.items())
    table, sizes = _without_common_sizes([texts(cell) for cell in cells])
    everywhere = ", ".join(filter(None, (common, sizes.removeprefix("everywhere: ").removesuffix("."))))
    return Listing(
        [row(cell) for cell in cells],
        table,
        numbers=(*_SIZES, "time", "roofline", "over"),
        notes=(
            *([f"everywhere: {everywhere}."] if everywhere else ()),
            "over: the time over the roofline, which is the longer of the products and the traffic (bound)."
            if cells
            else "No cell of this run was timed.",
            f"measured in this run: matmul {matmul}; copy {rates.copy_bytes_per_s / 1e9:.3g} GB/s.",
            *(["—: nothing is required of it."] if not all(roofline.roofline_s for roofline in cells) else ()),
            *([_FASTER] if any(roofline.ratio < 1 for roofline in cells) else ()),
            *([_READ_ONCE] if any(roofline.reads_once for roofline in cells) else ()),
        ),
    )


def described(rows: Sequence[Row]) -> Listing:
    """Of `list suites`, `list metrics` and `list properties`."""
    return Listing(rows, sentences=("meaning", "description"))


def operators(rows: Sequence[Row]) -> Listing:
    """Of `list operators`: by family, what fits a table of 80 columns."""
    table: list[Row] = []
    for family, members in groupby(rows, key=itemgetter("family")):
        texts = [_operator_texts(row) for row in members]
        table += [{**dict.fromkeys(texts[0], ""), "operator": family}, *texts]
    return Listing(rows, table, sentences=("notes",), notes=(*_OPERATOR_NOTES, *_shared(rows), *_reasons(rows)))


_OPERATOR_NOTES = (
    "state: how what is kept to continue from grows, in decoding; empty: nothing is, it cannot decode. form: causal, "
    "full, where every token sees all others, or both. What one lacks, a kind has or has not: `attnbench list "
    "properties`.",
    "Scopes, parameters, papers and dtypes: --format json.",
)

_IN_OTHER_COLUMNS = ("exact", "drop_in", "causal", "decode")
"""Properties that the table of operators does not name as lacking: few are exact or near it, the rest shows in `form`
and `state`."""


def _operator_texts(row: Row) -> Row:
    """The fields of an operator. Its notes: what it lacks, then of kinds, and of the causal form beside the full one,
    what is not so for the first."""
    (form, default), *of_causal = row["properties"].items()
    kinds = ", ".join(_kind_text(name, kind, row["time"], default) for name, kind in row["kinds"].items())
    others = [f"{name} form: {text}" for name, other in of_causal if (text := _differences(other, default))]
    others += ["causal form: with other params"] if row["causal"] is True and "causal" not in row["properties"] else []
    lacks = ", ".join(name for name, has in default.items() if not has and name not in _IN_OTHER_COLUMNS)
    notes = [f"lacks {lacks}"] * bool(lacks) + [f"kinds: {kinds}"] * bool(kinds) + others
    return {
        "operator": f"  {row['name']}",
        "year": row["paper"]["year"],
        "time": row["time"],
        "memory": row["memory"],
        "state": row["state"],
        "on": row["domains"][0] if len(row["domains"]) == 1 else "any",
        "form": "both" if of_causal else form,
        "notes": f"  {'; '.join(notes)}" if notes else "",
    }


def _kind_text(name: str, kind: Row, time: str, default: Mapping[str, bool]) -> str:
    """A kind, and in what it differs from the default one."""
    differences = _differences(next(iter(kind["properties"].values())), default)
    other = ([kind["time"]] if kind["time"] != time else []) + ([differences] if differences else [])
    return f"{name} ({', '.join(other)})" if other else name


def _differences(properties: Mapping[str, bool], default: Mapping[str, bool]) -> str:
    """The names of properties in which these differ from others, `not` before one that these lack."""
    return ", ".join(name if has else f"not {name}" for name, has in properties.items() if has != default[name])


def _shared(rows: Sequence[Row]) -> list[str]:
    """Which operators have what most lack."""

    def having(name: str) -> list[str]:
        return [row["name"] for row in rows if next(iter(row["properties"].values()))[name]]

    exact = having("exact")
    groups = {
        "exact": exact,
        "drop_in, not exact": [name for name in having("drop_in") if name not in exact],
        "see what contents have chosen": [row["name"] for row in rows if "chosen" in row["pairs"].values()],
    }
    return [f"{what}: {', '.join(names)}." for what, names in groups.items() if names]


MOST_NAMED = 6
"""Of operators, in a note."""


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Which impls run here, why the others do not, and why operators have none for a GPU."""
    places: dict[str | None, dict[str, list[str]]] = {}
    for row in rows:
        for impl, reason in next(iter(row["impls"].values())).items():
            places.setdefault(reason, {}).setdefault(impl, []).append(row["name"])

    def listed(impls: Mapping[str, Sequence[str]]) -> str:
        texts = []
        for impl, names in impls.items():
            text = f"all {len(rows)}" if len(names) == len(rows) > 1 else f"{len(names)} operators"
            texts.append(f"{impl} ({', '.join(names) if len(names) <= MOST_NAMED else text})")
        return ", ".join(texts)

    return [
        *(
            f"Impls that {f'cannot run here: {reason}' if reason else 'run here'}: {listed(impls)}."
            for reason, impls in sorted(places.items(), key=lambda place: place[0] is not None)
        ),
        *(f"{row['name']} has no impl cuda: {row['no_kernel']}." for row in rows if row["no_kernel"]),
    ]


def estimates(rows: Sequence[Row]) -> Listing:
    """Of `estimate`: what its operator defines. A dash: not known, or (intensity) nothing to divide by."""

    from attnbench.analysis.series import series_names

    dtypes = {row["dtype"] for row in rows}
    variants = [(row["operator"], "reference", canonical_params(row["params"])) for row in rows]
    names = series_names([dict(zip(("operator", "impl", "params"), each, strict=True)) for each in variants])

    def texts(row: Row) -> Row:
        amounts = {name: row[key] for name, (key, _) in _FIGURES.items()}
        if row["peak_memory_bytes"] is not None:  # with the parameters, as the tables of a run show it
            amounts["memory"] += row["parameter_bytes"]
        intensity = row["arithmetic_intensity"]
        return {
            "operator": names[row["operator"], "reference", canonical_params(row["params"])],
            **({"dtype": row["dtype"]} if len(dtypes) > 1 else {}),
            **_sizes(row),
            **{name: "—" if amount is None else shown(amount, _FIGURES[name][1]) for name, amount in amounts.items()},
            _INTENSITY: "—" if intensity is None else f"{intensity:.3g}",
        }

    defined = [row for row in rows if not row["reason"]]
    table, common = _without_common_sizes([texts(row) for row in defined]) if defined else ([], "")
    if all(row["state_bytes"] is None for row in rows):
        table = [{name: value for name, value in row.items() if name != "state"} for row in table]
    unknown = ", ".join(dict.fromkeys(row["operator"] for row in defined if row["peak_memory_bytes"] is None))
    notes = (
        *([common] if common else ()),
        _ANALYTIC,
        *([" ".join(f"{name}: {text}" for name, text in _MEANINGS.items() if name in table[0])] if table else ()),
        *([f"memory of {unknown}: {_UNKNOWN_MEMORY}."] if unknown else ()),
        *reasons(rows),
    )
    return Listing(rows, table, numbers=(*_SIZES, *_FIGURES, _INTENSITY), notes=notes)


def reasons(rows: Sequence[Row]) -> list[str]:
    """A sentence for each reason that rows have, with their operators."""
    named = groups_of(
        (row["reason"], operator_with_impl(row["operator"], row.get("impl", "reference")))
        for row in rows
        if row["reason"]
    )
    return [f"— {', '.join(dict.fromkeys(names))}: {reason}." for reason, names in named.items()]


def searches(
    searched: Sequence[Search],
    baseline: str,
    axis: str,
    over: str = "",
    named: Mapping[str, tuple[str, str]] | None = None,
) -> Listing:
    """Of `crossover`: a row for each search. kind: of `analysis.crossover.Crossover`.

    Args:
        searched: the searches.
        baseline, axis: as requested.
        over: the second axis; empty: there is none.
        named: of each search, by its name, the series and its value on the second axis.
    """
    from attnbench.outputs._run_tables import crossover_text

    def row(search: Search) -> Row:
        crossover, nearest, beyond = search.crossover(), search.crossing(), search.beyond
        series, value = (named or {}).get(search.series, (search.series, ""))
        return {
            "series": series,
            **({"over": over, "value": value} if over else {}),
            "baseline": baseline,
            "axis": axis,
            "kind": crossover.kind,
            "crossover": crossover_text(crossover, axis, baseline),
            "crossing": asdict(nearest) if nearest else None,
            "crossings": [asdict(crossing) for crossing in crossover.crossings],
            "sizes": search.sizes,
            "rounds": search.rounds,
            "one_call": {"size": beyond.size, "ratio": _ratio(beyond)} if beyond else None,
            "ended": search.ended,
            "warnings": search.warnings(),
        }

    def texts(search: Search, row: Row) -> Row:
        one, place = row["one_call"], partial(AXES[axis].place, measured=True)
        beyond = f"; one call at {place(one['size'])}: {one['ratio']:.2f}× the baseline" if one and one["ratio"] else ""
        ended = row["ended"] + beyond + "".join(f"; {text}" for text in row["warnings"])
        counts = {"rounds": row["rounds"], "cells": len(search.every_size)} if over else {"sizes": len(row["sizes"])}
        return {
            "series": row["series"],
            **({over: row["value"]} if over else {}),
            f"cheaper than {row['baseline']}": row["crossover"],
            **counts,
            "ended": "" if over and search.is_precise and not row["warnings"] else ended,
        }

    rows = [row(search) for search in searched]
    table = [texts(search, row) for search, row in zip(searched, rows, strict=True)]
    return Listing(
        rows,
        table,
        numbers=(over, "sizes", "rounds", "cells"),
        sentences=("ended",),
        notes=_cells_note(searched, over) if over else (),
    )


def _cells_note(searched: Sequence[Search], over: str) -> tuple[str, ...]:
    """What the search of a border measured, and what a grid as fine has."""
    cells = sum(len(search.every_size) for search in searched)
    grid = sum(1 + math.ceil(math.log(search.high / search.low) / math.log(search.width) - 1e-9) for search in searched)
    return (
        f"{count(cells, 'cell')} (a size at a value of {over}, with its baseline) were measured; a grid as fine has "
        f"{grid}. A crossing between two sizes is the two measured ones beside it.",
    )


def _ratio(pair: Pair) -> float | None:
    """Of one call: series over baseline; None where one of them did not run."""
    from attnbench.analysis.crossover_search import side

    gap = side(pair)
    return math.exp(gap) if gap is not None and math.isfinite(gap) else None


def conditions(document: Mapping[str, Any]) -> Listing:
    """Of `doctor`. document: `measure.examination.document`."""
    rows, test = document["conditions"], document["self_test"]
    table = [
        {"": row["level"], "what": row["subject"], "found": row["found"], "what to do": row["todo"]} for row in rows
    ]
    warnings = sum(row["level"] == "warning" for row in rows)
    verdict = "Nothing can be measured here: see what is missing above."
    if test is not None:
        disturbances = count(warnings, "warning") if warnings else "nothing disturbs it"
        verdict = f"This machine can measure on {test['device']}; {disturbances}."
    return Listing(rows, table, sentences=("what to do",), notes=(verdict,), document=document)


def _tokens(columns: Mapping[Any, Any]) -> str:
    """The size of a cell by its columns: its tokens, or the sides of its image."""
    height = columns["height"]
    return f"{height}x{columns['width']}" if isinstance(height, int) else str(columns["seq_len"])
