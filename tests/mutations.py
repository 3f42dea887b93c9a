"""Suites and run folders damaged at random: what a user's disk, editor and pranks can do to them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attnbench.errors import BadInput
from attnbench.record import ENVIRONMENT, RESULTS, SAMPLES, SUITE, VISITS, Run, read_run

SUITE_TEXT = """\
name: mutated
description: a suite to be damaged
baseline: softmax
operators: {softmax: {}, linformer: {k: [64, 256]}, performer: {kind: [softmax, relu]}}
impls: [reference, sdpa]
scope: [core]
sweep:
  - seq_len: {from: 256, to: 4096, factor: 2}
  - image_size: [14, 28, 32x64]
problem: {batch: 1, heads: 8, channels: 256, dtype: float32, causal: false}
mode: [fwd, fwd_bwd]
measure: {rounds: 3, within_process_precision: 2%, min_samples: 5, max_samples: 1000, max_time: 1s}
limits: {memory: 80%, cell_timeout: 60s, budget: 30m}
gate: {wall_time: 5%, flops: 0%, peak_memory: 0%}
"""

SCALARS = [
    "", "null", "~", "true", "-1", "0", "1e400", "9" * 400, ".nan", ".inf", "-.inf", "0x10", "1_000", "2001-01-01",
    "[]", "{}", "[[[]]]", "{a: {b: c}}", "'", '"', "é", "\u202e", "%", "100000%", "-5%", "1s1s", "5m ", "*nowhere",
    "&a [*a]", "!!python/object/apply:os.system [echo gone]", "!!python/name:os.system", "!!binary aGk=", "!!set {a}",
    "!foo bar", "<<: *x", "{<<: {a: 1}}", "? [a, b]", "|", ">-", "@", "`", "\t", "- -", ": :", "#", "..", "---",
]  # fmt: skip

NUMBERS = [1e18, 1e300, 10**30, 2**63, -1, 1e-320, "12", [1], {"a": 1}, None, True]


def suite_bytes(source: random.Random) -> bytes:
    """A damaged suite."""
    damage = source.choice(SUITE_DAMAGES)
    return damage(source)


def _edited(edit: Callable[[random.Random, list[str]], None]) -> Callable[[random.Random], bytes]:
    def damage(source: random.Random) -> bytes:
        lines = SUITE_TEXT.splitlines()
        for _ in range(source.randint(1, 3)):
            edit(source, lines)
        return "\n".join(lines).encode()

    return damage


def _drop(source: random.Random, lines: list[str]) -> None:
    if lines:
        lines.pop(source.randrange(len(lines)))


def _repeat(source: random.Random, lines: list[str]) -> None:
    lines.insert(source.randrange(len(lines)), source.choice(lines))


def _swap(source: random.Random, lines: list[str]) -> None:
    a, b = source.randrange(len(lines)), source.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]


def _indent(source: random.Random, lines: list[str]) -> None:
    index = source.randrange(len(lines))
    lines[index] = source.choice([" ", "    ", "\t"]) + lines[index]


def _value(source: random.Random, lines: list[str]) -> None:
    index = source.randrange(len(lines))
    lines[index] = lines[index].split(":")[0] + ": " + source.choice(SCALARS)


def _inner(source: random.Random, lines: list[str]) -> None:
    """Puts a scalar in place of one word of a line."""
    index = source.randrange(len(lines))
    words = lines[index].split(" ")
    words[source.randrange(len(words))] = source.choice(SCALARS)
    lines[index] = " ".join(words)


def _bomb(source: random.Random) -> bytes:
    depth = source.randint(5, 60)
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    return ("\n".join(lines) + f"\nsweep: *a{depth - 1}\n" + SUITE_TEXT).encode()


def _nest(source: random.Random) -> bytes:
    opened, closed = source.choice([("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", "")])
    depth = source.choice([20, 200, 5000, 100_000])
    return f"sweep: {opened * depth}{closed * depth}\n".encode()


def _bytes(source: random.Random) -> bytes:
    data = bytearray(SUITE_TEXT.encode())
    for _ in range(source.randint(1, 20)):
        data[source.randrange(len(data))] = source.randrange(256)
    return bytes(data)


SUITE_DAMAGES: list[Callable[[random.Random], bytes]] = [
    *map(_edited, (_drop, _repeat, _swap, _indent, _value, _value, _inner, _inner)),
    _bomb,
    _nest,
    _bytes,
    lambda source: SUITE_TEXT.encode()[: source.randrange(len(SUITE_TEXT))],
    lambda source: SUITE_TEXT.replace("a suite", "une façade").encode("latin-1"),
    lambda source: b"\xef\xbb\xbf" + SUITE_TEXT.encode(),
    lambda source: SUITE_TEXT.replace("\n", "\r\n").encode(),
    lambda source: SUITE_TEXT.encode(source.choice(["utf-16", "utf-32", "utf-7", "cp037"])),
    lambda source: source.randbytes(source.randint(0, 4096)),
    lambda source: SUITE_TEXT.encode() * source.randint(2, 4),
]


def damaged_folder(source: random.Random, original: Path, target: Path) -> None:
    """A copy of a run folder with one to three damages."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(original, target)
    for _ in range(source.randint(1, 3)):
        source.choice(FOLDER_DAMAGES)(source, target)


