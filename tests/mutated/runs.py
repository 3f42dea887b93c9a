"""A run folder, and mutated ones."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from attnbench.problem import Cell, Problem, columns_of
from attnbench.store.records import ENVIRONMENT, RESULTS, SAMPLE_COLUMNS, SAMPLES, SUITE, VISITS, Sample, Visit
from tests.mutated.mutation import Mutation, scratched, spoil
from tests.mutated.suites import encoded

SIZES = (64, 128, 256)
LINES = (("softmax", "reference"), ("softmax", "sdpa"), ("local", "reference"), ("linformer", "reference"))
ROUNDS = 3


def _cell(operator: str, impl: str, n: int) -> Cell:
    params = {"k": 16} if operator == "linformer" else {"window": 8} if operator == "local" else {}
    return Cell(operator, impl, "core", "fwd", Problem(n, 32, 4), params)


def _visit(cell: Cell, round: int, order: int, **given: Any) -> Visit:
    return Visit(
        cell.key, columns_of(cell), "cpu", round, round, order, threads=2, contract="1 rounds=3 time=1s", **given
    )


@cache
def _original() -> tuple[tuple[Visit, ...], tuple[Sample, ...]]:
    """A run with failures of its own: linformer runs out of memory at 256, and a timed round of local is lost."""
    noise = random.Random(5)
    visits: list[Visit] = []
    samples: list[Sample] = []
    cells = [_cell(operator, impl, n) for n in SIZES for operator, impl in LINES]
    for order, cell in enumerate(cells):
        n = cell.problem.seq_len
        flops = (4 * n * n if cell.operator == "softmax" else 64 * n) * 32
        metrics = {
            "flops": flops, "reference_flops": 2 * flops, "bytes_required": 400 * n, "peak_memory_bytes": flops // 8,
            "peak_memory_total_bytes": flops // 8 + 999, "input_bytes": 999, "parameter_bytes": 10,
            "bytes_moved": 400 * n, "relative_error": 1e-7, "tolerance": 3e-7,
            "checked_seq_len": n, "check_time_s": 1e-9 * flops,
        }  # fmt: skip
        if (cell.operator, n) == ("linformer", 256):
            visits.append(
                _visit(cell, 0, order, status="oom", reason="out of memory: 12 GiB", metrics={"flops": flops})
            )
        else:
            operations = {"aten::bmm": 2, "aten::softmax": 1}
            visits.append(_visit(cell, 0, order, status="ok", metrics=metrics, operations=operations, kernel="k"))
    for round in range(1, ROUNDS + 1):
        for order, cell in enumerate(noise.sample(cells, len(cells))):
            n = cell.problem.seq_len
            if (cell.operator, n) == ("linformer", 256):
                continue
            if (cell.operator, n, round) == ("local", 128, 2):
                visits.append(_visit(cell, round, order, status="crashed", reason="the worker was killed by SIGKILL"))
                continue
            scale = 1e-9 * (n * n if cell.operator == "softmax" else 40 * n)
            times = sorted(scale * math.exp(noise.gauss(0, 0.03)) for _ in range(5))
            metrics = {"wall_time_s": times[2], "wall_time_low_s": times[0], "wall_time_high_s": times[4]}
            visits.append(_visit(cell, round, order, status="ok", metrics=metrics, samples=5))
            samples += [
                Sample(cell.key, round, round, i, "wall", t, "switched" * (i == 3)) for i, t in enumerate(times)
            ]
    return tuple(visits), tuple(samples)


ENVIRONMENT_TEXT = json.dumps(
    {
        "torch": "2.13.0", "python": "3.11.7", "device": "cpu", "cpu": "A CPU", "cores": 2, "threads": 2,
        "instruction_set": "AVX2", "system": "Linux", "machine": "x86_64", "gpu_name": None, "packages": {"numpy": "2"},
        "exact": ["softmax {}"], "families": {"softmax": "exact", "local": "sparse", "linformer": "lowrank"},
        "properties": {"softmax {}": {"full": {"exact": True}}, "local {}": {"full": {"exact": False}}},
        "stated": {"softmax {}": {"time": "n^2", "memory": "n^2"}, "local {}": {"time": "n", "memory": "n"}},
        "rates": {"copy_bytes_per_s": 1e10, "matmul_flops_per_s": {"float32": 1e11}},
    },
    indent=1,
)  # fmt: skip
SUITE_TEXT = (
    "name: stored\nbaseline: softmax\noperators: [softmax, local, linformer]\nsweep: [{seq_len: [64, 128, 256]}]\n"
)


@cache
def _original_text() -> tuple[str, str]:
    """Of visits.jsonl, and of samples.csv."""
    visits, samples = _original()
    rows = [",".join(SAMPLE_COLUMNS) + "\n", *(s.line() for s in samples)]
    return "".join(v.line() for v in visits), "".join(rows)


def original_folder(path: Path) -> Path:
    """The run folder that all mutated ones come from."""
    path.mkdir(parents=True)
    visits, samples = _original_text()
    (path / VISITS).write_text(visits, encoding="utf-8")
    (path / SAMPLES).write_text(samples, encoding="utf-8")
    (path / ENVIRONMENT).write_text(ENVIRONMENT_TEXT, encoding="utf-8")
    (path / SUITE).write_text(SUITE_TEXT, encoding="utf-8")
    (path / RESULTS).write_text("key,operator\n", encoding="utf-8")
    return path


def mutated_folder(path: Path, draw: random.Random) -> Mutation:
    """Writes the original run into `path`, with one mutation."""
    original_folder(path)
    return draw.choice(_FOLDERS)(path, draw)


def lines_of(folder: Path) -> list[str]:
    """The whole lines of visits.jsonl."""
    return (folder / VISITS).read_text(encoding="utf-8").split("\n")[:-1]


def _write(folder: Path, lines: Iterable[str]) -> None:
    (folder / VISITS).write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="")


def _objects(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(folder)]


def _store(folder: Path, objects: Sequence[Mapping[str, Any]]) -> None:
    _write(folder, (json.dumps(each, ensure_ascii=False) for each in objects))


def _torn(folder: Path, draw: random.Random) -> Mutation:
    name = draw.choice((VISITS, VISITS, VISITS, SAMPLES, ENVIRONMENT, SUITE))
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: draw.randrange(len(data))])
    return Mutation(f"{name} torn", "honest")


def _torn_tail(folder: Path, draw: random.Random) -> Mutation:
    with (folder / VISITS).open("ab") as file:
        line = draw.choice(lines_of(folder)).encode()
        file.write(line[: draw.randrange(len(line))])
    return Mutation("an unfinished visit at the end", "same")


def _reordered(folder: Path, draw: random.Random) -> Mutation:
    lines = lines_of(folder)
    draw.shuffle(lines)
    _write(folder, lines)
    rows = (folder / SAMPLES).read_text().splitlines(keepends=True)
    body = rows[1:]
    draw.shuffle(body)
    (folder / SAMPLES).write_text(rows[0] + "".join(body))
    return Mutation("lines in another order", "same")


def _lost(folder: Path, draw: random.Random) -> Mutation:
    lines = lines_of(folder)
    _write(folder, draw.sample(lines, draw.randrange(len(lines))))
    return Mutation("lines lost", "honest")


def _twice(folder: Path, draw: random.Random) -> Mutation:
    lines = lines_of(folder)
    lines.insert(draw.randrange(len(lines)), draw.choice(lines))
    _write(folder, lines)
    return Mutation("a visit twice", "refused")


def _foreign(folder: Path, draw: random.Random) -> Mutation:
    objects = _objects(folder)
    for each in draw.sample(objects, draw.randint(1, len(objects))):
        each[draw.choice(("foreign", "wall_time_s", "", "é", "__class__", "flops"))] = draw.choice(
            (1, "x", [1], {"a": {}})
        )
        if draw.random() < 0.5:
            items = list(each.items())
            draw.shuffle(items)
            each.clear()
            each.update(items)
    _store(folder, objects)
    return Mutation("foreign fields in any order", "same")


def _foreign_metric(folder: Path, draw: random.Random) -> Mutation:
    objects = _objects(folder)
    name = draw.choice(
        ("speed", "key", "round", "status", "cell", "x_bytes", "causal", "params", "index", "", "size", "0")
    )
    each = draw.choice([o for o in objects if o["metrics"]])
    each["metrics"][name] = draw.choice((1, 0.5, 7.25, 10**15))
    _store(folder, objects)
    return Mutation(f"a metric named {name!r}", "honest")


def _wrong_metric(folder: Path, draw: random.Random) -> Mutation:
    objects = _objects(folder)
    each = draw.choice([o for o in objects if o["metrics"]])
    name = draw.choice(list(each["metrics"]))
    value = draw.choice((None, True, False, "12", "", "NaN", [], [1.0], {}, {"a": 1}, -1, -0.5, -1e-300))
    each["metrics"][name] = value
    _store(folder, objects)
    return Mutation(f"{name} = {value!r}", "refused")


def _no_number(folder: Path, draw: random.Random) -> Mutation:
    lines = lines_of(folder)
    at = draw.choice([i for i, line in enumerate(lines) if json.loads(line)["metrics"]])
    each = json.loads(lines[at])
    name = draw.choice(list(each["metrics"]))
    each["metrics"][name] = "@"
    token = draw.choice(
        (
            "NaN",
            "Infinity",
            "-Infinity",
            "1e999",
            "-1e999",
            "1e31",
            "9" * 40,
            "9" * 5000,
            "01",
            "+1",
            "0x1",
            "nan",
            ".5",
            "1.",
            "1_0",
        )
    )
    lines[at] = json.dumps(each).replace('"@"', token)
    _write(folder, lines)
    return Mutation(f"{name} = {token[:20]}", "refused")


def _impossible(folder: Path, draw: random.Random) -> Mutation:
    objects = _objects(folder)
    each = draw.choice([o for o in objects if "wall_time_s" in o["metrics"]])
    name = draw.choice(("wall_time_s", "wall_time_low_s", "wall_time_high_s"))
    value = draw.choice((1e25, 1e15, 10**18)) if name != "wall_time_high_s" else 1e-30
    each["metrics"][name] = value
    _store(folder, objects)
    return Mutation(f"{name} = {value:g}", "refused")


def _half_a_byte(folder: Path, draw: random.Random) -> Mutation:
    objects = _objects(folder)
    each = draw.choice([o for o in objects if "peak_memory_bytes" in o["metrics"]])
    name = draw.choice(
        ("flops", "reference_flops", "peak_memory_bytes", "input_bytes", "bytes_required", "checked_seq_len")
    )
    each["metrics"][name] += 0.5
    _store(folder, objects)
    return Mutation(f"{name} with a half", "refused")


_FIELD_EVIL: dict[str, tuple[Any, ...]] = {
    "key": (None, 1, "", "softmax", "x" * 300),
    "status": (None, "OK", "okay", "", 1, ["ok"], {}),
    "round": (None, -1, 1.5, "1", True, 2**70, [1]),
    "process": (None, -1, 1.5, "1", False, 2**70),
    "order": (None, -1, 0.5, "1", 2**70),
    "device": (None, "a gpu", "", 0, "CPU", "x" * 40),
    "cell": (None, {}, [], "softmax", 1),
    "reason": (None, 1, ["x"]),
    "kernel": (None, 1, {}),
    "metrics": (None, [], "x", 1, {"a": "b"}),
    "samples": (None, -1, 2.5, "5", True),
    "warnings": (None, "x", [1], {}, [None]),
    "operations": (None, [], {"a": -1}, {"a": 0.5}, {"a": "1"}),
    "threads": (-1, 1.5, "2", True, []),
    "contract": (None, 1, [], "2 other"),
    "cause": (None, 1, "memory", ["oom"]),
}


def _wrong_field(folder: Path, draw: random.Random) -> Mutation:
    objects = _objects(folder)
    name = draw.choice(list(_FIELD_EVIL))
    value = draw.choice(_FIELD_EVIL[name])
    draw.choice(objects)[name] = value
    _store(folder, objects)
    return Mutation(f"{name} = {value!r}"[:60], "refused")


def _missing_field(folder: Path, draw: random.Random) -> Mutation:
    objects = _objects(folder)
    name = draw.choice(("key", "cell", "device", "round", "process", "order", "status"))
    del draw.choice(objects)[name]
    _store(folder, objects)
    return Mutation(f"no {name}", "refused")


def _other_cell(folder: Path, draw: random.Random) -> Mutation:
    """Its key no longer is its cell's."""
    objects = _objects(folder)
    cell = draw.choice(objects)["cell"]
    name = draw.choice(list(cell))
    value = draw.choice(
        (None, True, -1, 0, 1.5, 77, 10**40, "", "x", "[/bold]", [], {}, '{"b": 1, "a": 2}', "NaN", "[1]")
    )
    if name in ("height", "width") and value is None:
        value = 3
    if draw.random() < 0.2:
        del cell[name]
    else:
        cell[name] = value
    _store(folder, objects)
    return Mutation(f"cell.{name} = {value!r}"[:60], "refused")


