"""Claims of papers beside ours: from formulas and shapes, and of time from stored runs. Nothing is computed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

from attnbench.analysis.claims import CHECKED, Checked, Claim, Number, Paper, Result, verdict_of, verdict_of_claim
from attnbench.analysis.expressions import GUESS, crossover_of, evaluate
from attnbench.analysis.timed_claims import verdict_of_timing
from attnbench.axes import AXES
from attnbench.errors import BadInput
from attnbench.measure.fit import need
from attnbench.measure.papers import mistakes_in
from attnbench.measure.timed_claims import StoredTimes, timing_of
from attnbench.measure.worker.forecast import footprint
from attnbench.plan.sweep import Shape
from attnbench.problem import Cell
from attnbench.registry import operators, resolve, undefined
from attnbench.units import quoted, separated, suggestion

if TYPE_CHECKING:
    from attnbench.measure.worker.fake_memory import Footprint
    from attnbench.operator import Form

_shipped = cache(operators)
"""To look for them reads a dozen folders."""

_KINDS = ("dtype", "causal")
_OTHERS = ("operator", "impl", "scope", "mode", "params", "layers")


@dataclass(frozen=True)
class Quantities:
    """The figures of one cell, each made when it is asked for.

    Attributes:
        form, cell: of its operator.
        layers: of which need_bytes is what `fit` says they need at once.
    """

    form: Form
    cell: Cell
    layers: int = 1

    def __getitem__(self, name: str) -> Fraction:
        """A field of a cost or of a footprint, multiply_adds, or need_bytes. Raises ValueError where there is none."""
        cost = {**asdict(self._cost), "multiply_adds": Fraction(self._cost.flops, 2)}
        if name in cost:
            return Fraction(cost[name] or 0)
        if name not in _FOOTPRINT:
            allowed = [*cost, *_FOOTPRINT]
            raise ValueError(f"no figure {name}{suggestion(name, allowed)}; allowed: {', '.join(allowed)}")
        of = self._footprint
        if name == "need_bytes":
            return Fraction(need(of, self.layers, self.cell.mode != "fwd").total_bytes)
        return Fraction(getattr(of, _FOOTPRINT[name]))

    @cached_property
    def _cost(self) -> Any:
        return self.form.cost(self.cell.problem, self.cell.params, self.cell.mode)

    @cached_property
    def _footprint(self) -> Footprint:
        predicted = footprint(self.form, self.cell.problem, self.cell.params, self.cell.mode)
        if predicted is None:
            raise ValueError(f"{self.cell.operator}: its memory is not known from shapes")
        return predicted


_FOOTPRINT = {
    "peak_memory_bytes": "peak_bytes",
    "parameter_bytes": "parameter_bytes",
    "input_bytes": "input_bytes",
    "saved_bytes": "saved_bytes",
    "need_bytes": "",
}
"""Fields of a footprint by the name of the figure; need_bytes is made of several."""


def reproduce(chosen: Iterable[Paper], runs: Sequence[StoredTimes] = ()) -> list[Result]:
    """Every claim of some papers with its verdict. Raises BadInput where a file asks for what there is not.

    runs: where claims of time are looked up.
    """
    return [result for paper in chosen for result in _results(paper, runs)]


def _results(paper: Paper, runs: Sequence[StoredTimes]) -> list[Result]:
    asked: dict[str, Cell] = {}
    value = expressions(paper, asked)
    results = []
    for claim in paper.claims:
        asked.clear()
        checked = _checked_numbers(paper, claim, value)
        timing, verdict = None, verdict_of_claim(claim, checked)
        if claim.kind == "measured" or (claim.kind not in CHECKED and any(each.ours for each in claim.numbers)):
            timing = timing_of(paper, claim, partial(cell_of, paper), runs)
            verdict = verdict_of_timing(claim, timing)
        indications = {number.name: _indications(paper, claim, number, value) for number in claim.numbers}
        results.append(Result(paper, claim, checked, verdict, tuple(asked.values()), timing, indications))
    return results


def _indications(paper: Paper, claim: Claim, number: Number, value: Value) -> dict[str, Fraction]:
    """Those that its file has; of a ratio of times that of the multiply-adds of the same cells."""
    is_ratio = _TIME.search(number.ours) and not crossover_of(number.ours)
    counted = {"in multiply-adds": _TIME.sub(".multiply_adds", number.ours)} if is_ratio else {}
    with mistakes_in(paper, f"{claim.id} {number.name}"):
        return {what: value(text, {}) for what, text in {**counted, **number.indications}.items()}


_TIME = re.compile(r"\.time\b")


def expressions(paper: Paper, asked: dict[str, Cell] | None = None) -> Value:
    """What evaluates expressions over the constants and cells of a paper; each figure is made once.

    Args:
        paper: whose file has them.
        asked: where the cells are put whose figures are asked for.

    Raises: BadInput where a constant cannot be evaluated.
    """
    known: dict[str, Quantities] = {}

    def figure(name: str, overrides: Mapping[str, Any], attribute: str) -> Fraction:
        cell = cell_of(paper, name, overrides)
        layers = {**paper.cells[name], **overrides}.get("layers", 1)
        key = f"{cell.key} {layers}"
        if key not in known:
            known[key] = replace(quantities(cell), layers=layers)
        if asked is not None:
            asked[key] = cell
        return known[key][attribute]

    constants: dict[str, Fraction] = {}
    for name, text in paper.constants.items():
        with mistakes_in(paper, f"constants.{name}"):
            constants[name] = evaluate(text, constants, figure, paper.networks)
    return lambda text, names: evaluate(text, {**constants, **names}, figure, paper.networks)


Value = Callable[[str, Mapping[str, Fraction]], Fraction]
"""(expression, constants beside those of the paper) → its value."""


def _checked_numbers(paper: Paper, claim: Claim, value: Value) -> list[Checked]:
    checked = []
    for number in claim.numbers if claim.kind in CHECKED else ():
        with mistakes_in(paper, f"{claim.id} {number.name}"):
            checked.append(_checked(claim, number, value))
    return checked


def _checked(claim: Claim, number: Number, value: Value) -> Checked:
    near = {GUESS: number.value}
    ours = value(number.ours, near)
    terms = {name: value(text, near) for name, text in number.terms.items()}
    map_bytes = value(number.map_bytes, {}) if number.map_bytes else None
    return Checked(number, ours, terms, map_bytes, verdict_of(claim.kind, ours, number))


def cell_of(paper: Paper, name: str, overrides: Mapping[str, Any]) -> Cell:
    """A cell of a paper. overrides: axes, dtype, causal, scope, mode, and of the others params of the operator."""
    if name not in paper.cells:
        raise ValueError(f"no cell {name}{suggestion(name, paper.cells)}; the file has {', '.join(paper.cells)}")
    given: dict[str, Any] = {**paper.cells[name]}
    params = dict(given.get("params", {}))
    for key, value in overrides.items():
        (given if key in (*AXES, *_KINDS, *_OTHERS) else params)[key] = value
    sizes: dict[str, Any] = {}
    for key in given.keys() & AXES.keys():
        sizes |= AXES[key].fields(AXES[key].read(given[key]))
    kinds = {"dtype": given.get("dtype", "float32"), "causal": given.get("causal", False)}
    known = _shipped()
    if given.get("operator") not in known:
        raise ValueError(f"{name}: operator {quoted(given.get('operator'))}{suggestion(given.get('operator'), known)}")
    operator = known[given["operator"]].load()
    problem = Shape().at(sizes, kinds)
    scope, mode = given.get("scope", "core"), given.get("mode", "fwd")
    return Cell(given["operator"], given.get("impl", "reference"), scope, mode, problem, resolve(operator, params))


def quantities(cell: Cell) -> Quantities:
    """What is known of a cell. Raises ValueError outside the operator's definition."""
    operator = _shipped()[cell.operator].load()
    outside = undefined(operator, cell)
    if outside is not None:
        raise ValueError(f"{cell.operator}: {outside}")
    return Quantities(operator.forms[cell.scope], cell)


