"""The gate study's page, from what was recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attnbench.analysis.compare.tier1_paired import LOOKS, spread
from attnbench.analysis.undisturbed import undisturbed
from benchmarks import gate_rules
from benchmarks.gate_planted import OPERATOR, SLOW_DOWNS
from benchmarks.gate_rules import NAIVE, Blocks, Draw, Floats, Rates, clopper_pearson, disjoint, rated, rates

HEAD = """# How often the gate is wrong

`make gate-study` records blocks of six fresh processes that take turns as in `attnbench gate`: the base, the base
again, and the base with one operator made slower by 2, 5, 10 and 25 % (real work: log Γ of a calibrated count of
numbers). The gate and three naive rules then decide on the same samples. This page is generated from them;
[statistics.md](statistics.md) has the same for noise models.
"""

OLDER = (
    "The samples of these blocks were taken in visits of eight, six of them by turns; the gate now takes shorter turns "
    "in one block of cells."
)

ALIKE = (("base", "again"), ("slower_2%", "slower_5%"), ("slower_10%", "slower_25%"))
"""Disjoint pairs of processes of a block; they differ in the planted operator only."""

STATISTICS: dict[str, Callable[[Floats], float]] = {
    "the fastest sample": lambda samples: float(samples.min()),
    "the lowest decile": lambda samples: undisturbed(samples.tolist()),
    "the median": lambda samples: float(np.median(samples)),
}

WORDS = {0: "pass", 1: "regression", 2: "cannot compare", 3: "undecided"}

POOLED = 8
"""Blocks that a naive rule pools, beside one."""

SLOWER_SHARE, NAIVE_SHARE = 10, 100
"""Of the draws without a slow-down, one in so many: with one, and of a naive rule."""


def write(folder: Path, path: Path, draws: int) -> None:
    """Writes the page. draws: suites without a slow-down."""
    study = json.loads((folder / "study.json").read_text())
    lines = [HEAD, *_machine(study)]
    for condition in ("clean", "loaded"):
        file = folder / f"{condition}.csv"
        if file.is_file():
            lines += _condition(condition, gate_rules.read(file), study, draws)
            if "median_us" in file.open().readline():
                lines += [OLDER, ""]
    lines += _complexities(study.get("complexities"))
    lines += _live(study.get("sequential", []))
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _machine(study: Mapping[str, Any]) -> Iterator[str]:
    m = study["machine"]
    yield (
        f"Recorded on {m['cpu']} ({m['cores']} cores, {m['system']} {m['machine']}), torch {m['torch']}, "
        f"{m['threads']} thread per process. The suite has {len(study['cells'])} cells: softmax, local (the planted "
        "one), linformer and performer at two lengths, with a threshold of 5 %. Samples: "
        "`results/reference/gate-study/`."
    )
    yield ""


def _condition(condition: str, blocks: Blocks, study: Mapping[str, Any], draws: int) -> Iterator[str]:
    yield f"## {'Clean' if condition == 'clean' else 'Under a competing load'}: {len(blocks)} blocks"
    yield ""
    span = " to ".join(dict.fromkeys(study[f"{condition}_{end}"] for end in ("from", "until")))
    pair_s = float(study[f"{condition}_block_s"]) / len(ALIKE)
    load = "" if condition == "clean" else " Two other processes were busy and idle by turns, for 0.1 to 3 s each time."
    yield f"Recorded {span}; a pair of processes took {pair_s:.1f} s.{load}"
    yield ""
    if len(blocks) < POOLED:
        yield f"Too few blocks for any decision: {POOLED} are needed."
        yield ""
        return
    same = blocks.ratios("base", "again")
    noise = spread(same)
    yield (
        f"Noise of a pair, the base against itself: {np.quantile(noise.own, 0.8) ** 0.5:.1%} per cell (four cells in "
        f"five stay below), {noise.shared.max() ** 0.5:.1%} common to all cells. Planted slow-downs as measured "
        f"(median over blocks of the ratio to the base): {_achieved(blocks)}."
    )
    yield ""
    statistics = ", ".join(f"{_varies(blocks, statistic):.1%} by {name}" for name, statistic in STATISTICS.items())
    yield f"From pair to pair the ratio of a cell to itself varies by {statistics}; the gate takes the first."
    yield ""
    yield from _rules(blocks, draws, pair_s)
    yield from _disjoint(blocks)


def _rules(blocks: Blocks, draws: int, pair_s: float) -> Iterator[str]:
    same = blocks.ratios("base", "again")
    sequential = partial(rates, blocks=blocks.sizes, planted=blocks.of(OPERATOR))
    recorded: dict[float, Draw] = {
        share: partial(gate_rules.ordered, ratios=blocks.ratios("base", f"slower_{share:.0%}")) for share in SLOW_DOWNS
    }
    found = [sequential(draw, max(draws // SLOWER_SHARE, 1)) for draw in recorded.values()]
    columns = " | ".join(f"{share:.0%} found" for share in SLOW_DOWNS)
    yield f"| tier 1 | false alarms per suite | undecided | {columns} | pairs, median (90 %) |"
    yield f"| --- | ---: | ---: | {' | '.join('---:' for _ in SLOW_DOWNS)} | ---: |"
    for name, draw in (("residuals drawn", gate_rules.resampled), ("sides changed over", gate_rules.swapped)):
        unchanged = sequential(partial(draw, ratios=same), draws, planted=())
        yield _row(f"**attnbench gate**, {name}", unchanged, found)
    for each in (1, POOLED):
        for name, rule in NAIVE.items():
            groups = max(draws // NAIVE_SHARE, 1)
            unchanged, *slower = (
                gate_rules.naive(rule, blocks, "base", after, each, groups, planted)
                for after, planted in [
                    ("again", ()),
                    *((f"slower_{share:.0%}", blocks.of(OPERATOR)) for share in SLOW_DOWNS),
                ]
            )
            yield _row(f"{name}, {each} {'pair' if each == 1 else 'pairs pooled'}", unchanged, slower)
    yield ""
    blamed = ", ".join(f"{r.alarms / r.draws:.2%} ({s:.0%})" for r, s in zip(found, SLOW_DOWNS, strict=True))
    open_ = ", ".join(f"{r.undecided / r.draws:.1%} ({s:.0%})" for r, s in zip(found, SLOW_DOWNS, strict=True))
    long = ", ".join(f"{r.pairs[0]:.0f} ({s:.0%})" for r, s in zip(found, SLOW_DOWNS, strict=True))
    yield (
        f"False alarms of the gate are counted in {draws:,} suites of unchanged code, with the upper end of their 95 % "
        f"interval (Clopper and Pearson): of up to {LOOKS[-1]} pairs drawn with replacement from the residuals of the "
        f"{len(blocks)} recorded pairs, and of these pairs themselves, each once, in random order, with base and "
        "candidate changed over at random. Slow-downs are found in the recorded pairs in random order. The intervals "
        "are those of the simulation: all suites come from the same recorded pairs. With a slow-down the gate takes "
        f"{long} pairs in the median, has an undecided cell in {open_} and blames another operator in {blamed}. A pair "
        f"takes {pair_s:.0f} s: {POOLED} pairs {POOLED * pair_s / 60:.1f} minutes."
    )
    yield ""


def _row(name: str, unchanged: Rates, slower: Sequence[Rates]) -> str:
    alarms = f"{unchanged.alarms / unchanged.draws:.2%} (≤ {unchanged.most_alarms:.2%})"
    found = " | ".join(f"{rate.found / rate.draws:.1%}" for rate in slower)
    median, most = unchanged.pairs
    return f"| {name} | {alarms} | {unchanged.undecided / unchanged.draws:.1%} | {found} | {median:.0f} ({most:.0f}) |"


def _share(hits: int, draws: int) -> str:
    low, high = clopper_pearson(hits, draws)
    return f"{hits} of {draws} ({low:.0%}–{high:.0%})"


def _disjoint(blocks: Blocks) -> Iterator[str]:
    """Decisions that share no pair, in the order of recording."""
    planted = blocks.of(OPERATOR)
    others = [cell for cell in range(len(blocks.cells)) if cell not in planted]
    sizes = [blocks.sizes[cell] for cell in others]

    def outcomes(ratios: Floats) -> list[gate_rules.Outcome]:
        return list(disjoint(ratios, sizes if ratios.shape[1] == len(others) else blocks.sizes))

    alike = [each for a, b in ALIKE for each in outcomes(blocks.ratios(a, b)[:, others])]
    slow = {share: outcomes(blocks.ratios("base", f"slower_{share:.0%}")) for share in SLOW_DOWNS}
    found = "; ".join(
        f"{share:.0%}: {_share(rated(decided, planted).found, len(decided))}"
        for share, decided in slow.items()
        if decided
    )
    if alike:
        alarms = rated(alike, ()).alarms
        yield (
            "Decisions that share no pair, one after the other in the order of recording, with 95 % intervals: the "
            f"{len(others)} cells without a planted slow-down, which run the same code in all six processes, raise a "
            f"false alarm in {_share(alarms, len(alike))}; planted slow-downs are found in {found}."
        )
        yield ""


def _varies(blocks: Blocks, statistic: Callable[[Floats], float]) -> float:
    """The standard deviation of a pair's log ratio, of the base to itself, over all cells. statistic: of samples."""
    logs = {key: np.log([statistic(samples) for samples in each]) for key, each in blocks.samples.items()}
    ratios = [logs["again", cell] - logs["base", cell] for cell in blocks.cells]
    return float(np.mean([ratio.var(ddof=1) for ratio in ratios])) ** 0.5