def _strange_cell(folder: Path, draw: random.Random) -> Mutation:
    """A cell that nobody measured, under its own right key."""
    lines = lines_of(folder)
    problem = Problem(draw.choice((1, 7, 2**62, 10**15)), draw.choice((4, 2**40)), draw.choice((1, 4)))
    name = draw.choice(
        (
            "softmax",
            "nothing",
            "[/bold]",
            "[red]x",
            "a b",
            "é",
            "=1+1",
            "\x1b[31m",
            "a\tb",
            "x" * 200,
            "a|b",
            "<b>",
            "a\u2028b",
            "\U0001f600",
            "a,b",
            '"',
            "a.b",
            "",
        )
    )
    params = draw.choice(({}, {"a": 1}, {"window": 10**30}, {"x": "[/]"}, {"kind": "é\n"}, {"a": True}, {"b": 1e300}))
    cell = Cell(
        name, draw.choice(("reference", "sdpa", "[bold]", "")), "core", draw.choice(("fwd", "fwd_bwd")), problem, params
    )
    try:
        row = _visit(
            cell,
            0,
            99,
            status=draw.choice(("ok", "oom", "error")),
            reason=draw.choice(("", "[/bold]", "a\nb", "x" * 3000, "\x1b[0m", "|")),
        )
        metrics = {"flops": 10**20 if draw.random() < 0.5 else 3, "peak_memory_bytes": 5, "parameter_bytes": 0}
        extra = [replace(row, metrics=metrics if row.status == "ok" else {})]
        if row.status == "ok" and draw.random() < 0.7:
            times = {"wall_time_s": draw.choice((0.0, 1e-12, 5e-324, 1.0, 9e5))}
            extra += [replace(row, round=r, process=r, metrics=times, samples=1) for r in range(1, draw.randint(2, 4))]
        _write(folder, [*lines, *(v.line()[:-1] for v in extra)])
    except (ValueError, OverflowError):
        return Mutation("nothing", "same")
    return Mutation("a strange cell", "honest")


