"""The negative control of what fleets are held against: figures and visits that differ are seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.fleet.fleets import figures, kept, stored, units


def test_what_differs_is_seen(whole: Path, tmp_path: Path) -> None:
    assert len(figures(whole)) == 4
    assert all(status == "ok" and any(values) for status, *values in figures(whole).values())
    assert len(units(whole)) == 8
    shard = tmp_path / "shards" / "0001"
    shutil.copytree(whole, shard)
    before = stored(tmp_path)
    assert kept(before)
    lines = (shard / "visits.jsonl").read_text().splitlines()
    number = next(place for place, line in enumerate(lines) if json.loads(line)["round"] == 0)
    visit = json.loads(lines[number])
    visit["metrics"]["flops"] += 2
    lines[number] = json.dumps(visit)
    (shard / "visits.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert figures(shard) != figures(whole)
    assert units(shard) < units(whole)
    assert not kept(before)