def _achieved(blocks: Blocks) -> str:
    slow_downs = []
    for share in SLOW_DOWNS:
        ratios = np.median(blocks.ratios("base", f"slower_{share:.0%}"), axis=0)[list(blocks.of(OPERATOR))]
        slow_downs.append(f"{share:.0%}: {' and '.join(f'{x:+.1%}' for x in np.expm1(ratios))}")
    return "; ".join(slow_downs)


def _complexities(stored: Mapping[str, Any] | None) -> Iterator[str]:
    if stored is None:
        return
    planted: Mapping[str, str] = stored["planted"]
    yield "## Tier 0: lost complexity"
    yield ""
    yield "| planted | operators | found, same machine | found by growth alone, another machine |"
    yield "| --- | --- | ---: | ---: |"
    for kind in dict.fromkeys(planted.values()):
        names = [name for name, loss in planted.items() if loss == kind]
        operators = ", ".join(name.rsplit("_", 1)[0] for name in names)
        shares = " | ".join(f"{len({*names} & {*stored[where]})} of {len(names)}" for where in ("here", "elsewhere"))
        yield f"| {kind} | {operators} | {shares} |"
    yield f"| nothing | the same {len(planted)} | {len(stored['unchanged'])} of {len(planted)} | |"
    yield ""
    missed = [name.rsplit("_", 1)[0] for name in planted if name not in stored["elsewhere"]]
    yield (
        "Tier 0 is deterministic: the figures repeat to the last digit. On another machine peak memory is not "
        f"compared, only its growth; {_listed(missed)} at these sizes (512, 1024, 2048)."
    )
    yield ""


