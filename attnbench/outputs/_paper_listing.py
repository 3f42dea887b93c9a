"""Claims of papers beside ours, as rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import groupby

from attnbench.analysis.claims import VERDICTS, Checked, Number, Result
from attnbench.outputs._rows import Listing, Row
from attnbench.units import count

_RECALLED = "†"

_NOTES = {
    "recalled": f"{_RECALLED} recalled: no stored copy was read.",
    "verdicts": "reproduced: a count rounds to the printed digits; memory is within 10%, or as the claim says. ratio: "
    "ours / paper. --explain ID: source, expressions, commands.",
}


_EMPTY: Row = dict.fromkeys(("claim", "paper", "ours", "ratio", "verdict", "why"), "")

_PLURAL = {"differs": "differ"}


def listing(results: Sequence[Result], explained: bool, commands: Mapping[str, Sequence[str]]) -> Listing:
    """Of `reproduce`: a row for each number, or for a claim without any.

    Args:
        results: of the papers.
        explained: whether tables show sources, expressions and commands.
        commands: by id, what gives the figures of a claim alone.
    """
    rows = [row for result in results for row in _rows(result, commands)]
    table = [
        row
        for _, of_paper in groupby(results, key=lambda result: result.paper.name)
        for row in _paper_texts(list(of_paper), explained, commands)
    ]
    marks = [_NOTES["recalled"]] if any(result.claim.mark == "recalled" for result in results) else []
    notes = [*marks, _NOTES["verdicts"], *lost(results), counts(results)]
    return Listing(rows, table, numbers=("paper", "ours", "ratio"), sentences=("why",), notes=notes)


def counts(results: Sequence[Result]) -> str:
    """How many claims have each verdict, and how many could be tested."""
    number = Counter(result.verdict for result in results)
    parts = ", ".join(f"{number[verdict]} {_PLURAL.get(verdict, verdict)}" for verdict in VERDICTS)
    testable = sum(result.is_testable for result in results)
    return f"{count(len(results), 'claim')}: {parts}; {testable} testable without measuring."


def lost(results: Sequence[Result]) -> list[str]:
    """A sentence for each number that is stored as reproduced and no longer is."""
    return [
        f"No longer reproduced: {result.claim.id} {each.number.name} ({result.paper.name})."
        for result in results
        for each in result.lost
    ]


def _rows(result: Result, commands: Mapping[str, Sequence[str]]) -> list[Row]:
    paper, claim = result.paper, result.claim
    checked: Mapping[int, Checked] = {id(each.number): each for each in result.checked}
    return [
        {
            "paper": paper.name,
            "url": paper.url,
            "id": claim.id,
            "claim": claim.claim,
            "place": claim.place,
            "kind": claim.kind,
            "mark": claim.mark,
            "claim_verdict": result.verdict,
            "name": number.name if number else None,
            "printed": number.paper if number else None,
            "unit": number.unit if number else None,
            "value": _plain(number.value) if number else None,
            "expression": number.ours if number else None,
            **_figures(checked.get(id(number)), result),
            "commands": list(commands.get(claim.id, ())),
        }
        for number in (claim.numbers or (None,))
    ]


def _figures(checked: Checked | None, result: Result) -> Row:
    if checked is None:
        return {"ours": None, "ratio": None, "terms": {}, "verdict": result.verdict, "why": why_of_claim(result)}
    return {
        "ours": _plain(checked.ours),
        "ratio": checked.ratio,
        "terms": {name: _plain(value) for name, value in checked.terms.items()},
        "verdict": checked.verdict,
        "why": why(checked) or result.claim.why,
    }


def _plain(value: Fraction) -> int | float:
    return int(value) if value.denominator == 1 else float(value)


def why_of_claim(result: Result) -> str:
    """The claim's reason; that a measured one is not measured yet; how many of its numbers are reproduced."""
    if result.claim.kind == "measured":
        return f"Not measured yet. {result.claim.why}"
    reproduced = sum(each.verdict == "reproduced" for each in result.checked)
    part = f"{reproduced} of {count(len(result.checked), 'number')} reproduced." if result.verdict == "differs" else ""
    return " ".join(filter(None, (part if reproduced else "", result.claim.why)))


