"""The answer of a run as sentences, short tables and notes, which the terminal and Markdown print alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from attnbench.analysis.answer import Answer, Modes, Passing, Row, Standing, Start, Verdict
from attnbench.analysis.answer import answer as answer_of
from attnbench.analysis.compare.same_machine import differing
from attnbench.analysis.crossover import Crossover
from attnbench.analysis.summary import Summary
from attnbench.axes import AXES
from attnbench.errors import printable
from attnbench.outputs._run_tables import (
    chosen_rows,
    crossover_text,
    every_size,
    failure,
    place_order,
    size_range,
    untried_exact,
)
from attnbench.problem import BASELINE
from attnbench.properties import PROPERTIES
from attnbench.units import brief, count, shown, times

MOST_ROWS, FEWEST_ROWS = 6, 3
"""Of a table; unless operators are chosen."""

MOST_VERDICTS, MOST_TABLES = 6, 1
"""Of panels along one axis."""

MODES = {"fwd": "inference", "fwd_bwd": "training"}
"""What the modes are called in sentences and headings."""

LETTERS = {"all_pairs": "P", "causal": "C", "decode": "D", "data_dependent": "F", "any_length": "N"}
"""What stands for a lack where there is no room for words."""

IMPLIED = {"decode": "causal"}
"""What goes without saying of an operator that lacks something else."""

EXACT = "exact"

MEMORY_WORDS = "memory: without inputs"
"""Of a call at its peak, as metric `peak_memory` has it; what has to fit a budget is what `choose` and `fit` say."""

NOWHERE, UNKNOWN, BY, SAME = "–", "?", "≤", "="

MARKS = {
    BY: f"{BY}N: at N at the latest",
    "<": "<N: only below N",
    NOWHERE: f"{NOWHERE}: nowhere",
    UNKNOWN: f"{UNKNOWN}: not told apart",
    SAME: f"{SAME}: the same",
}
"""What a mark in the columns of places means."""

Kind = Literal["name", "place", "figure", "lacks"]


@dataclass(frozen=True)
class Column:
    """A column of a short table.

    Args:
        heading: below that of its mode.
        full: where it stands without that.
        texts: one for each row.
        briefs: the same where there is no room for words.
        orders: by which the rows are sorted; empty: by the text.
    """

    heading: str
    full: str
    kind: Kind
    texts: tuple[str, ...]
    briefs: tuple[str, ...]
    orders: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class ShortTable:
    """One table of an answer.

    Args:
        names: the column that names the rows.
        groups: by mode, as it is called, the columns of it.
        lacks: what the operators cannot do, or that they are exact; None where nothing is known of that.
    """

    names: Column
    groups: Mapping[str, tuple[Column, ...]]
    lacks: Column | None

    @property
    def columns(self) -> list[Column]:
        """All of them, from the left."""
        return [
            self.names,
            *(column for group in self.groups.values() for column in group),
            *filter(None, [self.lacks]),
        ]

    @property
    def headings(self) -> list[str]:
        """What stands above each of them, where there is room."""
        several = len(self.groups) > 1
        heads = [
            f"{mode}: {column.full}" if several else column.full
            for mode, group in self.groups.items()
            for column in group
        ]
        return [self.names.full, *heads, *([self.lacks.full] if self.lacks else [])]


@dataclass(frozen=True)
class View:
    """What is printed of an answer.

    Args:
        heading: the machine, and what all panels have in common.
        sentences: a verdict each.
        left_out: what is not shown, and how it is; empty: nothing.
        notes: what else is to be known.
    """

    heading: str
    sentences: tuple[str, ...]
    tables: tuple[ShortTable, ...]
    left_out: str
    notes: tuple[str, ...]


def view(summary: Summary, most_rows: int = MOST_ROWS, *, whole: bool = False) -> View | None:
    """`view_of` its answer."""
    return view_of(answer_of(summary), summary, most_rows, whole=whole)


def view_of(answer: Answer, summary: Summary, most_rows: int, *, whole: bool = False) -> View | None:
    """What is printed of a run; None where nothing was measured by which operators can be compared.

    Args:
        answer: the run's answer.
        most_rows: of a table, unless operators were chosen.
        whole: whether every verdict and table is.
    """
    if answer.metric is None or not answer.tables:
        return None
    common = _common([verdict.fixed for verdict in answer.verdicts])
    groups = _groups(answer)
    shown = groups if whole else _first(groups, MOST_VERDICTS, lambda group: group.verdicts[0].axis)
    tables = list(answer.tables) if whole else _first(answer.tables, MOST_TABLES, lambda table: table.axis)
    panels = sum(len(group.verdicts) for group in groups if group not in shown)
    return View(
        heading=_heading(summary, answer, common),
        sentences=tuple(_sentence(group, common) for group in shown),
        tables=tuple(_table(table, answer, common, _rows(table, most_rows)) for table in tables),
        left_out=_left_out(summary, answer, panels, tables, most_rows),
        notes=(*_part(summary), *chosen_rows(summary), *_unknown(tables), *untried_exact(summary)),
    )


def _part(summary: Summary) -> Iterator[str]:
    """That a run is not the whole of its suite."""
    shard = summary.shard
    if shard is None:
        return
    units = f"{len(shard.units)} of {count(shard.dealt, 'unit')}"
    if len(shard.numbers) == 1:
        yield f"This is shard {shard} of the suite, {units}; attnbench merge joins it with the others."
    elif len(shard.numbers) == shard.of:
        yield (
            f"These are all {shard.of} shards of the suite, and not all that they were to measure: attnbench merge "
            "says what is missing of each."
        )
    else:
        yield (
            f"These are {len(shard.numbers)} of the suite's {shard.of} shards, {units}; attnbench merge joins them "
            "with the others, which attnbench fleet --resume measures where they are a fleet's."
        )


def _rows(table: Modes, most: int) -> Sequence[Row]:
    return table.rows if table.chosen else table.rows[:most]


_Any = TypeVar("_Any")


def _first(every: Iterable[_Any], most: int, axis: Callable[[_Any], str]) -> list[_Any]:
    """The first of each axis."""
    counted: Counter[str] = Counter()
    chosen = []
    for each in every:
        counted[axis(each)] += 1
        if counted[axis(each)] <= most:
            chosen.append(each)
    return chosen


def _common(facts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What is the same in all."""
    first = facts[0] if facts else {}
    return {name: text for name, text in first.items() if all(each.get(name) == text for each in facts)}


