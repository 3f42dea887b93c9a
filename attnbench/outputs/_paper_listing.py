"""Claims of papers beside ours: as rows, and as the texts that tables and pages show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction

from attnbench.analysis.claims import VERDICTS, Checked, Mark, Number, Result, Timed
from attnbench.analysis.reproduction import OfPaper, Reproduction
from attnbench.outputs._paper_times import (
    INTERVALS,
    NO_TIMES,
    claim_fields,
    order_fields,
    order_texts,
    rule_sentences,
    time_fields,
    time_text,
    time_texts,
)
from attnbench.outputs._rows import Listing, Row
from attnbench.units import count

_RECALLED = "†"

_NOTES = {
    "recalled": f"{_RECALLED} recalled: no stored copy was read.",
    "verdicts": "reproduced: a count rounds to the printed digits; memory is within 10%, or as the claim says. ratio: "
    "ours / paper.",
    "more": "--explain ID: source, expressions, commands.",
    "brief": "differs most: of the numbers that differ the one with the ratio farthest from 1; attnbench reproduce "
    "PAPER says why.",
}

NUMBERS = ("paper", "ours", "ratio")
"""Columns of numbers."""

_EMPTY: Row = dict.fromkeys(("claim", "paper", "ours", "ratio", "verdict", "why"), "")


@dataclass(frozen=True)
class NumberTexts:
    """What is shown of a number.

    Args:
        name: which it is.
        paper, ours, ratio: empty where there is nothing.
        interval: of ours, of what was measured.
        verdict: empty where nothing is held against it.
        words: why it is what it is.
        beside: what figures of ours indicate of it, and decide nothing.
        terms: what closes the gap, each with its value, and the sum that is reached.
        maps: the N×N maps that are alive.
        expression: what ours is.
    """

    name: str
    paper: str
    ours: str
    interval: str
    ratio: str
    verdict: str
    words: str
    beside: str
    terms: str
    maps: str
    expression: str

    @property
    def why(self) -> str:
        """All reasons."""
        return "; ".join(filter(None, (self.words, self.beside, self.terms, self.maps)))


@dataclass(frozen=True)
class ClaimTexts:
    """What is shown of a claim.

    Args:
        id: of it.
        sentence: what is claimed, and where.
        reason: of its verdict.
        verdict: of it.
        mark: whether its numbers were read.
        numbers: of it.
        commands: what gives its figures alone.
    """

    id: str
    sentence: str
    reason: str
    verdict: str
    mark: Mark
    numbers: Sequence[NumberTexts]
    commands: Sequence[str]


def listing(reproduction: Reproduction) -> Listing:
    """Of `reproduce`: a row for each number, or for a claim without any; of a brief one a row for each paper."""
    if reproduction.detail == "brief":
        return _brief(reproduction)
    rows = [row for result in reproduction.results for row in _rows(result, reproduction.commands)]
    texts = [row for each in reproduction.of_papers for row in table(each, reproduction, below=True)]
    return Listing(rows, texts, numbers=NUMBERS, sentences=("why",), notes=notes(reproduction, "more"))


def notes(reproduction: Reproduction, *more: str) -> list[str]:
    """What marks and verdicts mean, what is lost, and how many claims have each verdict. more: further ones' names."""
    results = reproduction.results
    marks = ["recalled"] if any(result.claim.mark == "recalled" for result in results) else []
    known = " ".join(_NOTES[name] for name in ("verdicts", *more))
    times = [INTERVALS] if any(result.timing and result.timing.on for result in results) else []
    return [*(_NOTES[name] for name in marks), known, *times, *lost(results), counts(results)]


def _brief(reproduction: Reproduction) -> Listing:
    texts = [
        {
            "paper": each.name,
            "claims": len(each.results),
            **{verdict: each.counts[verdict] or "" for verdict in VERDICTS},
            "differs most": difference(each),
        }
        for each in reproduction.of_papers
    ]
    rows = [
        {name.replace(" ", "_"): value or 0 if name in VERDICTS else value for name, value in row.items()}
        for row in texts
    ]
    return Listing(
        rows,
        texts,
        numbers=("claims", *VERDICTS),
        sentences=("differs most",),
        notes=[_NOTES["brief"], *lost(reproduction.results), counts(reproduction.results)],
    )


def difference(of_paper: OfPaper) -> str:
    """The number that is farthest from the paper's, in one line; empty where none differs."""
    if of_paper.farthest is None:
        return ""
    result, held = of_paper.farthest
    number = held.number
    ours = _in_unit(held) if isinstance(held, Checked) else time_text(held.ours.interval, number)
    named = f", {number.name}" if number.name else ""
    claim = result.claim.claim.partition(":")[0]
    return f"{result.claim.id}, {claim}{named}: {ours}, in the paper {_printed(number, result.claim.mark)}"


