"""What of a shard is not measured, and where it is to be continued."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from attnbench.analysis.merge.parts import Part
from attnbench.files import is_file
from attnbench.problem import block_of
from attnbench.store.records import FLEET, RETRIED, SHARDS, Visit
from attnbench.store.shards import StoredShard
from attnbench.units import count

Unit = tuple[str, int]


def unmeasured(visits: Sequence[Visit], shard: StoredShard, keys: Mapping[str, set[str]]) -> list[Unit]:
    """The units of a shard of which a visit is missing. keys: `checked_keys` of all shards."""
    made = {(visit.key, visit.round): visit for visit in visits if visit.cause != "budget"}
    ended = {visit.key: visit.round for visit in visits if visit.round and visit.status not in RETRIED}

    def is_made(key: str, number: int) -> bool:
        check = made.get((key, 0))
        if check is None:
            return False
        return check.status != "ok" or (key, number) in made or ended.get(key, number) < number

    return [
        (block, number)
        for block, number in shard.units
        if block not in keys or not all(is_made(key, number) for key in keys[block])
    ]


def checked_keys(visits: Iterable[Visit]) -> dict[str, set[str]]:
    """By block, the keys of its cells but for those that cannot run, of which a run says so once in a series."""
    keys: dict[str, set[str]] = {}
    for visit in visits:
        keys.setdefault(block_of(visit.key), set()).update([visit.key] * (visit.cause != "unsupported"))
    return keys


def lacking(visits: Sequence[Visit], shard: StoredShard) -> list[Unit]:
    """Of a shard that has ended: the units that its budget left out. A block without visits cannot run at all."""
    keys = checked_keys(visits)
    return [unit for unit in unmeasured(visits, shard, keys) if unit[0] in keys]


def fleet_of(folder: Path) -> Path | None:
    """The folder of the fleet of which a run folder is a shard; None: it is of none."""
    above = folder.parent
    return above.parent if above.name == SHARDS and is_file(above.parent / FLEET) else None


def unfinished(part: Part) -> str:
    """That a run, no shard, lacks rounds which it was to have; empty where it lacks none."""
    if part.shard is not None:
        return ""
    if not part.visits:
        return f"{part.folder}: nothing was measured in it"
    least = min(part.environment.get("looks") or [1])
    rounds = Counter(visit.key for visit in part.visits if visit.round)
    ended = {visit.key for visit in part.visits if visit.status not in RETRIED}
    checked = {visit.key for visit in part.visits if visit.round == 0 and visit.status == "ok"}
    short = [key for key in checked - ended if rounds[key] < least]
    if not short:
        return ""
    todo = f"attnbench run --resume {part.folder}"
    return f"{part.folder} is not finished: rounds are missing of {count(len(short), 'cell')} ({todo})"