def _other_contract(folder: Path, draw: random.Random) -> Mutation:
    objects = _objects(folder)
    contract = draw.choice(("", " ", "2 rounds=3", "x", "[/bold]", "1", "é" * 500, "1 rounds=9 time=2s"))
    for each in objects:
        each["contract"] = contract
    _store(folder, objects)
    return Mutation(f"contract {contract[:20]!r}", "honest")


def _edited(folder: Path, draw: random.Random) -> Mutation:
    """Numbers that can be: what is shown must be what stands there."""
    objects = _objects(folder)
    for each in draw.sample([o for o in objects if o["metrics"]], 3):
        name = draw.choice(list(each["metrics"]))
        if name.startswith("wall_time"):
            for time in ("wall_time_s", "wall_time_low_s", "wall_time_high_s"):
                each["metrics"][time] *= 1.5
        else:
            each["metrics"][name] = draw.choice((0, 1, 2**53 + 1, 2**62, 3))
    _store(folder, objects)
    return Mutation("other numbers", "honest")


def _status_changed(folder: Path, draw: random.Random) -> Mutation:
    objects = _objects(folder)
    for each in draw.sample(objects, draw.randint(1, 8)):
        each["status"] = draw.choice(("skipped", "wrong", "oom", "timeout", "crashed", "error", "ok"))
    _store(folder, objects)
    return Mutation("other statuses", "honest")


