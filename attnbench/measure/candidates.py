"""What may be chosen for a problem: what the registry says of every operator, beside the times of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from attnbench.analysis import cards
from attnbench.analysis.baseline import computes_nothing
from attnbench.analysis.choice import (
    Candidate,
    Choice,
    Excluded,
    MemorySource,
    Ranked,
    error_of,
    level_with_fastest,
    ranked,
    ranked_by_roofline,
)
from attnbench.analysis.interpolation import Place, Timing, place_of, unlike
from attnbench.analysis.metric_values import Quantity, quantity
from attnbench.analysis.roofline import least_s
from attnbench.analysis.run import read_run
from attnbench.errors import BadInput
from attnbench.measure.device import AUTO, HOST, choose_device, device_names, device_of
from attnbench.measure.estimates import most_operations
from attnbench.naming import option
from attnbench.plan.choice_request import ChoiceRequest, params_given, read_cells, read_memory, read_needs
from attnbench.problem import Cell, canonical_params
from attnbench.properties import FORMS, properties
from attnbench.registry import device_type_of, operators, placed_metrics, resolve, why_not, why_not_impl
from attnbench.units import not_among, separated
from attnbench.user_code import user_errors

if TYPE_CHECKING:
    import pandas as pd

    from attnbench.analysis.cards import Rates
    from attnbench.analysis.run import Run
    from attnbench.analysis.series import Point, Series
    from attnbench.operator import Cost, Impl, Operator
    from attnbench.problem import ParamValue
    from attnbench.registry import Source


@dataclass(frozen=True)
class _Hardware:
    """Where the problem is to be computed.

    Args:
        name: of the device.
        memory_bytes: None: not known.
        rates: None: it has no roofline.
    """

    name: str
    memory_bytes: int | None
    rates: Rates | None


@dataclass(frozen=True)
class _Definition:
    """What is known of an operator with its params at the problem, whatever the impl.

    Args:
        cell: of the reference.
        operator: None: the run has it, and it is not installed here.
        source: of the operator.
        stored: what the run says of its properties.
        most: operations of a call whose memory is predicted; None: any number.
    """

    cell: Cell
    operator: Operator | None
    source: Source | None
    stored: Mapping[str, bool]
    most: int | None

    def own_code(self) -> AbstractContextManager[None]:
        """Within which a user's functions are called."""
        ours = self.source is None or self.source.shipped
        return nullcontext() if ours or self.source is None else user_errors(self.source.location)

    @cached_property
    def properties(self) -> Mapping[str, bool]:
        """By name, of those that are known."""
        if self.operator is None:
            return self.stored
        with self.own_code():
            return properties(self.operator, self.cell.params, self.cell.problem.causal)

    @cached_property
    def cost(self) -> Cost | None:
        """None of an operator that is not installed."""
        if self.operator is None:
            return None
        with self.own_code():
            return self.operator.forms[self.cell.scope].cost(self.cell.problem, self.cell.params, self.cell.mode)

    @cached_property
    def estimates(self) -> bool:
        """Whether it is an estimate of softmax attention."""
        return bool(self.properties.get("drop_in") and not self.properties.get("exact"))

    def excluded(self, needs: Sequence[str]) -> Excluded | None:
        """Why it cannot be chosen at all, or None."""
        if computes_nothing(self.cell):
            return Excluded(self.cell, "nothing")
        with self.own_code():
            reason = self.operator and why_not(self.operator, self.cell, HOST)
        if reason:
            return Excluded(self.cell, "undefined", reason)
        unmet = tuple(need for need in needs if not self.properties.get(need))
        unknown = all(need not in self.properties for need in unmet)
        return Excluded(self.cell, "need", "not known" if unknown else "", unmet) if unmet else None

    def memory(self, impl: str) -> int | None:
        """Bytes alive at the peak of a call of an impl, inputs included, from shapes alone; None: not known."""
        from attnbench.measure.worker.forecast import footprint

        if self.operator is None or device_type_of(impl):
            return None
        form, cell = self.operator.forms[self.cell.scope], self.cell
        predicted = footprint(form, cell.problem, cell.params, cell.mode, impl, most=self.most)
        return None if predicted is None else predicted.total_bytes

    def impls(self) -> Iterator[str]:
        """The reference, and the impls that run on any device."""
        yield "reference"
        cell = self.cell
        impls = self.operator.forms[cell.scope].impls if self.operator else {}
        for name, impl in impls.items():
            if device_type_of(name) is None:
                with self.own_code():
                    reason = why_not_impl(impl, name, cell.problem, cell.params, cell.mode, HOST)
                if reason is None:
                    yield name

    def flops(self) -> float:
        """Of the cheapest exact form known. Only where `cost` is known."""
        assert self.operator is not None
        assert self.cost is not None
        cell = self.cell
        impls = self.operator.forms[cell.scope].impls
        with self.own_code():
            cheaper = [
                impl.flops(cell.problem, cell.params, cell.mode)
                for name, impl in impls.items()
                if impl.flops is not None and not self._is_of_other_kinds(impl, name)
            ]
        return float(min(self.cost.flops, self.cost.reference_flops, *cheaper))

    def _is_of_other_kinds(self, impl: Impl, name: str) -> bool:
        """Whether an impl takes another kind of the operator, and not this one. One that takes none here may be missing
        a package or a device, and is a form of this one as well."""
        cell, kind = self.cell, None if self.operator is None else self.operator.params.get("kind")
        if kind is None:
            return False

        def takes(value: ParamValue) -> bool:
            params = {**cell.params, "kind": value}
            device = device_type_of(name) or HOST
            try:
                return why_not_impl(impl, name, cell.problem, params, cell.mode, device) is None
            except (RuntimeError, AssertionError):  # torch has no such device
                return False

        return not takes(cell.params["kind"]) and any(takes(value) for value in kind.choices)