def why(checked: Checked) -> str:
    """Why a number is what it is: its words, the terms that close the gap, the maps that are alive."""
    number = checked.number
    parts = [number.why] if number.why else []
    if checked.terms:
        terms = ", ".join(f"{name}: {_grouped(value, '+')}" for name, value in checked.terms.items())
        parts.append(
            f"{terms}; with {'it' if len(checked.terms) == 1 else 'them'} {_grouped(checked.closed)}, which is "
            f"{shown(checked.closed, number, 0)}"
        )
    if checked.map_bytes:
        ours, theirs = (float(value / checked.map_bytes) for value in (checked.ours, number.value))
        parts.append(f"N×N maps: {ours:.2f} in ours, {theirs:.2f} in the paper's")
    return "; ".join(parts)


def _grouped(value: Fraction, sign: str = "-") -> str:
    """A count in groups of three digits. sign: `+` shows that of every number."""
    text = f"{int(value):{sign},}" if value.denominator == 1 else f"{float(value):{sign}.6g}"
    return text.replace(",", " ").replace("-", "−")


def shown(value: Fraction, number: Number, more: int) -> str:
    """A value in the number's unit with so many more decimals than are printed."""
    unit = number.meant or number.unit
    return f"{float(value / number.scale):.{number.decimals + more}f} {unit}".strip()


def _paper_texts(results: Sequence[Result], explained: bool, commands: Mapping[str, Sequence[str]]) -> list[Row]:
    """The paper, and below it its claims. explained: with what was read."""
    paper = results[0].paper
    source = f" Read: {paper.source}." if explained else ""
    head = {**_EMPTY, "claim": paper.name, "why": f"{paper.title}. {paper.url}.{source}"}
    return [head, *(row for result in results for row in _texts(result, explained, commands))]


def _texts(result: Result, explained: bool, commands: Mapping[str, Sequence[str]]) -> list[Row]:
    """The claim, and below it its numbers."""
    claim = result.claim
    reason = why_of_claim(result)
    sentence = f"{claim.claim} ({claim.place}).{f' {reason}' if reason else ''}"
    head: Row = {**_EMPTY, "claim": claim.id, "verdict": result.verdict, "why": sentence}
    checked: Mapping[int, Checked] = {id(each.number): each for each in result.checked}
    rows = [_text(number, checked.get(id(number)), claim.mark, explained) for number in claim.numbers]
    lines = commands.get(claim.id, ()) if explained else ()
    return [head, *rows, *({**_EMPTY, "why": f"  {line}"} for line in lines)]


def _text(number: Number, checked: Checked | None, mark: str, explained: bool) -> Row:
    ours = "" if checked is None else _ours(checked)
    ratio = "" if checked is None or checked.ratio is None else f"{checked.ratio:.4g}"
    sentence = "" if checked is None else why(checked)
    bound = "≥ " if number.at_least else ""
    unit = f" {number.unit}" if number.unit else ""
    return {
        "claim": f"  {number.name}",
        "paper": f"{bound}{number.paper}{unit}{_RECALLED if mark == 'recalled' else ''}",
        "ours": ours,
        "ratio": ratio,
        "verdict": "" if checked is None else checked.verdict,
        "why": "; ".join(filter(None, (sentence, f"ours: {number.ours}" if explained and checked else ""))),
    }


def _ours(checked: Checked) -> str:
    """A count in full, anything else in the printed unit with a digit more, and three at least."""
    number, ours = checked.number, checked.ours
    if number.unit in ("", "M", "G", "Mi") and ours.denominator == 1:
        return str(int(ours))
    whole = math.floor(math.log10(abs(ours / number.scale))) if ours else 0
    return shown(ours, number, max(1, 2 - whole - number.decimals))