def _scratched_file(folder: Path, draw: random.Random) -> Mutation:
    name = draw.choice((VISITS, VISITS, SAMPLES, ENVIRONMENT, SUITE))
    (folder / name).write_bytes(scratched((folder / name).read_bytes(), draw))
    return Mutation(f"{name} scratched", "honest")


def _samples(folder: Path, draw: random.Random) -> Mutation:
    """Seen where samples are read."""
    path = folder / SAMPLES
    rows = path.read_text().splitlines()
    at = draw.randrange(1, len(rows))
    words = rows[at].split(",")
    kind = draw.randrange(6)
    if kind == 0:
        words[5] = draw.choice(("abc", "", "nan", "-1", "inf", "1e40", "True"))
    elif kind == 1:
        words[draw.choice((1, 2, 3))] = draw.choice(("x", "", "1.5", "9" * 30, "nan"))
    elif kind == 2:
        words = words + ["more"] * 3
    elif kind == 3:
        rows[0] = rows[0].replace(draw.choice(("seconds", "key", "round")), "other")
    elif kind == 4:
        rows[0], rows[at] = rows[at], rows[0]
        words = rows[at].split(",")
    else:
        words[5] = "1e25"
    rows[at] = ",".join(words)
    path.write_text("\n".join(rows) + "\n")
    return Mutation("samples spoilt", "refused")


def _foreign_samples(folder: Path, draw: random.Random) -> Mutation:
    path = folder / SAMPLES
    rows = path.read_text().splitlines()
    rows = [rows[0] + ",foreign", *(row + ",1" for row in rows[1:])]
    rows += ["nobody.reference.core,1,1,0,wall,0.5,,1"] * draw.randint(0, 3)
    path.write_text("\n".join(rows) + "\n")
    return Mutation("foreign samples", "honest")