UNSAID = ("device",)
"""Facts that a heading says otherwise."""


def _heading(summary: Summary, answer: Answer, common: Mapping[str, str]) -> str:
    """`On this CPU (AMD EPYC, 1 thread), by wall time: scope core, float32, batch 1`; `On 4 GPUs (…)`."""
    device = common.get("device", "")
    kind = _kind(device, summary.environment)
    name = machine(summary.environment)
    mode = f", {MODES.get(common['mode'], common['mode'])}" if "mode" in common else ""
    facts = [text for fact, text in common.items() if fact not in (*UNSAID, "mode") and text != "scope core"]
    by = "" if answer.metric == "wall time" else f", by {answer.metric}"
    where = f"this {kind}" if len(summary.devices) < 2 else count(len(summary.devices), kind)
    return f"On {where}{f' ({name})' if name else ''}{mode}{by}: {', '.join(facts)}"


def _kind(device: str, environment: Mapping[str, Any]) -> str:
    """What a kind of device is called: `CPU`; `GPU` of one with facts of its own; any other by its name."""
    if environment.get("gpu"):
        return "GPU"
    return device if environment.get("gpu_name") else device.upper() or "machine"


_LONGEST_NAME = 40
"""Of a processor, in characters."""


_SUPERFLUOUS = re.compile(r"\((R|TM)\)| CPU\b| Processor\b| \d+-Core\b| @.*", re.IGNORECASE)
"""In the name of a processor."""


