"""Several parts become one run: visits with rounds and processes of their own, one check per cell, and provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.analysis.cards import hardware
from attnbench.analysis.compare.tier0_exact import exact_metrics
from attnbench.analysis.merge.belonging import check_together
from attnbench.analysis.merge.missing import checked_keys, fleet_of, unfinished, unmeasured
from attnbench.analysis.merge.parts import MACHINE, OPERATORS, Part, named, plain, read_part
from attnbench.errors import BadInput
from attnbench.groups import groups_of
from attnbench.naming import option
from attnbench.problem import block_of
from attnbench.store.records import Visit
from attnbench.store.shards import StoredShard
from attnbench.units import count, listed
from attnbench.yaml_file import written

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_ROUNDS = 1000
"""As many as a suite may ask for; a run of more is damage to who reads it."""

MOST_LOOKS = 20


@dataclass(frozen=True)
class Joined:
    """What is to be stored as one run.

    Attributes:
        visits: renumbered; the checks first.
        samples: the same, as tables of `SAMPLE_COLUMNS`.
        environment: with the facts of each part under `parts`.
        suite_text: of all of them.
        notes: sentences for who joins them: what was joined, what differs, what is missing.
    """

    visits: Sequence[Visit]
    samples: Sequence[DataFrame]
    environment: dict[str, Any]
    suite_text: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    """A part, and where its numbers begin in the joined run: its processes, and its rounds."""

    part: Part
    process: int
    round: int

    def moved(self, visit: Visit) -> Visit:
        """A visit with the joined run's numbers."""
        number = visit.round + self.round if visit.round else 0
        return replace(visit, process=visit.process + self.process, round=number)


def join(folders: Sequence[Path], *, partial: bool = False) -> Joined:
    """Runs and shards of one suite as one run.

    The shards of a suite keep their rounds, as each unit is one of the whole; every further run gets rounds of its own
    behind those before it, and every process a number of its own.

    Args:
        folders: of the parts.
        partial: whether shards, or units of one, may be missing.

    Raises: BadInput where there is none, where one cannot be trusted, where they do not belong together, or where
        shards are missing.
    """
    if not folders:
        raise BadInput("no run is given to join. Give folders that `attnbench run` wrote.")
    parts = sorted(_read(folders), key=lambda part: (part.started, part.shard.numbers if part.shard else ()))
    check_together(parts)
    groups = _groups(parts)
    several = sum(group[0].shard is not None for group in groups) > 1
    missing = [f"beside {group[0].folder} {note}" if several else note for group in groups for note in _missing(group)]
    if missing and not (partial and len(groups) == 1):
        todo = (
            "Join them without other runs first"
            if partial
            else f"Measure them, or join what there is with {option('partial')}"
        )
        raise BadInput(f"{'; '.join(missing)}. {todo}.")
    places = list(_places(groups))
    moved = [place.moved(visit) for place in places for visit in place.part.visits]
    visits, contradictions = _visits(moved, largest_first=_is_largest_first(parts[0].suite))
    environment = _environment(places, groups, bool(missing))
    unlike = (*_differences(parts), *_unknown_differences(visits))
    notes = (
        _joined_note(parts, environment),
        *unlike,
        *contradictions,
        *missing,
        *filter(None, map(unfinished, parts)),
    )
    return Joined(visits, _samples(places), environment, _suite_text(parts), notes)


def _read(folders: Iterable[Path]) -> Iterator[Part]:
    """The parts. What environments have in common is in memory once: a fleet has a thousand of them."""
    first: Mapping[str, Any] = {}
    for folder in folders:
        part = read_part(folder)
        first = first or part.environment
        same = {name: first[name] for name, value in part.environment.items() if value == first.get(name)}
        yield replace(part, environment={**part.environment, **same})


def _groups(parts: Sequence[Part]) -> list[list[Part]]:
    """What has its rounds in common: the shards of one dealing; every other run is alone."""
    dealt = ((part.dealing or number, part) for number, part in enumerate(parts))
    return list(groups_of(dealt).values())