def claims_named(chosen: Iterable[Paper], ids: Iterable[str]) -> list[Paper]:
    """The papers with the claims of these ids alone; of no ids as they are. Raises BadInput for an unknown id."""
    chosen, wanted = list(chosen), separated(ids)
    known = [claim.id for paper in chosen for claim in paper.claims]
    for name in wanted:
        if name not in known:
            raise BadInput(
                f"--explain {quoted(name)}: no such claim{suggestion(name, known)}; there are: {', '.join(known)}. "
                "Give one of these."
            )
    if not wanted:
        return chosen
    kept = [replace(paper, claims=[claim for claim in paper.claims if claim.id in wanted]) for paper in chosen]
    return [paper for paper in kept if paper.claims]


def commands(results: Iterable[Result]) -> dict[str, list[str]]:
    """By id of a claim, the commands that give its figures alone."""
    return {
        result.claim.id: [
            *dict.fromkeys(map(command_of, result.cells)),
            *(f"attnbench run {each.suite}" for each in (result.timing.on if result.timing else ())),
        ]
        for result in results
    }


def command_of(cell: Cell) -> str:
    """The command line that estimates a cell alone."""
    problem = cell.problem
    size = (
        f"--seq-len {problem.seq_len}" if problem.height is None else f"--image-size {problem.height}x{problem.width}"
    )
    words = [f"attnbench estimate {cell.operator} {size} --channels {problem.channels} --heads {problem.heads}"]
    words += [f"--batch {problem.batch}"] if problem.batch != 1 else []
    words += [f"--dtype {problem.dtype}"] if problem.dtype != "float32" else []
    words += ["--causal"] if problem.causal else []
    words += ["--train"] if cell.mode == "fwd_bwd" else []
    words += [f"--scope {cell.scope}"] if cell.scope != "core" else []
    defaults = resolve(_shipped()[cell.operator].load(), {})
    words += [
        f"--param {key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in cell.params.items()
        if value != defaults[key]
    ]
    return " ".join(words)