def machine(environment: Mapping[str, Any]) -> str:
    """What a run says of its processor: `AMD EPYC, 1 thread`; of a GPU its name; empty: nothing."""
    if environment.get("gpu_name"):
        return printable(environment["gpu_name"], _LONGEST_NAME)
    threads = environment.get("threads")
    name = _SUPERFLUOUS.sub("", printable(environment.get("cpu") or "", _LONGEST_NAME))
    return ", ".join(filter(None, [name, count(threads, "thread") if isinstance(threads, int) else ""]))


@dataclass(frozen=True)
class _Group:
    """Panels of one axis of which the same is to be said, and which differ in one fact alone, if anything ran there."""

    text: str
    verdicts: tuple[Verdict, ...]

    def joined(self, verdict: Verdict) -> _Group | None:
        """With another panel; None where that differs in more."""
        first = self.verdicts[0]
        others = [each.fixed for each in (*self.verdicts, verdict)]
        names = {name for each in others for name, _, _ in differing({**first.fixed, **each}, first.fixed, each)}
        fits = first.axis == verdict.axis and (len(names) == 1 or verdict.sizes is None)
        return _Group(self.text, (*self.verdicts, verdict)) if fits else None


def _groups(answer: Answer) -> list[_Group]:
    groups: list[_Group] = []
    for verdict in answer.verdicts:
        text = said(verdict, answer)
        for i, group in enumerate(groups):
            if group.text == text and (joined := group.joined(verdict)):
                groups[i] = joined
                break
        else:
            groups.append(_Group(text, (verdict,)))
    return groups


def _sentence(group: _Group, common: Mapping[str, str]) -> str:
    first = group.verdicts[0]
    facts = [verdict.fixed for verdict in group.verdicts]
    names = [name for name in facts[0] if name not in (*common, *UNSAID) and all(name in each for each in facts)]
    own = {name: _several([each[name] for each in facts]) for name in names}
    mode = own.pop("mode", "")
    label = ", ".join(filter(None, [named_with(first.axis, own.values()), mode]))
    return f"{label}: {group.text}."


def _several(texts: Sequence[str]) -> str:
    """`seq_len 1024`, `seq_len 1024/2048`, `float32/bfloat16`, `inference and training`."""
    distinct = list(dict.fromkeys(texts))
    if set(distinct) <= set(MODES):
        return " and ".join(map(MODES.__getitem__, distinct))
    first, *rest = (text.rpartition(" ") for text in distinct)
    if first[0] and all(each[0] == first[0] for each in rest):
        return f"{first[0]} {'/'.join(each[2] for each in (first, *rest))}"
    return "/".join(filter(None, distinct))


def named_with(axis: str, facts: Iterable[str]) -> str:
    """`seq_len`, `seq_len (batch 1, kv_heads 2)`."""
    text = ", ".join(facts)
    return f"{axis} ({text})" if text else axis


def said(verdict: Verdict, answer: Answer) -> str:
    """A verdict in words, without the panel that it is about."""
    if verdict.sizes is None:
        return f"nothing was measured{f': {verdict.reason}' if verdict.reason else ''}".rstrip(".")
    both = (verdict.against_baseline, verdict.against_exact)
    if both == (None, None):
        size = _amount(verdict.axis, verdict.sizes[1])
        return f"nothing to compare; the least {answer.metric} at {size}: {verdict.least}"
    clauses = _clauses(both, (subject(answer.baseline), _BEST_EXACT), verdict.axis, verdict.sizes)
    return f"{clauses}{_alike(verdict)}"


_BEST_EXACT, _BEST_EXACT_AFTER = "the best exact softmax", "best exact"


def subject(baseline: str) -> str:
    """What a baseline is called in a sentence."""
    return "eager softmax" if baseline == BASELINE else baseline