def counts(results: Sequence[Result]) -> str:
    """How many claims have each verdict, and how many could be tested without a GPU, by what."""
    number = OfPaper("", results).counts
    words = {"differs": "differs" if number["differs"] == 1 else "differ"}
    parts = ", ".join(f"{number[verdict]} {words.get(verdict, verdict)}" for verdict in VERDICTS)
    exact, timed = (sum(r.is_testable for r in results), sum("cpu" in r.devices for r in results))
    how = f"{exact} from formulas and shapes, {timed} by times on a CPU" if timed else "from formulas and shapes"
    return f"{count(len(results), 'claim')}: {parts}. Tested without a GPU: {exact + timed}, {how}."


def lost(results: Sequence[Result]) -> list[str]:
    """A sentence for each number that is stored as reproduced and no longer is."""
    return [
        f"No longer reproduced: {result.claim.id} {each.number.name} ({result.paper.name})."
        for result in results
        for each in result.lost
    ]


def _rows(result: Result, commands: Mapping[str, Sequence[str]]) -> list[Row]:
    """A row for each number, or for a claim without any, and for each order."""
    paper, claim = result.paper, result.claim
    figures = _figures(result)
    of_claim = {
        "paper": paper.name,
        "url": paper.url,
        "id": claim.id,
        "claim": claim.claim,
        "place": claim.place,
        "kind": claim.kind,
        "mark": claim.mark,
        "claim_verdict": result.verdict,
    }
    of_all = {**claim_fields(result), "commands": list(commands.get(claim.id, ()))}
    numbers = [
        {
            **of_claim,
            "name": number.name if number else None,
            "printed": number.paper if number else None,
            "unit": number.unit if number else None,
            "value": _plain(number.value) if number else None,
            "expression": number.ours if number else None,
            **_NO_FIGURES,
            **figures.get(id(number), {"verdict": result.verdict, "why": why_of_claim(result)}),
            "indications": {what: _plain(value) for what, value in _indications(result, number).items()},
            **of_all,
        }
        for number in (claim.numbers or (None,))
    ]
    nothing = dict.fromkeys(("name", "printed", "unit", "value", "expression"))
    orders = result.timing.orders if result.timing else ()
    return [*numbers, *({**of_claim, **nothing, **_NO_FIGURES, **order_fields(each), **of_all} for each in orders)]


_NO_FIGURES: Row = {
    "ours": None,
    "ratio": None,
    "terms": {},
    "indications": {},
    "verdict": "",
    "why": "",
    **NO_TIMES,
    "steps": [],
}


def _by_number(result: Result) -> Mapping[int, Checked]:
    """What is held against each number, by its identity."""
    return {id(each.number): each for each in result.checked}


def _indications(result: Result, number: Number | None) -> Mapping[str, Fraction]:
    return result.indications.get(number.name, {}) if number else {}


def _figures(result: Result) -> dict[int, Row]:
    """By the identity of a number, the fields of ours."""
    figures: dict[int, Row] = {
        id(checked.number): {
            "ours": _plain(checked.ours),
            "ratio": checked.ratio,
            "terms": {name: _plain(value) for name, value in checked.terms.items()},
            "verdict": checked.verdict,
            "why": _number_texts(checked.number, checked, result).why or result.claim.why,
        }
        for checked in result.checked
    }
    times = result.timing.numbers if result.timing else ()
    return figures | {id(timed.number): time_fields(timed) for timed in times}


def _plain(value: Fraction) -> int | float:
    return int(value) if value.denominator == 1 else float(value)


def why_of_claim(result: Result) -> str:
    """The claim's reason; of one that differs, or is not decided, how many of its numbers are reproduced."""
    verdicts = [each.verdict for each in result.checked]
    verdicts += [each.verdict for each in (result.timing.numbers if result.timing else ())]
    reproduced = verdicts.count("reproduced")
    part = f"{reproduced} of {count(len(verdicts), 'number')} reproduced." if result.verdict != "reproduced" else ""
    return " ".join(filter(None, (part if reproduced else "", result.claim.why)))


def claim_texts(result: Result, commands: Mapping[str, Sequence[str]]) -> ClaimTexts:
    """The texts of a claim. commands: by id."""
    claim, checked = result.claim, _by_number(result)
    times = {id(each.number): each for each in (result.timing.numbers if result.timing else ())}
    numbers = [
        texts
        for number in claim.numbers
        for texts in _with_times(_number_texts(number, checked.get(id(number)), result), times.get(id(number)), result)
    ]
    numbers += [NumberTexts(**{**_NO_TEXTS, **each}) for each in order_texts(result)]
    alone = commands.get(claim.id, ())
    sentence = f"{claim.claim} ({claim.place})."
    reason = " ".join(filter(None, (*rule_sentences(result), why_of_claim(result))))
    return ClaimTexts(claim.id, sentence, reason, result.verdict, claim.mark, numbers, alone)


_NO_TEXTS = dict.fromkeys((field.name for field in fields(NumberTexts)), "")


def _with_times(texts: NumberTexts, timed: Timed | None, result: Result) -> list[NumberTexts]:
    """The texts of a number with what was measured of it, and below it what else was."""
    if timed is None:
        return [texts]
    ours, *others = time_texts(timed, result)
    return [replace(texts, **ours), *(NumberTexts(**{**_NO_TEXTS, **each}) for each in others)]