def _results(folder: Path, draw: random.Random) -> Mutation:
    """Derived, so it says nothing."""
    path = folder / RESULTS
    choice = draw.randrange(4)
    if choice == 0:
        path.unlink()
    elif choice == 1:
        path.write_bytes(bytes(draw.randrange(256) for _ in range(500)))
    elif choice == 2:
        key = _original()[0][0].key
        path.write_text(f"key,operator,flops,wall_time_s,status\n{key},softmax,1,1e-9,ok\n")
    else:
        (folder / "other.csv").write_text("x")
    return Mutation("results.csv spoilt", "same")


def _environment(folder: Path, draw: random.Random) -> Mutation:
    data = json.loads(ENVIRONMENT_TEXT)
    for _ in range(draw.randint(1, 3)):
        spoil(data, draw)
    try:
        text = json.dumps(data)
    except (TypeError, ValueError):
        return Mutation("nothing", "same")
    (folder / ENVIRONMENT).write_text(text, encoding="utf-8")
    return Mutation("environment spoilt", "honest")


def _no_object(folder: Path, draw: random.Random) -> Mutation:
    name = draw.choice((ENVIRONMENT, VISITS))
    text = draw.choice(
        (
            "[]",
            "null",
            "1",
            '"x"',
            "[" * 100_000,
            '{"a":' * 50_000,
            "{",
            '{"a": 1, "a": 2}',
            "{}x",
            "\0" * 1000,
            "{'a': 1}",
            '{"a": 1,}',
        )
    )
    lines = lines_of(folder)
    if name == ENVIRONMENT:
        (folder / name).write_text(text)
    else:
        lines.insert(draw.randrange(len(lines) + 1), text)
        _write(folder, lines)
    return Mutation(f"{name}: {text[:12]!r}", "refused")


def _missing_file(folder: Path, draw: random.Random) -> Mutation:
    name = draw.choice((VISITS, ENVIRONMENT, SUITE))
    (folder / name).unlink()
    if draw.random() < 0.5:
        (folder / name).mkdir()
    elif draw.random() < 0.5:
        (folder / name).symlink_to(folder / name)
    return Mutation(f"no {name}", "refused")


def _folder_encoded(folder: Path, draw: random.Random) -> Mutation:
    name = draw.choice((VISITS, VISITS, ENVIRONMENT))
    how, expected = draw.choice((("latin-1", "refused"), ("utf-16", "refused"), ("BOM", "refused"), ("CRLF", "same")))
    text = (folder / name).read_text(encoding="utf-8")
    text = text.replace('"cpu"', '"cpu", "foreign": "é"', 1)
    (folder / name).write_bytes(encoded(text, how))
    return Mutation(f"{name} in {how}", expected)  # type: ignore[arg-type]


def _blank(folder: Path, draw: random.Random) -> Mutation:
    name = draw.choice((VISITS, SAMPLES, ENVIRONMENT, SUITE))
    (folder / name).write_bytes(draw.choice((b"", b"\n", b" ", b"\0" * 4096, b"\n\n\n")))
    return Mutation(f"{name} blank", "honest")


def _suite_of_run(folder: Path, draw: random.Random) -> Mutation:
    key = draw.choice(("baseline", "name"))
    value = draw.choice(
        (
            "",
            "[/bold]",
            "nothing",
            "softmax:sdpa",
            "softmax:",
            ":sdpa",
            "x" * 2000,
            "[1, 2]",
            "{a: 1}",
            "&a *a",
            "!!python/name:os.system ''",
            "local # a comment",
            "'quoted'",
            "\x1b[2J",
            "~",
            "3",
        )
    )
    lines = [f"{key}: {value}" if line.startswith(key) else line for line in SUITE_TEXT.splitlines()]
    (folder / SUITE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Mutation(f"suite {key}: {value[:20]!r}", "honest")


_FOLDERS: tuple[Callable[[Path, random.Random], Mutation], ...] = (
    _torn, _torn, _torn_tail, _reordered, _lost, _twice, _foreign, _foreign_metric, _wrong_metric, _wrong_metric,
    _no_number, _impossible, _half_a_byte, _wrong_field, _wrong_field, _missing_field, _other_cell, _other_cell,
    _strange_cell, _strange_cell, _other_contract, _edited, _status_changed, _scratched_file, _scratched_file,
    _scratched_file, _samples, _foreign_samples, _results, _environment, _environment, _no_object, _missing_file,
    _folder_encoded, _blank, _suite_of_run,
)  # fmt: skip