def _places(groups: Iterable[Sequence[Part]]) -> Iterable[_Place]:
    processes = rounds = 0
    for group in groups:
        for part in group:
            yield _Place(part, processes, rounds)
            processes += part.processes
        rounds += max(part.rounds for part in group)
        if rounds > MOST_ROUNDS:
            raise BadInput(f"{group[0].folder}: with it there are {rounds} rounds; a run has at most {MOST_ROUNDS}.")


def _missing(group: Sequence[Part]) -> list[str]:
    """What of the shards of one dealing is not there, in words. Raises BadInput where they were dealt differently."""
    shards = [part.shard for part in group if part.shard is not None]
    if not shards:
        return []
    joined = _shard(shards)
    of, units = joined.of, joined.units
    absent = sorted({*range(1, of + 1)} - {*joined.numbers})
    if len({shard.dealt for shard in shards}) > 1 or (not absent and len(units) != joined.dealt):
        raise BadInput(
            f"{group[0].folder}: {len(units)} units in all shards, and the suite has {shards[0].dealt}: they were not "
            "dealt alike. Measure the shards with one version of attnbench."
        )
    texts = [f"missing: {listed([f'shard {number}/{of}' for number in absent], 10)}"] if absent else []
    keys = checked_keys(visit for part in group for visit in part.visits)
    for part, shard in zip(group, shards, strict=True):
        left = unmeasured(part.visits, shard, keys)
        if left:
            of_all = f"{len(left)} of the {count(len(shard.units), 'unit')} of {part.folder} (shard {shard})"
            fleet = fleet_of(part.folder)
            todo = f"run --resume {part.folder}" if fleet is None else f"fleet --resume {fleet} --on …"
            texts.append(f"missing: {of_all}, such as {left[0][0]} in round {left[0][1]} (attnbench {todo})")
    return texts


def _visits(moved: Sequence[Visit], *, largest_first: bool) -> tuple[list[Visit], list[str]]:
    """One check per cell, small sizes first, then the timed visits; and where checks contradict each other.

    largest_first: whether runs of the suite begin with its large sizes.
    """
    checks = groups_of((visit.key, visit) for visit in moved if visit.round == 0)
    timed = [visit for visit in moved if visit.round]
    reached = {visit.key for visit in timed if visit.cause != "budget"}
    timed = [visit for visit in timed if visit.cause != "budget" or visit.key not in reached]
    chosen, notes = [], []
    for same in checks.values():
        check, differing = _check_of(same)
        chosen.append(check)
        notes += differing
    chosen = _once_in_series(sorted(chosen, key=lambda visit: _size(visit.cell)), -1 if largest_first else 0)
    firsts: dict[str, Visit] = {}
    for visit in timed:  # what a budget did not reach is said once
        if visit.cause == "budget":
            firsts.setdefault(visit.key, visit)
    timed = [visit for visit in timed if visit.cause != "budget" or firsts[visit.key] is visit]
    return [*chosen, *timed], notes


def _is_largest_first(suite: Mapping[str, Any]) -> bool:
    limits = suite.get("limits")
    return isinstance(limits, Mapping) and limits.get("first") == "largest"


def _once_in_series(checks: Sequence[Visit], first: int) -> list[Visit]:
    """The checks of a run: that a whole series cannot run, for one reason, is said at one size, as a run says it.

    Args:
        checks: by size.
        first: the position of the size that a run begins with.
    """
    series = groups_of((_series(check.cell), check) for check in checks)
    repeated = {
        check.key
        for same in series.values()
        if len({(check.cause, check.reason) for check in same}) == 1 and same[0].cause == "unsupported"
        for check in same
        if check is not same[first]
    }
    return [check for check in checks if check.key not in repeated]