def _number_texts(number: Number, checked: Checked | None, result: Result) -> NumberTexts:
    indications = _indications(result, number)
    unit = f" {number.unit}" if number.unit else ""
    return NumberTexts(
        name=number.name,
        paper=_printed(number, result.claim.mark),
        ours=_ours(checked) if checked else "",
        interval="",
        ratio=f"{checked.ratio:.4g}" if checked and checked.ratio is not None else "",
        verdict=checked.verdict if checked else "",
        words=number.why if checked else "",
        beside=", ".join(f"{what}: {float(value / number.scale):.3g}{unit}" for what, value in indications.items()),
        terms=_terms(checked) if checked else "",
        maps=_maps(checked) if checked else "",
        expression=number.ours,
    )


def _printed(number: Number, mark: Mark) -> str:
    """As the paper has it, with whether it is a bound, and whether it is recalled."""
    bound = "≥ " if number.at_least else "≤ " if number.at_most else ""
    until = f"–{number.up_to}" if number.up_to else ""
    unit = f" {number.unit}" if number.unit else ""
    return f"{bound}{number.paper}{until}{unit}{_RECALLED if mark == 'recalled' else ''}"


def _terms(checked: Checked) -> str:
    """The terms that close the gap, and where they lead."""
    if not checked.terms:
        return ""
    terms = ", ".join(f"{name}: {_grouped(value, '+')}" for name, value in checked.terms.items())
    which = "it" if len(checked.terms) == 1 else "them"
    closed, printed = _grouped(checked.closed), shown(checked.closed, checked.number, 0)
    return f"{terms}; with {which} {closed}{'' if closed.replace(' ', '') == printed else f', which is {printed}'}"


def _maps(checked: Checked) -> str:
    """How many N×N maps are alive."""
    if not checked.map_bytes:
        return ""
    ours, theirs = (float(value / checked.map_bytes) for value in (checked.ours, checked.number.value))
    return f"N×N maps: {ours:.2f} in ours, {theirs:.2f} in the paper's"


def _grouped(value: Fraction, sign: str = "-") -> str:
    """A count in groups of three digits. sign: `+` shows that of every number."""
    text = f"{int(value):{sign},}" if value.denominator == 1 else f"{float(value):{sign}.6g}"
    return text.replace(",", " ").replace("-", "−")


def shown(value: Fraction, number: Number, more: int) -> str:
    """A value in the number's unit with so many more decimals than are printed."""
    unit = number.meant or number.unit
    return f"{float(value / number.scale):.{number.decimals + more}f} {unit}".strip()


def table(of_paper: OfPaper, reproduction: Reproduction, below: bool) -> list[Row]:
    """The paper, below it its claims, and below each its numbers, whose names are set in.

    below: whether intervals stand below ours, where there is room for sentences alone, in place of beside them.
    """
    explained = reproduction.detail == "explained"
    paper = of_paper.results[0].paper
    source = f" Read: {paper.source}." if explained else ""
    head = {**_EMPTY, "claim": paper.name, "why": f"{paper.title}. {paper.url}.{source}"}
    claims = [claim_texts(result, reproduction.commands) for result in of_paper.results]
    return [head, *(row for claim in claims for row in _claim_rows(claim, explained, below))]


def _claim_rows(claim: ClaimTexts, explained: bool, below: bool) -> list[Row]:
    sentence = " ".join(filter(None, (claim.sentence, claim.reason)))
    head: Row = {**_EMPTY, "claim": claim.id, "verdict": claim.verdict, "why": sentence}
    alone = [{**_EMPTY, "claim": "  alone:", "why": line} for line in claim.commands if explained]
    return [head, *(_number_row(number, explained, below) for number in claim.numbers), *alone]


def _number_row(number: NumberTexts, explained: bool, below: bool) -> Row:
    expression = f"ours: {number.expression}" if explained and number.ours else ""
    beside, first = ("", number.interval) if below else (number.interval, "")
    return {
        "claim": f"  {number.name}",
        "paper": number.paper,
        "ours": " ".join(filter(None, (number.ours, beside))),
        "ratio": number.ratio,
        "verdict": number.verdict,
        "why": "; ".join(filter(None, (first, number.why, expression))),
    }


def _ours(checked: Checked) -> str:
    """A count in full, anything else in the printed unit with a digit more, and three at least."""
    number, ours = checked.number, checked.ours
    if number.unit in ("", "M", "G", "Mi") and ours.denominator == 1:
        return str(int(ours))
    return _in_unit(checked)


def _in_unit(checked: Checked) -> str:
    """Ours in the printed unit: of a count all of it, else with a digit more than is printed, and three at least."""
    number, ours = checked.number, checked.ours
    if number.scale == 1 and ours.denominator == 1:
        return str(int(ours))
    whole = math.floor(math.log10(abs(ours / number.scale))) if ours else 0
    return shown(ours, number, max(1, 2 - whole - number.decimals))