def choose(request: ChoiceRequest) -> Choice:
    """What to use for one problem.

    Raises: BadInput with what is wrong.
    """
    needs, (share, limit) = read_needs(request.needs), read_memory(request.memory)
    _check_alone(request)
    run = None if request.run is None else read_run(request.run)
    pairs = read_cells(request.problem)
    cell = pairs[0][1]
    hardware = _of_run(run) if run else _of_device(request.device or AUTO, cell.problem.dtype)
    if limit is None and hardware.memory_bytes is None and request.memory is not None:
        raise BadInput(
            f"{option('memory')} {request.memory}: the memory of {hardware.name} is not known. Give bytes: 24GiB."
        )
    if request.device is not None:
        cards.check_holds(request.memory, limit, hardware.name, hardware.memory_bytes)
    is_own = limit is None and hardware.memory_bytes is not None
    limit = int(share * hardware.memory_bytes) if is_own and hardware.memory_bytes else limit
    sources = operators(request.problem.operators_from)
    search = _Search(needs, limit, hardware, pairs, sources, request, None if run is None else run.results)
    by_run = _ByRun() if run is None else _by_run(run, search, cell, request.metric)
    analytic = ranked_by_roofline(search.analytic())
    return Choice(
        problem=cell.problem,
        mode=cell.mode,
        scope=cell.scope,
        needs=needs,
        memory_limit_bytes=limit,
        memory_of=hardware.name if is_own else "",
        run=run.name if run else "",
        device=hardware.name,
        axis=by_run.axis,
        unlike=by_run.unlike,
        timed=by_run.ranked,
        analytic=analytic,
        out=tuple(search.out),
        rates=hardware.rates,
        defaults={cell.operator: resolve(operator, {}) for operator, cell in pairs},
        has_intervals=by_run.has_intervals,
    )


def _check_alone(request: ChoiceRequest) -> None:
    """Raises BadInput where options contradict each other."""
    if request.run is not None and request.device is not None:
        raise BadInput(
            f"{option('run')} {request.run} {option('device')} {request.device}: a run has been measured on a device "
            "of its own. Give one of them."
        )
    if request.run is None and request.metric is not None:
        raise BadInput(
            f"{option('metric')} {request.metric}: it is that of a run. Give {option('run')}, or leave it out."
        )


@dataclass(frozen=True)
class _ByRun:
    """What a run has of a choice: those of its fields that a run sets."""

    axis: str = ""
    unlike: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    ranked: tuple[Ranked, ...] = ()
    has_intervals: bool = True


def _by_run(run: Run, search: _Search, cell: Cell, metric: str | None) -> _ByRun:
    time = _time(run, metric)
    place = place_of(run, cell.problem, cell.mode, cell.scope, time)
    if place is None:
        return _ByRun(unlike=unlike(run, cell.problem, cell.mode, cell.scope))
    chosen = search.timed(place, search.series(place, run), _memories(run.results))
    level = level_with_fastest(place, set(chosen), time) if chosen else set()
    return _ByRun(
        axis=place.panel.axis,
        unlike={} if place.timings else unlike(run, cell.problem, cell.mode, cell.scope),
        ranked=ranked([*chosen.values()], [name in level for name in chosen]),
        has_intervals=all(place.timings[name].level.has_interval for name in chosen),
    )