def _listed(missed: Sequence[str]) -> str:
    if not missed:
        return "that suffices"
    return f"that misses the mask in {', '.join(missed)}, whose other memory is still larger than N² bytes,"


def _live(decisions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not decisions:
        yield "No complete decision by `attnbench gate` has been recorded since its test is sequential."
        return
    slower = [d["exit_code"] for d in decisions if d["planted"]]
    unchanged = [d["exit_code"] for d in decisions if not d["planted"]]
    minutes = [d["minutes"] for d in decisions]
    others = sum(any(not name.startswith(OPERATOR) for name in d["slower"]) for d in decisions)
    yield f"## {len(decisions)} complete decisions by `attnbench gate`"
    yield ""
    if slower and unchanged:
        yield (
            f"Found: {_share(slower.count(1), len(slower))} slow-downs. With nothing planted: false alarms in "
            f"{_share(unchanged.count(1), len(unchanged))}, undecided in {_share(unchanged.count(3), len(unchanged))}. "
            f"An operator without a slow-down was blamed in {_share(others, len(decisions))}. Minutes: "
            f"{np.median(minutes):.1f} in the median, {max(minutes):.1f} at most; three or less in "
            f"{_share(sum(m <= 3 for m in minutes), len(minutes))}."
        )
        yield ""
    yield "| planted | decision | blamed | pairs | minutes | when |"
    yield "| ---: | --- | --- | ---: | ---: | --- |"
    for d in decisions:
        share = f"{d['planted']:.0%}" if d["planted"] else "nothing"
        blamed = ", ".join(d["slower"]) or "—"
        yield f"| {share} | {WORDS[d['exit_code']]} | {blamed} | {d['pairs']} | {d['minutes']} | {d['date']} |"
    yield ""
