"""The papers: every file of `attnbench/papers/` is one, read into claims. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import MISSING, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from attnbench.analysis.claims import CHECKED, KINDS, MARKS, UNITS, VERDICTS, Claim, Number, Paper
from attnbench.analysis.paper_figures import UNITS as FIGURE_UNITS
from attnbench.analysis.paper_figures import Curve, Figure
from attnbench.axes import AXES
from attnbench.errors import BadInput, refusing
from attnbench.plan.mistakes import Notes, Section, several
from attnbench.units import choice, flag, not_among, quoted, separated, suggestion, whole_size
from attnbench.yaml_file import parse_shipped, read_text

T = TypeVar("T")

_SIZE = whole_size(1, 2**30)

FOLDER = Path(__file__).parent.parent / "papers"


def names() -> list[str]:
    """Of every paper."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def papers(chosen: Iterable[str] = ()) -> list[Paper]:
    """Those of some names, or all. Raises BadInput for an unknown one."""
    known = names()
    wanted = separated(chosen) or known
    for name in wanted:
        if name not in known:
            raise BadInput(
                f"no paper is named {quoted(name)}{suggestion(name, known)}; there are: {', '.join(known)}. "
                "Give some of these, or none for all."
            )
    return [read(FOLDER / f"{name}.yaml") for name in wanted]


def read(path: Path) -> Paper:
    """The paper of a file. Raises BadInput with all mistakes."""
    notes = Notes(str(path))
    section = Section(parse_shipped(read_text(path), str(path)), "", notes)
    paper = Paper(
        path.stem,
        **{key: section.take(key, _text, "") for key in ("title", "url", "source")},
        constants=section.take("constants", _texts, {}),
        cells=section.take("cells", _mappings, {}),
        networks=section.take("networks", _networks, {}),
        claims=tuple(
            _claim(value, f"claims[{index}]", notes)
            for index, value in enumerate(section.take("claims", _list, []))
        ),
        figures=tuple(
            each
            for index, value in enumerate(section.take("figures", _list, []))
            if (each := _figure(value, f"figures[{index}]", notes))
        ),
    )  # fmt: skip
    section.close()
    notes.close()
    return paper


def mistakes_in(paper: Paper, place: str) -> AbstractContextManager[None]:
    """Raises BadInput, with the place in a paper's file, in place of ValueError."""
    return refusing(f"papers/{paper.name}.yaml, {place}: ", ". Correct it there.")


def _claim(value: Any, path: str, notes: Notes) -> Claim:
    section = Section(value, path, notes)
    readers: dict[str, Callable[[Any], Any]] = {"kind": choice(KINDS), "mark": choice(MARKS)}
    claim: dict[str, Any] = {name: section.take(name, readers.get(name, _text), "") for name in _required(Claim)}
    for name in claim:
        section.require(name, "…")
    numbers = [
        _number(number, f"{path}.numbers[{index}]", notes)
        for index, number in enumerate(section.take("numbers", _list, []))
    ]
    texts: dict[str, Any] = {name: section.take(name, _text, "") for name in ("why", "rule", "on", "indication")}
    orders = section.take("orders", _orders, {})
    if claim["kind"] in CHECKED and not all(each.ours for each in numbers if each):
        notes.add(
            section.at("numbers"), f"ours is missing, which kind {claim['kind']} is checked by. Add an expression"
        )
    for kind, key, meaning in (("measured", "rule", "is decided by"), ("elsewhere", "why", "needs")):
        if claim["kind"] == kind and not (texts[key] or texts["indication"]):
            notes.add(section.at(key), f"missing: what kind {kind} {meaning}. Add a sentence")
    section.close()
    return Claim(**claim, **texts, orders=orders, numbers=tuple(each for each in numbers if each))


