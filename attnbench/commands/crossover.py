"""attnbench crossover: searches the size at which operators pass a baseline, measuring as little as it needs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from attnbench.outputs.listing import Format, Row, write

if TYPE_CHECKING:
    from attnbench.analysis.search import Search
    from attnbench.probes import Probes
    from attnbench.problem import Cell


def command(
    operator: Annotated[list[str], typer.Argument(help="operator or operator:impl.", metavar="OP...")],
    baseline: Annotated[str, typer.Option(help="operator or operator:impl to compare with.")] = "softmax",
    axis: Annotated[Literal["seq_len", "image_size", "channels"], typer.Option(help="What is varied.")] = "seq_len",
    low: Annotated[int, typer.Option(help="Smallest size; of an image its side.")] = 64,
    high: Annotated[int, typer.Option(help="Largest size; of an image its side.")] = 65536,
    precision: Annotated[str, typer.Option(help="Half the interval's width at which to stop.")] = "10%",
    metric: Annotated[Literal["wall_time", "device_time"], typer.Option(help="What is compared.")] = "wall_time",
    seq_len: Annotated[int, typer.Option(help="Tokens, where channels are varied.")] = 1024,
    channels: Annotated[int, typer.Option(help="Channels of all heads together.")] = 256,
    heads: Annotated[int, typer.Option(help="Number of heads; divides the channels.")] = 8,
    batch: Annotated[int, typer.Option(help="Number of samples.")] = 1,
    dtype: Annotated[str, typer.Option(help="float64, float32, bfloat16 or float16.")] = "float32",
    causal: Annotated[bool, typer.Option("--causal", help="Token i sees only tokens up to i.")] = False,
    mode: Annotated[str, typer.Option(help="fwd, or fwd_bwd.")] = "fwd",
    scope: Annotated[str, typer.Option(help="core, or layer (with the projections).")] = "core",
    param: Annotated[
        list[str] | None, typer.Option(help="key=value; applied to the operators that have the key.")
    ] = None,
    operators_from: Annotated[list[str] | None, typer.Option(help="A .py file or package of your own.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: CUDA where there is a GPU.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Run folder to write; default results/crossover-<time>.")] = None,
    form: Annotated[Format, typer.Option("--format", help="json: one object per operator.")] = "table",
) -> None:
    """Search the crossover of operators with a baseline: a few sizes, each measured in pairs, until it is precise.

    The last line of stdout is the run folder, which `attnbench show` and `plot` read like any other. Exit code: 0; 2
    bad usage; 3 where nothing could be compared; 130 interrupted.

    Example: attnbench crossover linear_transformer performer --baseline softmax --low 64 --high 65536 --precision 10%
    """
    from dataclasses import replace

    from attnbench import suite as suites
    from attnbench.analysis.search import Search
    from attnbench.errors import BadInput
    from attnbench.probes import Probes, Unplanned, allowed
    from attnbench.progress import progress
    from attnbench.quantity import fraction
    from attnbench.session import begin, choose_device

    if not 0 < low < high:
        raise BadInput(f"--low {low} --high {high}: allowed: 0 < low < high. Give a larger --high.")
    try:
        wanted = fraction(0.005, 1.0)(precision)
    except ValueError as error:
        raise BadInput(f"--precision: {error}. Give such a percentage.") from None
    names = list(dict.fromkeys([*(_named(name) for name in operator), _named(baseline)]))
    if len(names) == 1:
        raise BadInput(f"OP: only the baseline {baseline} was given. Name an operator to compare with it.")
    shape = {"batch": batch, "heads": heads, "channels": channels, "dtype": dtype, "causal": causal}
    sizes = _sweep(axis, (low, high), seq_len)
    data = _data(names, baseline, shape, sizes, mode, scope, param or [], operators_from or [], axis)
    suite = suites.from_text(_yaml(data), "the command line", Path.cwd())
    templates = _templates(suites.cells(suite), names)
    session = begin(suite, choose_device(device), out)
    with progress() as told:
        base = templates.pop(":".join(_named(baseline)))
        plan = replace(session.plan, cells=())
        probes = Probes(plan, session.journal, Unplanned(told), axis, templates, base, f"{metric}_s")
        nearest = allowed(axis, heads)
        first, last = (end * end if axis == "image_size" else end for end in (low, high))
        searches = [Search(name, probes, first, last, wanted, nearest) for name in templates]
        code = _run(probes, searches)
    _finish(session.journal.folder, data, searches, axis, seq_len)
    session.journal.close()
    rows = [_row(each, baseline, axis) for each in searches]
    folder = session.journal.folder
    if form == "json":
        write([{**row, "run": str(folder)} for row in rows], form)
    else:
        write(rows, form, [_glance(row) for row in rows])
        print(folder)
    if code or not any(row["kind"] != "nothing" for row in rows):
        raise typer.Exit(code or 3)


def _named(name: str) -> tuple[str, str]:
    operator, _, impl = name.partition(":")
    return operator, impl or "reference"


def _sweep(axis: str, sizes: tuple[int, ...], seq_len: int) -> dict[str, Any]:
    if axis == "channels":
        return {"seq_len": [seq_len], "channels": list(sizes)}
    return {axis: list(sizes)}


def _data(
    names: list[tuple[str, str]],
    baseline: str,
    shape: dict[str, Any],
    sweep: dict[str, Any],
    mode: str,
    scope: str,
    given: list[str],
    operators_from: list[str],
    axis: str,
) -> dict[str, Any]:
    """The suite that says the same."""
    from attnbench.analysis.search import MOST_ROUNDS

    if axis == "channels":
        shape = {key: value for key, value in shape.items() if key != "channels"}
    return {
        "name": "crossover",
        "description": f"a search for where {', '.join(':'.join(name) for name in names[:-1])} pass {baseline}",
        "baseline": _named(baseline)[0],
        **({"operators_from": operators_from} if operators_from else {}),
        "operators": _with_params(list(dict.fromkeys(name for name, _ in names)), given, operators_from),
        "impls": list(dict.fromkeys(impl for _, impl in names)),
        "scope": [scope],
        "sweep": [sweep],
        "problem": shape,
        "mode": [mode],
        "measure": {
            "rounds": MOST_ROUNDS, "within_process_precision": "3%", "min_samples": 5, "max_samples": 200,
            "max_time": "500ms",
        },
        "limits": {"memory": "60%", "cell_timeout": "60s"},
    }  # fmt: skip


def _with_params(names: list[str], given: list[str], operators_from: list[str]) -> list[Any]:
    """The operators, each with those of the given params that it has. Raises BadInput for one that none has."""
    import yaml

    from attnbench.errors import BadInput
    from attnbench.registry import operators

    values = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise BadInput(f"--param {text}: allowed: key=value, such as k=128. Correct it.")
        values[key] = yaml.safe_load(value)
    if not values:
        return list(names)
    sources = operators(operators_from)
    has = {name: set(sources[name].load().params) if name in sources else set() for name in names}
    for key in values:
        if not any(key in params for params in has.values()):
            known = sorted(set().union(*has.values()))
            raise BadInput(
                f"--param {key}: none of {', '.join(names)} has it; they have {', '.join(known) or 'none'}. Correct it."
            )
    chosen = {name: {key: [v] for key, v in values.items() if key in has[name]} for name in names}
    return [{name: grid} if grid else name for name, grid in chosen.items()]


def _yaml(data: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def _templates(cells: Sequence[Cell], names: Sequence[tuple[str, str]]) -> dict[str, Cell]:
    """A cell per operator:impl, the baseline's last. Raises BadInput where an operator has no such impl."""
    from attnbench.errors import BadInput

    found = {}
    for operator, impl in names:
        own = [cell for cell in cells if cell.operator == operator and impl in (cell.impl, cell.impl.split(":")[0])]
        if not own:
            raise BadInput(
                f"{operator}:{impl}: {operator} has no impl {impl}. See `attnbench list operators {operator}`."
            )
        found[f"{operator}:{impl}"] = own[0]
    return found


