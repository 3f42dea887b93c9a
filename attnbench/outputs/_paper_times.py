"""Claims of time: what stands in rows and tables of papers about what was measured."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from attnbench.analysis.claims import Interval, Measured, MeasuredOn, Number, Ordered, Result, Timed
from attnbench.analysis.timed_claims import NOT_MEASURED, is_decided_by_time
from attnbench.outputs._answer import machine
from attnbench.outputs._progress import title
from attnbench.outputs._rows import Row
from attnbench.units import digits

INTERVALS = (
    "[ ]: 95% intervals, those of a claim together; inside of what its rule allows it is reproduced, outside it "
    "differs, across an end it is not decided."
)


def time_fields(timed: Timed) -> Row:
    """The fields of a number of time."""
    ours, exact = timed.ours, timed.exact
    return {
        "ours": _value(ours.interval),
        "ratio": timed.ratio,
        "verdict": timed.verdict,
        "why": _reason(ours) or timed.number.why,
        **_fields("", ours),
        **(_fields("exact_", exact) if exact else {}),
        **({"exact_ours": _value(exact.interval), "exact_verdict": exact.verdict} if exact else {}),
    }


def _fields(prefix: str, measured: Measured) -> Row:
    ends = measured.interval
    return {
        f"{prefix}low": None if ends is None else _finite(ends.low),
        f"{prefix}high": None if ends is None else _finite(ends.high),
        f"{prefix}against": measured.against or None,
        **({} if prefix else {"run": measured.run or None}),
    }


NO_TIMES: Row = dict.fromkeys(
    ("low", "high", "against", "run", "exact_ours", "exact_low", "exact_high", "exact_against", "exact_verdict"), None
)
"""The same of what is not measured."""


def claim_fields(result: Result) -> Row:
    """What every row of a claim says of how it is measured."""
    return {
        "rule": result.claim.rule or None,
        "indication": result.claim.indication or None,
        "paper_on": result.claim.on or None,
        "measured_on": [
            {
                "run": each.run,
                "suite": each.suite,
                "machine": machine(each.environment),
                "device": each.environment.get("device"),
                "dtypes": list(each.dtypes),
                "date": each.date,
            }
            for each in _on(result)
        ],
    }


def _on(result: Result) -> Sequence[MeasuredOn]:
    return result.timing.on if result.timing else ()


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else _finite(interval.value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def rule_sentences(result: Result) -> list[str]:
    """The rule, and what both were measured on; before any result."""
    claim, timing = result.claim, result.timing
    if timing is None:
        return []
    here = "; ".join(map(place, timing.on)) or f"not measured, attnbench reproduce {result.paper.name} --measure"
    indication = [f"An indication alone: {claim.indication}."] if claim.indication else []
    rule = [f"Rule: {claim.rule}."] if claim.rule else []
    return [*rule, *indication, f"Paper: {claim.on}. Ours: {here}."]


def place(on: MeasuredOn) -> str:
    """What was measured on: machine, dtypes, date and run."""
    parts = [machine(on.environment) or str(on.environment.get("device") or ""), *on.dtypes, on.date]
    return ", ".join(filter(None, parts)) + f" ({on.run})"


def time_texts(timed: Timed, result: Result) -> Iterator[dict[str, str]]:
    """Of a number what a table shows of ours, and below it against the fastest exact softmax, where that is another."""
    decides = is_decided_by_time(result.claim) and bool(_on(result))
    ours, exact, number = timed.ours, timed.exact, timed.number
    ratio = timed.ratio
    yield {
        "ours": _value_text(ours.interval, number),
        "interval": _ends_text(ours.interval),
        "ratio": "" if ratio is None else f"{ratio:.3g}",
        "verdict": timed.verdict if decides else "",
        "words": _told(ours, result) or number.why,
    }
    if exact is not None and exact.against != ours.against:
        ratio = None if exact.interval is None else _value(exact.interval)
        yield {
            "name": f"  against {exact.against}",
            "ours": _value_text(exact.interval, number),
            "interval": _ends_text(exact.interval),
            "ratio": "" if ratio is None or not number.value else f"{ratio / float(number.value):.3g}",
            "verdict": exact.verdict if decides else "",
        }


def order_texts(result: Result) -> Iterator[dict[str, str]]:
    """Each order of a claim that was measured, with its steps."""
    decides = is_decided_by_time(result.claim)
    for order in result.timing.orders if result.timing and _on(result) else ():
        steps = [
            f"{_brief(each.number.name)} {time_text(each.ours.interval, each.number) or '?'}" for each in order.steps
        ]
        missing = next((reason for each in order.steps if (reason := _told(each.ours, result))), "")
        yield {
            "name": f"order, {order.name}",
            "verdict": order.verdict if decides else "",
            "words": missing or "; ".join(steps),
        }


def order_fields(order: Ordered) -> Row:
    """The fields of an order."""
    return {
        "name": f"order, {order.name}",
        "verdict": order.verdict,
        "why": next((reason for each in order.steps if (reason := _reason(each.ours))), ""),
        "steps": [{"name": each.number.name, **time_fields(each)} for each in order.steps],
    }


def _reason(measured: Measured) -> str:
    if measured.lacking is not None:
        return f"no run has {title(measured.lacking)}"
    return "" if measured.missing == NOT_MEASURED else measured.missing


def _told(measured: Measured, result: Result) -> str:
    """Why there is no figure; that no run has a cell, only where the claim has another figure of one."""
    return _reason(measured) if measured.missing or _on(result) else ""


def _brief(name: str) -> str:
    """Of an expression over another what differs between them, without the name of the figure."""
    brief = name.replace(".time", "")
    larger, _, smaller = brief.partition(" over ")
    for argument in set(_ARGUMENT.findall(larger)) & set(_ARGUMENT.findall(smaller)):
        brief = brief.replace(argument, "")
    return re.sub(r"\(,? *(, *)*", "(", re.sub(r"(, *)+\)", ")", brief)).replace("()", "").replace("'", "")


_ARGUMENT = re.compile(r"\w+=[^,()]+")


def time_text(interval: Interval | None, number: Number) -> str:
    """A value with its interval: `8.63 × [8.1, 9.2]`."""
    return " ".join(filter(None, (_value_text(interval, number), _ends_text(interval))))


def _value_text(interval: Interval | None, number: Number) -> str:
    """`8.63 ×`; where only one end is known `≤ 256`, where neither `not told`."""
    if interval is None:
        return ""
    low, high, value = interval.low, interval.high, interval.value
    if math.isnan(value):
        bounds = (f"≤ {_short(high)}" if math.isfinite(high) else "", f"≥ {_short(low)}" if low else "")
        return " ".join(filter(None, bounds)) or "not told"
    return f"{_short(value)} {number.unit}".strip()


def _ends_text(interval: Interval | None) -> str:
    """`[8.1, 9.2]`; empty where there is no value, or where it is of one round."""
    if interval is None or math.isnan(interval.value) or math.isnan(interval.low):
        return ""
    return f"[{_short(interval.low)}, {_short(interval.high)}]"


def _short(value: float) -> str:
    return f"{digits(value):g}"
