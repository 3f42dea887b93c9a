"""What `choose` shows: a ranking, and what is not in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

from attnbench.analysis.cards import MEASURED
from attnbench.analysis.series import params_text
from attnbench.groups import groups_of
from attnbench.outputs._rows import Listing, Row
from attnbench.problem import MODES_SHORT, canonical_params, columns_of, operator_with_impl
from attnbench.properties import FORMS
from attnbench.units import percent, shown

if TYPE_CHECKING:
    from attnbench.analysis.cards import Rates
    from attnbench.analysis.choice import Candidate, Choice, Error, Excluded, Ranked
    from attnbench.problem import Cell


class Name(NamedTuple):
    """What a cell is called: the operator with its impl, the params that tell it from others, and both in one."""

    short: str
    params: str
    full: str


Names = Mapping[tuple[str, str, str], Name]
"""By operator, impl and canonical params."""

_MODES: dict[str, str] = {mode: short for short, mode in MODES_SHORT.items()}

_SOURCES = {"measured": "", "interpolated": "≈", "analytic": "≥"}
"""What stands before a time that was not measured."""

_UNKNOWN = "; ?: not known from shapes, or only after long (for up to 3 --operators it is found all the same)"

MOST_NAMED = 6
"""Of operators, in a note on what could be faster."""

_MEMORY_SOURCES = {"measured": "", "predicted": "~", "interpolated": "≈", "": ""}


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
        numbers=("time", "±", "memory", "state", "FLOPs"),
        sentences=("params",),
        lead=tuple(_lead(choice, names)),
        notes=tuple(_notes(choice, names)),
        document=_document(choice, names, rows),
    )


def names_of(choice: Choice) -> Names:
    """What everything of a choice is called: with the params that are no defaults, or in which two of an operator
    differ."""
    cells = [each.candidate.cell for each in (*choice.timed, *choice.analytic)] + [each.cell for each in choice.out]
    by_operator = groups_of((cell.operator, cell) for cell in cells)
    names = {}
    for cell in cells:
        beside = [choice.defaults.get(cell.operator, cell.params), *(c.params for c in by_operator[cell.operator])]
        differing = [
            key for key, value in cell.params.items() if any(other.get(key, value) != value for other in beside)
        ]
        params = ",".join(f"{key}={params_text(cell.params[key])}" for key in differing)
        full = operator_with_impl(f"{cell.operator} {params}" if params else cell.operator, cell.impl)
        names[_key(cell)] = Name(operator_with_impl(cell.operator, cell.impl), params, full)
    return names


def _key(cell: Cell) -> tuple[str, str, str]:
    return cell.operator, cell.impl, canonical_params(cell.params)


def name_of(cell: Cell, names: Names) -> str:
    """What a cell is called."""
    return names[_key(cell)].full


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
        "params": any(names[_key(each.cell)].params for each in every),
    }
    measured = sorted({each.candidate.source for each in choice.timed}, reverse=True)
    table: list[Row] = []
    for heading, group in ((", ".join(measured), choice.timed), ("analytic", choice.analytic)):
        texts = [_texts(each, len(str(len(every))), names) for each in group]
        table += [{**dict.fromkeys(texts[0], ""), "operator": heading}] if texts else []
        table += texts
    return [{name: text for name, text in row.items() if shows.get(name, True)} for row in table]


def _texts(ranked: Ranked, digits: int, names: Names) -> Row:
    each = ranked.candidate
    half, name = _half(each), names[_key(each.cell)]
    return {
        "operator": f"{ranked.rank:>{digits}} {name.short}",
        "time": _time_text(each),
        "±": percent(half) if half else "",
        "memory": _MEMORY_SOURCES[each.memory_source] + shown(each.memory_bytes, "bytes") or "?",
        "state": "" if each.state_bytes is None else shown(each.state_bytes, "bytes"),
        "FLOPs": "" if each.flops is None else shown(each.flops, "flop"),
        "error": _error_text(each),
        "params": name.params,
    }


def _time_text(candidate: Candidate) -> str:
    return _SOURCES[candidate.source] + shown(candidate.seconds, "s")


def _half(candidate: Candidate) -> float | None:
    """Half the interval of a time, as a share of it."""
    if candidate.low is None or candidate.high is None:
        return None
    return math.sqrt(candidate.high / candidate.low) - 1


def _error_text(candidate: Candidate) -> str:
    if candidate.exact:
        return "exact"
    error = candidate.error
    if error is None:
        return "?" if candidate.estimates else "—"
    return f"{error.value:.2g}{'!' if _has_learnt_nothing(error) else ''}"


def _has_learnt_nothing(error: Error) -> bool:
    """Whether an estimate is no nearer to softmax attention than the mean of v is."""
    return error.mean is not None and error.value >= error.mean


def _lead(choice: Choice, names: Names) -> Iterator[str]:
    yield _verdict(choice, names)
    if choice.unlike:
        differences = "; ".join(f"{name}: {its}, not {own}" for name, (own, its) in choice.unlike.items())
        yield f"The run {choice.run} has no time of this problem ({differences}), and nothing is extrapolated."
    yield problem_text(choice)


def _verdict(choice: Choice, names: Names) -> str:
    best = [f"{name_of(each.candidate.cell, names)} ({_time_text(each.candidate)})" for each in choice.best]
    if not best:
        return "Nothing meets all that is asked for; why not stands below. Drop a need, or raise the limit."
    exact = choice.fastest_exact
    is_among = exact is None or any(each.candidate is exact for each in choice.best)
    of_exact = (
        "" if exact is None or is_among else f" Of exact softmax: {name_of(exact.cell, names)} ({_time_text(exact)})."
    )
    if not choice.timed:
        return f"Nothing of this is measured. By the roofline the least time is that of {', '.join(best)}.{of_exact}"
    if not choice.has_intervals:
        return (
            f"The fastest: {best[0]}; which others are level with it is not known, as the run has no intervals here: "
            f"measure more rounds or sizes.{of_exact}"
        )
    if len(best) == 1:
        return f"The fastest: {best[0]}.{of_exact}"
    return f"Not told apart from the fastest, exact ones first: {', '.join(best)}.{of_exact}"


def problem_text(choice: Choice) -> str:
    """What a choice is for, in a line."""
    problem = choice.problem
    size = f"image {problem.height}x{problem.width}" if problem.height else f"{problem.seq_len} tokens"
    given = [f"{name} {number}" for name, number in problem.given.items()]
    sizes = [f"batch {problem.batch}", f"heads {problem.heads}", *given, f"head_dim {problem.head_dim}"]
    form, mode = FORMS[problem.causal], _MODES[choice.mode]
    parts = [size, *sizes, problem.dtype, form, mode, f"scope {choice.scope}"]
    needs = f"; needs {', '.join(choice.needs)}" if choice.needs else ""
    limit = ""
    if choice.memory_limit_bytes is not None:
        owner = f", that of {choice.memory_of}" if choice.memory_of else ""
        limit = f"; memory up to {shown(choice.memory_limit_bytes, 'bytes')}{owner}"
    return f"for: {', '.join(parts)}{needs}{limit}."


def _notes(choice: Choice, names: Names) -> Iterator[str]:
    yield from _origins(choice, names)
    every = [each.candidate for each in (*choice.timed, *choice.analytic)]
    if every:
        sources = {each.memory_source for each in every}
        marks = ["; ~: predicted from shapes"] * ("predicted" in sources)
        marks += ["; ≈: between two measured ones"] * ("interpolated" in sources) + [_UNKNOWN] * ("" in sources)
        words = "memory: all that is alive at the peak of a call, inputs included (`show`: without inputs)"
        yield f"{words}{''.join(marks)}."
        if any(each.state_bytes is not None for each in every):
            yield "state: what is kept of all tokens to decode the next one."
        yield from _error_notes(every)
    yield from _out(choice, names)


def _origins(choice: Choice, names: Names) -> Iterator[str]:
    """Where times are from."""
    if choice.timed:
        ends = dict.fromkeys(each.candidate.between for each in choice.timed if each.candidate.between)
        places = " and ".join(f"{low} and {high}" for low, high in ends)
        between = f" ≈: interpolated in logs between {choice.axis} {places}." if ends else ""
        half = " ±: half the 95% interval." if any(_half(each.candidate) for each in choice.timed) else ""
        yield f"measured: the run {choice.run}, on {choice.device}.{between}{half}"
    if choice.analytic and choice.rates is not None:
        yield from _rates(choice)
    if choice.timed and choice.analytic:
        below = [name_of(each.candidate.cell, names) for each in choice.may_be_faster]
        listed = ", ".join(below) if len(below) <= MOST_NAMED else f"{len(below)} of them"
        yield f"By that, {listed or 'none of them'} could be faster than the fastest; measured, you would know."


def _rates(choice: Choice) -> Iterator[str]:
    rates, dtype = choice.rates, choice.problem.dtype
    assert rates is not None
    yield (
        f"analytic: ≥, at least what the roofline of {rates.of} allows, {_rate_texts(rates, dtype)} ({rates.origin}). "
        "Implementations take up to tens of times as long, some more than others."
    )
    measured = MEASURED.get(rates.of)
    if measured is not None and dtype in measured.matmul_flops_per_s:
        yield f"{measured.of} reached {_rate_texts(measured, dtype)} ({measured.origin})."


def _rate_texts(rates: Rates, dtype: str) -> str:
    return f"{shown(rates.matmul_flops_per_s[dtype], 'flop')}FLOP/s {dtype} and {rates.copy_bytes_per_s / 1e9:.4g} GB/s"


def _error_notes(every: Iterable[Candidate]) -> Iterator[str]:
    """What stands in the column of errors, of that which is there."""
    errors = [each.error for each in every if each.error is not None]
    at = sorted({error.size for error in errors if error.size}, key=lambda size: (len(size), size))
    texts = {
        "exact: softmax attention itself": any(each.exact for each in every),
        f"a number: of an estimate of softmax, relative, at a logit scale of 1{', measured at ' * bool(at)}"
        f"{', '.join(at)}": bool(errors),
        "!: no nearer than the mean of v": any(map(_has_learnt_nothing, errors)),
        "?: of such an estimate, not measured": any(each.estimates and each.error is None for each in every),
        "—: another function": any(not each.exact and not each.estimates for each in every),
    }
    yield f"error: {'; '.join(text for text, is_there in texts.items() if is_there)}."


_WHY = {
    "need": "lacks what is needed",
    "memory": "needs more memory",
    "failed": "did not run",
    "unknown": "no time is known",
    "nothing": "computes nothing",
    "undefined": "not defined for this problem",
}
"""By the kind of reason, in the order in which they stand: what an operator that is out does."""


def _out(choice: Choice, names: Names) -> Iterator[str]:
    """Why the others are out: a line for each kind of reason, those with the same one together."""
    for why, text in _WHY.items():
        reasons = groups_of((_reason(each), name_of(each.cell, names)) for each in choice.out if each.why == why)
        parts = [f"{', '.join(named)}{f' ({reason})' if reason else ''}" for reason, named in reasons.items()]
        if parts:
            yield f"out, {text}: {'; '.join(parts)}."


def _reason(each: Excluded) -> str:
    if each.why == "memory":
        return shown(each.memory_bytes, "bytes")
    return ", ".join([*(f"no {need}" for need in each.needs), *([each.reason] if each.reason else [])])