def _clauses(
    both: tuple[Passing | None, Passing | None], subjects: tuple[str, str], axis: str, sizes: tuple[str, str]
) -> str:
    """Where the one and the other stop paying; what both have in common is said once."""
    softmax, exact = both
    if softmax and exact and _said(softmax) == _said(exact):
        joined = " or " if softmax.outcome == "unclear" else " and "
        return _clause(softmax, joined.join(subjects), axis, sizes, plural=True)
    known = [(each, name) for each, name in zip(both, subjects, strict=True) if each]
    (first, name), *rest = known
    text = _clause(first, name, axis, sizes)
    for each, other in rest:
        if first.start and each.start and not first.start.every and not each.start.every:
            by = f" ({each.series})" if each.series != first.series else ""
            text += f", {_BEST_EXACT_AFTER} {_from(each, axis)}{by}"
        else:
            text += f"; {_clause(each, other, axis, sizes)}"
    return text


def _said(passing: Passing) -> tuple[Any, ...]:
    """What a clause says of it, but for a place between the sizes: that is told of each."""
    is_placed = passing.outcome == "below" or (passing.start is not None and not passing.start.every)
    return passing.outcome, passing.series, passing if is_placed else None


def _clause(passing: Passing, subject: str, axis: str, sizes: tuple[str, str], plural: bool = False) -> str:
    s, every = "" if plural else "s", every_size(partial(_amount, axis), *sizes)
    if passing.outcome == "pays":
        return f"{subject} pay{s} at {every}"
    if passing.outcome == "unclear":
        sizes_text = _amount(axis, size_range(*sizes))
        return f"nothing else is known to be cheaper than {subject} at {sizes_text}, though not all can be told from it"
    if passing.start is None:
        return f"{passing.series} is cheaper than {subject} only {_below(passing.crossover, axis)}"
    if passing.start.every:
        return f"{passing.series} is cheaper than {subject} at {every}"
    return f"{subject} stop{s} paying {_from(passing, axis, first=True)} ({passing.series}){_failed(passing)}"


def _amount(axis: str, place: str) -> str:
    """With its unit, but for the two sides of an image, which need none."""
    return place if len(AXES[axis].columns) > 1 else AXES[axis].amount(place)


def _from(passing: Passing, axis: str, first: bool = False) -> str:
    """`from 911`; `between 512 and 1024`; `from 512 at the latest`; `at every size`; first: `from about 911 tokens`."""
    return " ".join(_where(passing, axis, first))


def _where(passing: Passing, axis: str, first: bool = False) -> tuple[str, str]:
    """The same, the word before the place apart."""
    start, row = passing.start, AXES[axis]
    if start is None:
        return "nowhere", "for certain"
    if start.every:
        return "at", "every size"
    by = row.place(start.by, measured=start.at is None)
    amount = _amount(axis, by) if first else by
    if start.at is not None:
        return "from", f"about {amount}" if first else amount
    last = passing.crossover.crossings[-1] if passing.crossover and passing.crossover.crossings else None
    if last and last.low:
        return "between", f"{row.place(last.low, measured=True)} and {amount}"
    return "from", f"{amount} at the latest"


def _failed(passing: Passing) -> str:
    """What the baseline did at the size where it is passed, if it did not run there."""
    crossover = passing.crossover
    if crossover is None or crossover.baseline_beyond is None:
        return ""
    if crossover.smallest is not None and not any(c.bracket for c in crossover.crossings):
        return ""
    label, status = crossover.baseline_beyond
    return f", being {failure(status)} at {label}"


def _below(crossover: Crossover | None, axis: str) -> str:
    row = AXES[axis]
    if crossover and crossover.crossings:
        last = crossover.crossings[-1]
        at = last.at if last.at is not None else last.low or 0.0
        return f"below {_amount(axis, row.place(at, measured=last.at is None))}"
    last_label = crossover.stretch.last if crossover and crossover.stretch else None
    return f"up to {_amount(axis, last_label)} for certain" if last_label else "at some sizes"