def _identity(cell: Cell) -> tuple[str, str]:
    return cell.operator, canonical_params(cell.params)


def _of_run(run: Run) -> _Hardware:
    name = cards.hardware(run.environment) or "the run's machine"
    return _Hardware(name, cards.memory_bytes(run.environment), cards.rates_of(run.environment))


def _of_device(name: str, dtype: Any) -> _Hardware:
    """A card of the table; or a kind of device of this machine, whose rates are measured now."""
    kinds = (AUTO, *device_names())
    if name not in kinds:
        card = cards.card(name, kinds)
        return _Hardware(card.of, card.memory_bytes, card)
    from attnbench.measure.machine import host
    from attnbench.measure.machine.peak_rates import rates

    device = device_of(choose_device(name))
    facts = {**host.facts(), **device.facts(), "rates": rates(device, [dtype])}
    measured = cards.rates_of(facts)
    assert measured is not None
    return _Hardware(measured.of, measured.memory_bytes, replace(measured, origin="measured on this machine now"))


def _time(run: Run, metric: str | None) -> Quantity:
    """The time that counts, as tables of what to use have it: the first that the run has figures of, or the named one.

    Raises: BadInput where the named one is no time.
    """
    times = [name for name, each in placed_metrics().items() if each.role == "time"]
    if metric is not None and metric not in times:
        raise BadInput(f"{option('metric')} {not_among(metric, times)}. Give one.")
    quantities = [quantity(run, name) for name in (times if metric is None else [metric])]
    return next((each for each in quantities if each.levels), quantities[0])


def _memories(results: pd.DataFrame) -> Mapping[str, float]:
    """By key, the bytes alive at the peak, as measured."""
    column = results.set_index("key")["peak_memory_total_bytes"].dropna()
    return {str(key): float(value) for key, value in column.items()}


_Wanted = Sequence[tuple["Series", _Definition]]
"""Series of a run, each with what is known of its operator."""


def _completed(operator: Operator | None, stored: str) -> Mapping[str, Any]:
    """Stored params with today's defaults; unchanged where the operator is not known, or has not one of them."""
    import json

    params: dict[str, Any] = json.loads(stored)
    try:
        return resolve(operator, params) if operator else params
    except ValueError:
        return params


