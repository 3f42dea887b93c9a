"""What `choose` shows: a ranking, and what is not in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from attnbench.analysis.cards import MEASURED
from attnbench.analysis.series import series_names
from attnbench.outputs._rows import Listing, Row
from attnbench.problem import canonical_params, columns_of
from attnbench.units import percent, shown

if TYPE_CHECKING:
    from attnbench.analysis.cards import Rates
    from attnbench.analysis.choice import Candidate, Choice, Excluded, Ranked
    from attnbench.problem import Cell

Names = Mapping[tuple[str, str, str], str]
"""By operator, impl and canonical params, what it is called here."""

_SOURCES = {"measured": "", "interpolated": "≈ ", "analytic": "≥ "}
"""What stands before a time that was not measured."""

_MEMORY_SOURCES = {"measured": "", "predicted": "~ ", "interpolated": "≈ ", "": ""}


def listing(choice: Choice) -> Listing:
    """The ranking with everything that JSON and CSV hold."""
    names = names_of(choice)
    rows = [
        *(_row(each, names) for each in (*choice.timed, *choice.analytic)),
        *(_excluded_row(each, names) for each in choice.out),
    ]
    return Listing(
        rows,
        _table(choice, names),
        numbers=("#", "time", "±", "memory", "state", "FLOPs"),
        lead=(_verdict(choice, names), problem_text(choice)),
        notes=tuple(_notes(choice, names)),
        document=_document(choice, names, rows),
    )


def names_of(choice: Choice) -> Names:
    """What everything of a choice is called: with the params in which two of an operator differ."""
    cells = [each.candidate.cell for each in (*choice.timed, *choice.analytic)] + [each.cell for each in choice.out]
    return series_names([{"operator": c.operator, "impl": c.impl, "params": canonical_params(c.params)} for c in cells])


def name_of(cell: Cell, names: Names) -> str:
    """What a cell is called."""
    return names[cell.operator, cell.impl, canonical_params(cell.params)]


def _row(ranked: Ranked, names: Names) -> Row:
    each = ranked.candidate
    error = asdict(each.error) if each.error else {}
    return {
        "name": name_of(each.cell, names),
        "status": "ranked",
        "rank": ranked.rank,
        "level": ranked.level,
        "pareto": ranked.leanest,
        "time_s": each.seconds,
        "time_low_s": each.low,
        "time_high_s": each.high,
        "time_source": each.source,
        "between": each.between and list(each.between),
        "bound": each.bound or None,
        "memory_bytes": each.memory_bytes,
        "memory_source": each.memory_source or None,
        "state_bytes": each.state_bytes,
        "flops": each.flops,
        "softmax_error": error.get("value"),
        "mean_error": error.get("mean"),
        "error_at": error.get("size") or None,
        "properties": dict(each.properties),
        "why": None,
        "unmet": None,
        "reason": None,
        **columns_of(each.cell),
    }


def _excluded_row(each: Excluded, names: Names) -> Row:
    return {
        **dict.fromkeys(_FIELDS),
        "name": name_of(each.cell, names),
        "status": "out",
        "memory_bytes": each.memory_bytes,
        "why": each.why,
        "unmet": list(each.needs) or None,
        "reason": each.reason or None,
        **columns_of(each.cell),
    }


_FIELDS = (
    "name", "status", "rank", "level", "pareto", "time_s", "time_low_s", "time_high_s", "time_source", "between",
    "bound", "memory_bytes", "memory_source", "state_bytes", "flops", "softmax_error", "mean_error", "error_at",
    "properties", "why", "unmet", "reason",
)  # fmt: skip
"""Of a row, before the columns of its cell."""


def _document(choice: Choice, names: Names, rows: Sequence[Row]) -> Row:
    problem = choice.problem
    return {
        "problem": {**vars(problem), "head_dim": problem.head_dim, "mode": choice.mode, "scope": choice.scope},
        "needs": list(choice.needs),
        "memory_limit_bytes": choice.memory_limit_bytes,
        "memory_limit_of": choice.memory_of or None,
        "run": choice.run or None,
        "device": choice.device,
        "rates": asdict(choice.rates) if choice.rates else None,
        "unlike": {name: {"problem": own, "run": its} for name, (own, its) in choice.unlike.items()},
        "best": [name_of(each.candidate.cell, names) for each in choice.best],
        "choices": [row for row in rows if row["status"] == "ranked"],
        "out": [row for row in rows if row["status"] == "out"],
    }


def _table(choice: Choice, names: Names) -> list[Row]:
    every = [each.candidate for each in (*choice.timed, *choice.analytic)]
    shows = {
        "±": any(_half(each) for each in every),
        "state": any(each.state_bytes is not None for each in every),
    }
    table: list[Row] = []
    for heading, group in (("by the run", choice.timed), ("at least", choice.analytic)):
        texts = [_texts(each, names) for each in group]
        table += [{**dict.fromkeys(texts[0], ""), "operator": heading}] if texts else []
        table += texts
    return [{name: text for name, text in row.items() if shows.get(name, True)} for row in table]


def _texts(ranked: Ranked, names: Names) -> Row:
    each = ranked.candidate
    half = _half(each)
    return {
        "#": str(ranked.rank),
        "operator": f"  {name_of(each.cell, names)}",
        "time": _SOURCES[each.source] + shown(each.seconds, "s"),
        "±": percent(half) if half else "",
        "memory": _MEMORY_SOURCES[each.memory_source] + (shown(each.memory_bytes, "bytes") or "not known"),
        "state": "" if each.state_bytes is None else shown(each.state_bytes, "bytes"),
        "FLOPs": "" if each.flops is None else shown(each.flops, "flop"),
        "vs softmax": _beside_softmax(each),
    }


def _half(candidate: Candidate) -> float | None:
    """Half the interval of a time, as a share of it."""
    if candidate.low is None or candidate.high is None:
        return None
    return math.sqrt(candidate.high / candidate.low) - 1


def _beside_softmax(candidate: Candidate) -> str:
    if candidate.exact:
        return "exact"
    error = candidate.error
    if error is None:
        return "estimate" if candidate.estimates else "other"
    return f"{error.value:.2g}{'!' if error.mean is not None and error.value >= error.mean else ''}"


def _notes(choice: Choice, names: Names) -> Iterator[str]:
    yield from _origins(choice, names)
    every = [each.candidate for each in (*choice.timed, *choice.analytic)]
    if every:
        predicted = any(each.memory_source == "predicted" for each in every)
        between = any(each.memory_source == "interpolated" for each in every)
        marks = ["~ predicted from shapes"] * predicted + ["≈ between two measured ones"] * between
        yield f"memory: all that is alive at the peak of a call, inputs included{''.join(f'; {m}' for m in marks)}."
        if any(each.state_bytes is not None for each in every):
            yield "state: what is kept of all tokens to decode the next one."
        yield from _error_notes(every)
    yield from _out(choice, names)


def _verdict(choice: Choice, names: Names) -> str:
    best = [name_of(each.candidate.cell, names) for each in choice.best]
    if not best:
        return "Nothing meets all that is asked for: the reasons stand below. Drop a need or raise the limit."
    if not choice.timed:
        return f"The least roofline: {', '.join(best)}. Nothing of this is measured."
    if not choice.has_intervals:
        return (
            f"The fastest: {best[0]}; which others are level with it is not known, as this run has no intervals here. "
            "Measure more rounds or sizes."
        )
    if len(best) == 1:
        return f"The fastest: {best[0]}."
    return f"Level with the fastest, {len(best)} that cannot be told apart, exact ones first: {', '.join(best)}."


def problem_text(choice: Choice) -> str:
    """What a choice is for, in a line."""
    problem = choice.problem
    size = f"image {problem.height}x{problem.width}" if problem.height else f"{problem.seq_len} tokens"
    given = [f"{name} {number}" for name, number in problem.given.items()]
    sizes = [f"batch {problem.batch}", f"heads {problem.heads}", *given, f"head_dim {problem.head_dim}"]
    parts = [size, *sizes, problem.dtype, "causal" if problem.causal else "full", choice.mode, f"scope {choice.scope}"]
    needs = f"; needs {', '.join(choice.needs)}" if choice.needs else ""
    limit = ""
    if choice.memory_limit_bytes is not None:
        owner = f", that of {choice.memory_of}" if choice.memory_of else ""
        limit = f"; memory up to {shown(choice.memory_limit_bytes, 'bytes')}{owner}"
    return f"for: {', '.join(parts)}{needs}{limit}."


def _origins(choice: Choice, names: Names) -> Iterator[str]:
    """Where times are from."""
    if choice.timed:
        sources = {each.candidate.source for each in choice.timed}
        texts = ["measured"] * ("measured" in sources)
        if "interpolated" in sources:
            ends = dict.fromkeys(each.candidate.between for each in choice.timed if each.candidate.between)
            places = " and ".join(f"{low} and {high}" for low, high in ends)
            texts.append(f"≈ interpolated in logs between {choice.axis} {places}")
        yield f"by the run: {choice.run} on {choice.device}; {', '.join(texts)}; ±: half the 95 % interval."
    elif choice.run:
        differences = "; ".join(f"{name}: {its}, not {own}" for name, (own, its) in choice.unlike.items())
        yield f"The run {choice.run} has no time of this problem ({differences}); nothing is extrapolated."
    if choice.analytic and choice.rates is not None:
        yield from _rates(choice)
    if choice.timed and choice.analytic:
        below = [name_of(each.candidate.cell, names) for each in choice.may_be_faster]
        if below:
            yield f"Could be faster than the first, if measured: {', '.join(below)}; the others by roofline cannot."
        else:
            yield "None of those by roofline can be faster than the first."


def _rates(choice: Choice) -> Iterator[str]:
    rates, dtype = choice.rates, choice.problem.dtype
    assert rates is not None
    yield (
        f"at least: ≥ analytic, the roofline of {rates.of}, {_rate_texts(rates, dtype)} ({rates.origin}). Nothing is "
        "measured there: implementations take up to tens of times as long, some more than others."
    )
    measured = MEASURED.get(rates.of)
    if measured is not None and dtype in measured.matmul_flops_per_s:
        yield f"{measured.of} reached {_rate_texts(measured, dtype)} ({measured.origin})."


def _rate_texts(rates: Rates, dtype: str) -> str:
    return f"{shown(rates.matmul_flops_per_s[dtype], 'flop')}FLOP/s {dtype} and {rates.copy_bytes_per_s / 1e9:.4g} GB/s"


def _error_notes(every: Iterable[Candidate]) -> Iterator[str]:
    errors = [each.error for each in every if each.error is not None]
    texts = ["exact: softmax attention itself"]
    if errors:
        at = sorted({error.size for error in errors if error.size}, key=lambda size: (len(size), size))
        where = f", measured at {', '.join(at)}" if at else ""
        texts.append(f"a number: relative error of an estimate at a logit scale of 1{where}")
        if any(error.mean is not None and error.value >= error.mean for error in errors):
            texts.append("!: no nearer than the mean of v")
    if any(each.estimates and each.error is None for each in every):
        texts.append("estimate: of softmax, its error not measured here")
    if any(not each.exact and not each.estimates for each in every):
        texts.append("other: another function, to be trained with")
    yield f"vs softmax: {'; '.join(texts)}."


_WHY = {
    "nothing": "computes nothing",
    "undefined": "not defined for this problem",
    "need": "lacks what is needed",
    "failed": "failed in the run",
    "memory": "needs more memory",
    "unknown": "no time is known",
}
"""By the kind of reason, in the order in which they stand: what an operator that is out does."""


def _out(choice: Choice, names: Names) -> Iterator[str]:
    """Why the others are out: a line for each kind of reason, those with the same one together."""
    for why, text in _WHY.items():
        reasons: dict[str, list[str]] = {}
        for each in choice.out:
            if each.why == why:
                reasons.setdefault(_reason(each), []).append(name_of(each.cell, names))
        parts = [f"{', '.join(named)}{f' ({reason})' if reason else ''}" for reason, named in reasons.items()]
        if parts:
            yield f"out, {text}: {'; '.join(parts)}."


def _reason(each: Excluded) -> str:
    if each.why == "memory":
        return shown(each.memory_bytes, "bytes")
    return ", ".join([*(f"no {need}" for need in each.needs), *([each.reason] if each.reason else [])])