def _alike(verdict: Verdict) -> str:
    """The same of those that are like attention: `; weighing all pairs: 440 and 548 (performer)`."""
    if verdict.like_attention is None:
        return ""
    passings = [each for each in verdict.like_attention if each]
    if not any(each.start for each in passings):
        return "; of those that weigh all pairs by content none is known to stay cheaper"
    where = [_where(each, verdict.axis) for each in passings]
    places = [place if word == "from" else f"{word} {place}" for word, place in where]
    if len({each.series for each in passings if each.series}) > 1:
        text = " and ".join(f"{place} ({each.series})" for place, each in zip(places, passings, strict=True))
    else:
        text = f"{' and '.join(dict.fromkeys(places))} ({passings[0].series})"
    return f"; weighing all pairs: {text}"


def _table(table: Modes, answer: Answer, common: Mapping[str, str], rows: Sequence[Row]) -> ShortTable:
    is_only = sum(each.axis == table.axis for each in answer.tables) == 1
    own = [text for name, text in table.fixed.items() if name not in common and name not in UNSAID]
    name = named_with(table.axis, () if is_only else own)
    names = tuple(row.name for row in rows)
    lacks = tuple(_lacks(row) for row in rows), tuple(_lack_letters(row) for row in rows)
    return ShortTable(
        names=Column(name, name, "name", names, names),
        groups={MODES.get(mode, mode): tuple(_columns(table, answer, mode, rows)) for mode in table.largest},
        lacks=Column("note", "note", "lacks", *lacks) if any(lacks[0]) else None,
    )


def _columns(table: Modes, answer: Answer, mode: str, rows: Sequence[Row]) -> Iterator[Column]:
    """Those of one mode that hold anything."""
    size, of = table.largest[mode], [row.standings.get(mode) for row in rows]
    eager = "eager" if answer.baseline == BASELINE else answer.baseline
    places = [
        (eager, answer.baseline, subject(answer.baseline), [(x.against_baseline, x.start) if x else None for x in of]),
        (EXACT, answer.best_exact, answer.best_exact, [(x.against_exact, x.exact_start) if x else None for x in of]),
    ]
    for heading, other, name, known in places:
        pairs = [each or (None, None) for each in known]
        if any(crossover for crossover, _ in pairs):
            yield Column(
                heading=heading,
                full=f"cheaper than {name}",
                kind="place",
                texts=tuple(crossover_text(crossover, table.axis, other, "brief") for crossover, _ in pairs),
                briefs=tuple(place_mark(crossover, begun, table.axis) for crossover, begun in pairs),
                orders=tuple(place_order(crossover, begun) for crossover, begun in pairs),
            )
    figures = tuple(_figure(each, table.unit) for each in of)
    relative = any(each and each.ratio is not None for each in of)
    orders = tuple((each.ratio or 1.0 if relative else each.value) if each and each.value else None for each in of)
    yield Column(size, f"{'ratio' if relative else answer.metric} at {size}", "figure", figures, figures, orders)
    memories = [each.memory_bytes if each else None for each in of]
    if table.unit != "bytes" and any(each is not None for each in memories):
        texts = tuple(shown(each, "bytes") for each in memories), tuple(brief(each, "bytes") for each in memories)
        yield Column("memory", f"memory without inputs at {size}", "figure", *texts, tuple(memories))


def _unknown(tables: Iterable[Modes]) -> list[str]:
    """Whether a run of an earlier version does not know what its operators lack."""
    others = [row for table in tables for row in table.rows if not row.exact]
    is_known = any(row.lacks is not None for row in others)
    return (
        [] if is_known or not others else ["What operators lack is not stored in this run: attnbench list operators."]
    )