def _number(value: Any, path: str, notes: Notes) -> Number | None:
    section = Section(value, path, notes)
    readers: dict[str, Callable[[Any], Any]] = {
        "unit": choice(list(UNITS)),
        "meant": choice(list(UNITS)),
        "verdict": choice(VERDICTS[:2]),
        **dict.fromkeys(("at_least", "at_most", "cut"), flag),
        **dict.fromkeys(("terms", "indications"), _texts),
        **dict.fromkeys(("paper", "up_to"), _digits),
        **dict.fromkeys(("step", "within", "factor", "points"), _fraction),
    }
    for name in _required(Number):
        section.require(name, '"1.5"')
    given = {f.name: section.take(f.name, readers.get(f.name, _text), None) for f in fields(Number)}
    section.close()
    return Number(**{name: each for name, each in given.items() if each is not None}) if section.ok else None


def _figure(value: Any, path: str, notes: Notes) -> Figure | None:
    section = Section(value, path, notes)
    readers: dict[str, Callable[[Any], Any]] = {
        "unit": choice(FIGURE_UNITS),
        "sizes": several(_SIZE),
        "measured": flag,
    }
    for name in _required(Figure):
        section.require(name, "…")
    given: dict[str, Any] = {
        f.name: section.take(f.name, readers.get(f.name, _text), f.default)
        for f in fields(Figure)
        if f.name != "curves"
    }
    curves = [
        _curve(each, f"{path}.curves[{index}]", notes) for index, each in enumerate(section.take("curves", _list, []))
    ]
    section.close()
    return Figure(**given, curves=tuple(each for each in curves if each)) if section.ok else None


def _curve(value: Any, path: str, notes: Notes) -> Curve | None:
    section = Section(value, path, notes)
    for name in _required(Curve):
        section.require(name, "…")
    curve = Curve(
        **{name: section.take(name, _text, "") for name in _required(Curve)},
        paper=section.take("paper", _places, {}),
        longest=section.take("longest", several(_text), ()),
    )
    section.close()
    return curve if section.ok else None


def _required(kind: type[Any]) -> list[str]:
    return [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]


def _text(value: Any) -> str:
    if isinstance(value, (dict, list)) or value is None:
        raise ValueError(f"{quoted(value)}; allowed: a text")
    return str(value)


def _digits(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{quoted(value)}; allowed: the digits as printed, as a text: "0.90"')
    Fraction(value)
    return value


def _fraction(value: Any) -> Fraction:
    return Fraction(_text(value))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{quoted(value)}; allowed: a list")
    return value


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"{quoted(value)}; allowed: a mapping of texts")
    return {name: _text(each) for name, each in value.items()}


def _places(value: Any) -> dict[int, str]:
    return {_SIZE(int(size) if size.isdigit() else size): text for size, text in _texts(value).items()}


def _orders(value: Any) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Orders by name: of each the ranks, of each rank its expressions."""
    if not isinstance(value, dict) or not all(isinstance(each, list) and len(each) > 1 for each in value.values()):
        raise ValueError(f"{quoted(value)}; allowed: a mapping of lists of two ranks or more, the largest first")
    return {name: tuple(map(several(_text), ranks)) for name, ranks in value.items()}


def _networks(value: Any) -> dict[str, list[dict[str, int]]]:
    if not isinstance(value, dict):
        raise ValueError(f"{quoted(value)}; allowed: a mapping of lists")
    for row in (row for network in value.values() for row in _list(network)):
        if not isinstance(row, dict) or "count" not in row or not all(type(each) is int for each in row.values()):
            raise ValueError(
                f"{quoted(row)}; allowed: by a network's name rows of count and sizes, such as "
                "{count: 3, image_size: 56}, all whole numbers"
            )
        for name in row:
            if name not in ("count", *AXES):
                raise ValueError(not_among(name, ("count", *AXES)))
    return value


def _mappings(value: Any) -> dict[str, Mapping[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
        raise ValueError(f"{quoted(value)}; allowed: a mapping of mappings")
    return value