def _torn(source: random.Random, folder: Path) -> None:
    path = folder / source.choice([VISITS, SAMPLES, ENVIRONMENT, SUITE, RESULTS])
    if path.is_file():
        data = path.read_bytes()
        path.write_bytes(data[: source.randrange(len(data) + 1)])


def _lost(source: random.Random, folder: Path) -> None:
    (folder / source.choice([VISITS, SAMPLES, ENVIRONMENT, SUITE, RESULTS])).unlink(missing_ok=True)


def _lines(edit: Callable[[random.Random, list[str]], None]) -> Callable[[random.Random, Path], None]:
    def damage(source: random.Random, folder: Path) -> None:
        path = folder / source.choice([VISITS, VISITS, SAMPLES, RESULTS])
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if lines:
            edit(source, lines)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    return damage


def _shuffle(source: random.Random, lines: list[str]) -> None:
    source.shuffle(lines)


def _garbage(source: random.Random, lines: list[str]) -> None:
    lines.insert(source.randrange(len(lines) + 1), source.choice(["", "{}", "[]", "null", "{", "\x00", "NaN", '"a"']))


def _field(source: random.Random, folder: Path) -> None:
    """Puts something else in place of one field of one visit, or adds a foreign one."""
    path = folder / VISITS
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines:
        return
    index = source.randrange(len(lines))
    try:
        visit: Any = json.loads(lines[index])
    except ValueError:
        return
    if not isinstance(visit, dict):
        return
    inside = source.choice([visit, visit.get("metrics"), visit.get("cell")])
    if not isinstance(inside, dict) or not inside:
        inside = visit
    name = source.choice([*inside, "foreign"])
    what = source.choice(["value", "nan", "drop", "number"])
    if what == "drop":
        inside.pop(name, None)
    elif what == "nan":
        inside[name] = float(source.choice(["nan", "inf", "-inf"]))
    else:
        inside[name] = source.choice(NUMBERS)
    lines[index] = json.dumps(visit)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _column(source: random.Random, folder: Path) -> None:
    """Foreign, missing or exchanged columns in samples.csv or results.csv."""
    path = folder / source.choice([SAMPLES, RESULTS])
    if path.is_file():
        head, _, rest = path.read_text(encoding="utf-8", errors="replace").partition("\n")
        names = head.split(",")
        source.shuffle(names) if source.random() < 0.5 else names.append("foreign")
        path.write_text(",".join(names) + "\n" + rest, encoding="utf-8")


def _json(source: random.Random, folder: Path) -> None:
    path = folder / ENVIRONMENT
    if path.is_file():
        path.write_text(source.choice(["", "[]", "{", "null", "NaN", "[" * 100_000, '{"a": NaN}', "{}"]))


FOLDER_DAMAGES = [
    _torn,
    _lost,
    *map(_lines, (_drop, _repeat, _swap, _shuffle, _garbage)),
    _field,
    _field,
    _field,
    _column,
    _json,
]


def read_or_refuse(folder: Path) -> Run | None:
    """The run, or None where it was refused in words that name the folder."""
    try:
        run = read_run(folder)
        _ = run.samples
    except BadInput as error:
        said = str(error)
    else:
        return run
    assert str(folder) in said
    assert "Traceback" not in said
    return None


def wrong_numbers(run: Run, original: Run) -> list[str]:
    """What a reader would see in `run` that `original` does not say: another value, or a visit that never was."""
    true = {(v["key"], v["round"]): v for v in original.visits.to_dict("records")}
    found = []
    for seen in run.visits.to_dict("records"):
        place = (seen["key"], seen["round"])
        if place not in true:
            found.append(f"{place} was never measured")
            continue
        for name, value in seen.items():
            if name in true[place] and not _missing(value) and value != true[place][name]:
                found.append(f"{place} {name}: {value!r}, was {true[place][name]!r}")
    return found


def _missing(value: Any) -> bool:
    import pandas as pd

    return value in ("", (), {}) or (not isinstance(value, (tuple, dict, list)) and bool(pd.isna(value)))