def _figure(standing: Standing | None, unit: str) -> str:
    """The ratio to the baseline; of that itself, and without one, the figure; where there is none, why."""
    if standing is None:
        return ""
    if standing.value is None:
        return "" if standing.status == "ok" else standing.status
    return times(standing.ratio) if standing.ratio is not None else shown(standing.value, unit)


def place_mark(crossover: Crossover | None, start: Start | None, axis: str) -> str:
    """From where on a series is cheaper, in a few characters, which MARKS explains: `911`, `≤256`, `<96`, `–`, `?`."""
    row = AXES[axis]
    if crossover is None or crossover.kind == "nothing":
        return ""
    if start is not None:
        return row.size(start.at) if start.at is not None else f"{BY}{row.size(start.by, measured=True)}"
    if crossover.crossings:
        last = crossover.crossings[-1]
        return f"<{row.size(last.at) if last.at is not None else row.size(last.low or 0, measured=True)}"
    if crossover.kind == "same":
        return SAME
    stretch = crossover.stretch
    dearer_at_the_end = stretch is not None and not stretch.cheaper and stretch.last is None
    return NOWHERE if crossover.kind == "never" or dearer_at_the_end else UNKNOWN


def _lacks(row: Row) -> str:
    error = ""
    if row.error is not None:
        mean = "" if row.mean_error is None else f" (mean of v: {shown(row.mean_error, '')})"
        error = f"error {shown(row.error, '')}{mean}"
    lacks = [PROPERTIES[name].lack for name in _distinct(row.lacks or ())]
    return EXACT if row.exact else ", ".join(filter(None, [*lacks, error]))


def _lack_letters(row: Row) -> str:
    error = "" if row.error is None else f"e{brief(row.error, '')}"
    return EXACT if row.exact else "".join([*(LETTERS[name] for name in _distinct(row.lacks or ())), error])


def _distinct(lacks: Sequence[str]) -> list[str]:
    return [name for name in lacks if IMPLIED.get(name) not in lacks]


def legend(tables: Iterable[ShortTable]) -> list[str]:
    """What the marks in tables without words mean, of those alone that stand there."""
    columns = [column for table in tables for column in table.columns]
    places = " ".join(text for column in columns if column.kind == "place" for text in column.briefs)
    codes = " ".join(text for column in columns if column.kind == "lacks" for text in column.briefs if text != EXACT)
    marks = [meaning for mark, meaning in MARKS.items() if mark in places]
    letters = [f"{letter}: {PROPERTIES[name].lack}" for name, letter in LETTERS.items() if letter in codes]
    errors = ["e: error as estimate of softmax"] if "e" in codes else []
    memory = [MEMORY_WORDS] if any(column.heading == "memory" for column in columns) else []
    return [*marks, *letters, *errors, *memory]


def _left_out(summary: Summary, answer: Answer, panels: int, tables: Sequence[Modes], most_rows: int) -> str:
    """`+5 more rows, +2 more verdicts, cells without a figure: 28 skipped, 1 wrong: --all`."""
    rows = sum(table.hidden + len(table.rows) - len(_rows(table, most_rows)) for table in tables if not table.chosen)
    others = len(answer.tables) - len(tables)
    failures = sum((Counter(table.failures) for table in tables), Counter())
    statuses = [f"{number} {status}" for status, number in failures.items()]
    unmeasured = [f"{table.axis} {', '.join(table.unmeasured)}" for table in tables if table.unmeasured]
    more = [
        f"+{count(rows, 'more row')}" if rows else "",
        f"+{count(panels, 'more verdict')}" if panels else "",
        f"+{count(others, 'more table')}" if others else "",
        f"not measured: {', '.join(unmeasured)}" if unmeasured else "",
        f"cells without a figure: {', '.join(statuses)}" if statuses else "",
        f"{len(summary.skipped)} series skipped" if summary.skipped else "",
    ]
    text = "; ".join(filter(None, more))
    return f"{text}: --all" if text else ""