def _series(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    """What all sizes of a series have in common."""
    names = ("operator", "impl", "scope", "mode", "params", "dtype", "causal")
    return (*(cell[name] for name in names), cell["height"] is None)


def _size(cell: Mapping[str, Any]) -> tuple[int, ...]:
    tokens = cell["seq_len"]
    numbers = (tokens, cell["query_len"] or tokens, cell["channels"], cell["batch"], cell["heads"])
    return (*numbers, cell["kv_heads"] or cell["heads"])


def _check_of(same: Sequence[Visit]) -> tuple[Visit, list[str]]:
    """The check of a cell that says most: that it is wrong, else that it is right; and what the others contradict."""
    best = min(same, key=_doubt)
    others = [visit for visit in same if visit.status != best.status and visit.cause != "budget"]
    texts = [f"another device's check: {visit.status}, {visit.reason or 'no reason'}" for visit in others]
    for name, metric in exact_metrics().items():
        for column in dict.fromkeys((metric.column, *metric.guarded)):
            figures = sorted(
                {v.metrics[column] for v in same if v.status == "ok" and v.metrics.get(column) is not None}
            )
            if len(figures) > 1:
                texts.append(f"{name}: {column} was {figures[0]} to {figures[-1]} in the checks of {len(same)} parts")
    warnings = tuple(dict.fromkeys((*best.warnings, *texts)))
    return replace(best, warnings=warnings), [f"{best.key}: {text}" for text in texts]


def _doubt(visit: Visit) -> int:
    return {"wrong": 0, "ok": 1}.get(visit.status, 3 if visit.cause == "budget" else 2)


def _samples(places: Sequence[_Place]) -> list[DataFrame]:
    tables = []
    for place in places:
        table = place.part.samples()
        timed = table["round"] > 0
        tables.append(
            table.assign(process=table["process"] + place.process, round=table["round"] + place.round * timed)
        )
    return tables


def _environment(places: Sequence[_Place], groups: Sequence[Sequence[Part]], partial: bool) -> dict[str, Any]:
    """environment.json: the facts of the first part, and under `parts` those of each."""
    environments = [place.part.environment for place in places]
    first = named(environments[0], MACHINE)
    devices = {str(each.get("device_id", "")) for each in environments}
    if len(devices) > 1:
        first.pop("device_id", None)
    if "rates" in first and not first["rates"]:
        first["rates"] = next((plain(each["rates"]) for each in environments if each.get("rates")), {})
    shards = [part.shard for part in groups[0] if part.shard is not None]
    return {
        **first,
        **named(environments[0], ("suite", "fast_exact", "code", "seed")),
        **{name: _united(environments, name) for name in OPERATORS},
        "exact": list(dict.fromkeys(each for environment in environments for each in environment.get("exact", ()))),
        "looks": _looks(groups),
        "sweep": _sweep(environments),
        **({"shard": _shard(shards).stored()} if partial else {}),
        "parts": [each for place in places for each in _provenance(place)],
    }


def _united(environments: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    return {key: plain(value) for environment in environments for key, value in environment.get(name, {}).items()}


def _sweep(environments: Sequence[Mapping[str, Any]]) -> list[Any]:
    entries: list[Any] = []
    for environment in environments:
        stored = environment.get("sweep")
        entries += [each for each in (stored if isinstance(stored, list) else []) if each not in entries]
    return entries


def _shard(shards: Sequence[StoredShard]) -> StoredShard:
    """Several shards of one dealing as one part of it."""
    numbers = sorted({number for shard in shards for number in shard.numbers})
    units = sorted({unit for shard in shards for unit in shard.units})
    return StoredShard(tuple(numbers), shards[0].of, units, shards[0].dealt)


def _looks(groups: Sequence[Sequence[Part]]) -> list[int]:
    """The round counts at which the joined run might have stopped: those of each group, behind the rounds before it.

    Runs of a fixed length are a longer one of a fixed length.
    """
    planned = [tuple(group[0].environment.get("looks") or ()) for group in groups]
    made = [max(part.rounds for part in group) for group in groups]
    if all(len(looks) <= 1 for looks in planned):
        return [max(sum(made), *(looks[0] for looks in planned if looks), 1)]
    looks, before = set(), 0
    for number, (own, rounds) in enumerate(zip(planned, made, strict=True)):
        last = number == len(groups) - 1
        looks |= {before + look for look in (own or (rounds,)) if last or look <= rounds}
        before += rounds
    ordered = sorted(look for look in looks if 1 <= look <= MOST_ROUNDS)
    step = -(-len(ordered) // MOST_LOOKS)
    return sorted({*ordered[::step], ordered[-1]})[-MOST_LOOKS:]


def _provenance(place: _Place) -> list[dict[str, Any]]:
    """Where visits of a part are from: which shard, when, which processes and rounds, and the facts of its machine."""
    part = place.part
    earlier = part.environment.get("parts")
    if earlier:
        return [
            {
                **plain(each),
                "processes": [number + place.process for number in each["processes"]],
                "rounds": [number + place.round for number in each["rounds"]],
            }
            for each in earlier
        ]
    return [
        {
            "shard": str(part.shard) if part.shard else None,
            "processes": [place.process, place.process + part.processes - 1],
            "rounds": [place.round + 1, place.round + max(part.rounds, 1)],
            "facts": named(part.environment, MACHINE),
        }
    ]


def _suite_text(parts: Sequence[Part]) -> str:
    """The suite of all parts: as it is, or with the operators, impls and entries of the sweep of each."""
    data = plain(parts[0].suite)
    if all(part.suite_text == parts[0].suite_text or plain(part.suite) == data for part in parts):
        return parts[0].suite_text if data == parts[0].suite else written(data)
    suites = [plain(part.suite) for part in parts]
    operators: dict[str, dict[str, list[Any]]] = {}
    for grids in map(_grids, suites):
        for name, grid in grids.items():
            for key, values in grid.items():
                known = operators.setdefault(name, {}).setdefault(key, [])
                known += [value for value in values if value not in known]
            operators.setdefault(name, {})
    everything = any(suite.get("operators") == "all" for suite in suites)
    sweep: list[Any] = []
    for suite in suites:
        entries = suite["sweep"] if isinstance(suite["sweep"], list) else [suite["sweep"]]
        sweep += [entry for entry in entries if entry not in sweep]
    impls = list(dict.fromkeys(impl for suite in suites for impl in _list(suite.get("impls"))))
    changed = {"operators": "all" if everything else operators, "sweep": sweep, **({"impls": impls} if impls else {})}
    return written({**data, **changed})


def _grids(suite: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """The operators of a suite, each with the values of its parameters."""
    stated = suite.get("operators")
    tables = [each if isinstance(each, Mapping) else {str(each): {}} for each in _list(stated)]
    return {
        str(name): {str(key): _list(values) for key, values in (grid or {}).items()}
        for table in tables
        for name, grid in table.items()
    }


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _joined_note(parts: Sequence[Part], environment: Mapping[str, Any]) -> str:
    shards = sum(part.shard is not None for part in parts)
    what = [count(shards, "shard")] * bool(shards) + [count(len(parts) - shards, "run")] * (len(parts) > shards)
    devices = {visit.device_id for part in parts for visit in part.visits}
    on = f"{count(len(devices), 'device')} ({hardware(environment) or 'unknown'})"
    return f"joined: {' and '.join(what)}, measured on {on}"


def _unknown_differences(visits: Sequence[Visit]) -> list[str]:
    """That nothing is known of how devices differ, where no two cells of a block were both measured on several."""
    devices: dict[str, set[str]] = {}
    for visit in visits:
        if visit.round and visit.status == "ok":
            devices.setdefault(visit.key, set()).add(visit.device_id)
    blocks = Counter(block_of(key) for key, ids in devices.items() if len(ids) > 1)
    if len(set().union(*devices.values())) < 2 or max(blocks.values(), default=0) > 1:
        return []
    return [
        "how the devices differ is not known: no two cells of a block were both measured on several; not in intervals"
    ]


_TOLD = ("kernel_release", "commit", "cpu", "cores", "governor", "gpu.driver", "gpu.power_limit_w")
"""Facts of which it is said that parts differ."""


def _differences(parts: Sequence[Part]) -> list[str]:
    def fact(part: Part, name: str) -> Any:
        value: Any = part.environment
        for each in name.split("."):
            value = value.get(each) if isinstance(value, Mapping) else None
        return value

    notes = []
    for name in _TOLD:
        values = dict.fromkeys(plain(str(fact(part, name))) for part in parts)
        if len(values) > 1:
            notes.append(f"the parts differ in {name}: {listed(list(values), 4)}")
    return notes