def _run(probes: Probes, searches: list[Search]) -> int:
    """Runs the searches. Returns the exit code of how they ended."""
    from attnbench.analysis.search import search
    from attnbench.workers import Stopped

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        search(searches, probes.next_round)
        probes.close()
    except KeyboardInterrupt:
        code = 130
    except Stopped as stopped:
        print(f"the search ended: {stopped}", file=sys.stderr)
        code = 1
    else:
        return 0
    finally:
        probes.kill()
    for each in searches:
        each.ended = each.ended or "interrupted"
    return code


def _finish(folder: Path, data: dict[str, Any], searches: list[Search], axis: str, seq_len: int) -> None:
    """suite.yaml names the sizes that were measured."""
    import math

    from attnbench.journal import replace, storing
    from attnbench.record import SUITE

    sizes = sorted({size for each in searches for size in each.sizes})
    sizes = [math.isqrt(size) for size in sizes] if axis == "image_size" else sizes
    if sizes:
        data["sweep"] = [_sweep(axis, tuple(sizes), seq_len)]
        with storing(folder):
            replace(folder / SUITE, _yaml(data))


def _row(each: Search, baseline: str, axis: str) -> Row:
    from dataclasses import asdict

    from attnbench.outputs.blocks import crossover_text

    found = each.found()
    near = each.crossing()
    beyond = each.beyond
    return {
        "series": each.series,
        "baseline": baseline,
        "axis": axis,
        "kind": found.kind,
        "crossover": crossover_text(found, axis, baseline),
        "crossing": asdict(near) if near else None,
        "crossings": [asdict(crossing) for crossing in found.crossings],
        "sizes": each.sizes,
        "rounds": each.rounds,
        "one_call": {"size": beyond.size, "ratio": _ratio(beyond)} if beyond else None,
        "ended": each.ended,
        "warnings": each.warnings(),
    }


def _ratio(pair: Any) -> float | None:
    import math

    from attnbench.analysis.search import side

    gap = side(pair)
    return math.exp(gap) if gap is not None and math.isfinite(gap) else None


def _glance(row: Row) -> Row:
    one = row["one_call"]
    told = f"; one call at {one['size']}: {one['ratio']:.2f}× the baseline" if one and one["ratio"] else ""
    return {
        "series": row["series"],
        f"against {row['baseline']}": row["crossover"],
        "sizes": len(row["sizes"]),
        "ended": row["ended"] + told + "".join(f"; {text}" for text in row["warnings"]),
    }