class _Search:
    """Sorts operators into candidates and what is out.

    Args:
        pairs: every operator that is asked for, as its reference.
        results: of the run.
    """

    def __init__(
        self,
        needs: Sequence[str],
        limit: int | None,
        hardware: _Hardware,
        pairs: Sequence[tuple[Operator, Cell]],
        sources: Mapping[str, Source],
        request: ChoiceRequest,
        results: pd.DataFrame | None,
    ) -> None:
        self.needs, self.limit, self.hardware, self.results = needs, limit, hardware, results
        self.pairs, self.sources, self.given = pairs, sources, params_given(request.problem)
        names = separated(request.problem.operators)
        self.of_all = not names or "all" in names
        self.loaded = {cell.operator: operator for operator, cell in pairs}
        self.most = most_operations(len(self.loaded))
        self.left = {_identity(cell): self._definition(cell) for _, cell in pairs}
        self.out: list[Excluded] = []

    def _definition(self, cell: Cell, stored: Mapping[str, bool] | None = None) -> _Definition:
        name = cell.operator
        return _Definition(cell, self.loaded.get(name), self.sources.get(name), stored or {}, self.most)

    def series(self, place: Place, run: Run) -> _Wanted:
        """The series of a run that may be chosen: of the operators that are asked for, with the params that are given;
        where all are, those as well that are not installed."""
        form = FORMS[self.pairs[0][1].problem.causal]
        wanted = []
        for series in place.panel.series:
            operator = self.loaded.get(series.operator)
            if operator is None and not (self.of_all and series.operator not in self.sources):
                continue
            params = _completed(operator, series.params)
            allowed = [cell.params for _, cell in self.pairs if cell.operator == series.operator]
            if any(all(params.get(key) != other[key] for other in allowed) for key in self.given & {*params}):
                continue
            cell = replace(self.pairs[0][1], operator=series.operator, params=params)
            wanted.append((series, self._definition(cell, run.properties.get(series.identity, {}).get(form))))
        return wanted

    def timed(self, place: Place, wanted: _Wanted, memories: Mapping[str, float]) -> dict[str, Candidate]:
        """By the name of its series, what may be chosen by its time in a run."""
        chosen: dict[str, Candidate] = {}
        for series, definition in wanted:
            excluded = definition.excluded(self.needs)
            timing = place.timings.get(series.name)
            failed = None if timing else _failure(series, definition.cell)
            if excluded is None and timing is None and failed is None:
                continue  # not measured around the problem: its roofline is what is known
            self.left.pop(_identity(definition.cell), None)
            cell = replace(definition.cell, impl=series.impl)
            if excluded is not None:
                self._add_once(excluded)
            elif timing is None and failed is not None:
                self.out.append(Excluded(cell, "failed", failed.reason or failed.status))
            elif timing is not None:
                memory, source = self._memory(definition, series.impl, timing, memories)
                if self._fits(cell, memory):
                    chosen[series.name] = self._candidate(definition, cell, timing, memory, source)
        measured = {candidate.cell.operator for candidate in chosen.values()}
        if not self.given:  # of a measured operator other params than the run's are not asked for
            self.left = {name: each for name, each in self.left.items() if each.cell.operator not in measured}
        return chosen

    def _add_once(self, excluded: Excluded) -> None:
        if excluded not in self.out:
            self.out.append(excluded)

    def _memory(
        self, definition: _Definition, impl: str, timing: Timing, memories: Mapping[str, float]
    ) -> tuple[int | None, MemorySource]:
        figure = timing.figure(memories)
        if timing.is_measured and figure is not None:
            return int(figure), "measured"
        predicted = definition.memory(impl)
        if predicted is not None:
            return predicted, "predicted"
        return (None, "") if figure is None else (int(figure), "interpolated")

    def _fits(self, cell: Cell, memory: int | None) -> bool:
        if self.limit is None or memory is None or memory <= self.limit:
            return True
        self.out.append(Excluded(cell, "memory", memory_bytes=memory))
        return False

    def _candidate(
        self, definition: _Definition, cell: Cell, timing: Timing, memory: int | None, source: MemorySource
    ) -> Candidate:
        low, high = timing.interval or (None, None)
        labels = [point.label for point in timing.points]
        return replace(
            self._common(definition, cell, memory, source),
            seconds=timing.seconds,
            low=low,
            high=high,
            source="measured" if timing.is_measured else "interpolated",
            between=None if timing.is_measured else (labels[0], labels[1]),
            bound="",
        )

    def _common(self, definition: _Definition, cell: Cell, memory: int | None, source: MemorySource) -> Candidate:
        cost = definition.cost
        error = None
        if self.results is not None and definition.estimates:
            error = error_of(self.results, cell.operator, canonical_params(cell.params), cell.problem)
        return Candidate(
            cell=cell,
            exact=bool(definition.properties.get("exact")),
            estimates=definition.estimates,
            seconds=0.0,
            low=None,
            high=None,
            source="analytic",
            between=None,
            bound="",
            memory_bytes=memory,
            memory_source=source,
            state_bytes=None if cost is None else cost.state_bytes,
            flops=None if cost is None else cost.flops,
            error=error,
            properties=definition.properties,
        )

    def analytic(self) -> list[Candidate]:
        """What may be chosen of those of which a run has no time, by the roofline."""
        chosen = []
        for definition in self.left.values():
            excluded = definition.excluded(self.needs)
            if excluded is not None:
                self._add_once(excluded)
                continue
            rates, dtype = self.hardware.rates, definition.cell.problem.dtype
            rate = None if rates is None else rates.matmul_flops_per_s.get(dtype)
            if rates is None or rate is None:
                missing = "rates" if rates is None else f"rate of {dtype} products"
                self.out.append(Excluded(definition.cell, "unknown", f"no {missing} of {self.hardware.name}"))
                continue
            assert definition.cost is not None
            memories = {impl: definition.memory(impl) for impl in definition.impls()}
            known = {impl: memory for impl, memory in memories.items() if memory is not None}
            impl = min(known, key=lambda name: known[name], default="reference")
            cell = replace(definition.cell, impl=impl)
            if not self._fits(cell, known.get(impl)):
                continue
            seconds, bound = least_s(definition.flops(), definition.cost.bytes_moved, rate, rates.copy_bytes_per_s)
            common = self._common(definition, cell, known.get(impl), "predicted" if known else "")
            chosen.append(replace(common, seconds=seconds, bound=bound))
        return chosen


def _failure(series: Series, cell: Cell) -> Point | None:
    """The cell of a series at the very problem, where that failed or was skipped."""
    return next((point for point in series.points if point.problem == cell.problem and point.status != "ok"), None)
