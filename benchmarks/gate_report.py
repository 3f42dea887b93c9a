"""The gate study's page, from what was recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import gate_rules
import numpy as np
from gate_planted import OPERATOR, SLOW_DOWNS
from gate_rules import GATE, NAIVE, Blocks, Rates, Rule, rates

from attnbench.analysis.compare import tier1_paired

HEAD = """# How often the gate is wrong

`make gate-study` records blocks of six fresh processes whose visits take turns as in `attnbench gate`: the base, the
base again, and the base with one operator made slower by 2, 5, 10 and 25 % (real work: log Γ of a calibrated count of
numbers). Decisions are then made from randomly drawn groups of blocks, by the gate and by three naive rules on the same
samples. This page is generated from them.

Groups that share blocks are not independent decisions. Each share has a 95 % interval computed for as few decisions as
there are *disjoint* groups of blocks ("independent"); where these are few, the interval is wide.
"""

ALIKE = (("base", "again"), ("slower_2%", "slower_5%"), ("slower_10%", "slower_25%"))
"""Disjoint pairs of processes of a block; they differ in the planted operator only."""

WORDS = {0: "pass", 1: "regression", 2: "cannot compare", 3: "undecided"}


def write(folder: Path, path: Path, resamples: int) -> None:
    """Writes the page."""
    study = json.loads((folder / "study.json").read_text())
    lines = [HEAD, *_machine(study)]
    for condition in ("clean", "loaded"):
        file = folder / f"{condition}.csv"
        if file.is_file():
            lines += _condition(condition, gate_rules.read(file, study["cells"]), study, resamples)
    lines += _complexities(study.get("complexities"))
    lines += _live(study.get("live", []))
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _machine(study: Mapping[str, Any]) -> Iterator[str]:
    m = study["machine"]
    yield (
        f"Recorded on {m['cpu']} ({m['cores']} cores, {m['system']} {m['machine']}), torch {m['torch']}, "
        f"{m['threads']} thread per process. The suite has {len(study['cells'])} cells: softmax, local (the planted "
        "one), linformer and performer at two lengths, with a threshold of 5 %. Raw medians and samples: "
        "`results/reference/gate-study/`."
    )
    yield ""


def _condition(condition: str, blocks: Blocks, study: Mapping[str, Any], resamples: int) -> Iterator[str]:
    count = len(blocks.numbers)
    yield f"## {'Clean' if condition == 'clean' else 'Under a competing load'}: {count} blocks"
    yield ""
    span = " to ".join(dict.fromkeys(study[f"{condition}_{end}"] for end in ("from", "until")))
    block_s = float(study[f"{condition}_block_s"])
    load = "" if condition == "clean" else " Two other processes were busy and idle by turns, for 0.1 to 3 s each time."
    yield f"Recorded {span}; a block took {block_s:.1f} s.{load}"
    yield ""
    if count < 4:
        yield "Too few blocks for any decision: the gate needs two pairs in each of its two stages."
        yield ""
        return
    pairs, plan = _plan(blocks, block_s)
    yield plan
    yield ""
    yield f"Planted slow-downs as measured (median over blocks of the ratio to the base): {_achieved(blocks)}."
    yield ""
    yield from _rules(blocks, pairs, resamples)
    yield _more_alarms(blocks, 2 * pairs, resamples)
    yield ""


def _plan(blocks: Blocks, block_s: float) -> tuple[int, str]:
    """The number of pairs per stage that the decisions use, and the reason as text."""
    noise = tier1_paired.noise(gate_rules.pairs(blocks, "base", "again", blocks.numbers))
    planned, once, twice = tier1_paired.pairs_for(
        dict.fromkeys(noise.own, GATE.thresholds["wall_time"]), len(blocks.keys), noise
    )
    used = min(planned, len(blocks.numbers) // 2)
    short = "" if used == planned else f" (all that {len(blocks.numbers)} blocks give)"
    minutes = used * block_s / len(ALIKE) / 60
    return used, (
        f"Noise of a pair, the base against itself: {noise.typical:.1%} per cell (four cells in five stay below), "
        f"{noise.shared:.1%} common to all cells. With it the gate plans {planned} pairs per stage, which find "
        f"{once.effect:.0%} with probability {once.power:.0%} and {twice.effect:.0%} with {twice.power:.0%}. The "
        f"decisions below use {used} pairs{short} per stage: {minutes:.1f} minutes, twice that where stage 1 marks all "
        "cells."
    )


def _rules(blocks: Blocks, pairs: int, resamples: int) -> Iterator[str]:
    rules: dict[str, tuple[Rule, int]] = {f"**attnbench gate**, {pairs} + {pairs} pairs": (gate_rules.gate, 2 * pairs)}
    rules |= {f"{name}, 1 pair": (rule, 1) for name, rule in NAIVE.items()}
    rules |= {f"{name}, {2 * pairs} pairs pooled": (rule, 2 * pairs) for name, rule in NAIVE.items()}
    planted = " | ".join(f"{share:.0%} found" for share in SLOW_DOWNS)
    yield f"| tier 1 | false alarms per suite | {planted} | independent |"
    yield f"| --- | ---: | {' | '.join('---:' for _ in SLOW_DOWNS)} | ---: |"
    undecided: list[float] = []
    blames_others: list[float] = []
    for name, (rule, each) in rules.items():
        unchanged = rates(rule, blocks, "base", "again", each, resamples, "")
        slower = [rates(rule, blocks, "base", f"slower_{s:.0%}", each, resamples, OPERATOR) for s in SLOW_DOWNS]
        shares = " | ".join([_share(unchanged, unchanged.alarms), *(_share(r, r.found) for r in slower)])
        yield f"| {name} | {shares} | {unchanged.independent} |"
        if rule is gate_rules.gate:
            undecided = [unchanged.undecided, *(r.undecided for r in slower)]
            blames_others = [r.alarms for r in slower]
    yield ""
    steps = [f"{share:.0%}" for share in SLOW_DOWNS]
    undecided_shares = ", ".join(
        f"{x:.1%} ({step})" for x, step in zip(undecided, ["nothing planted", *steps], strict=True)
    )
    blamed_shares = ", ".join(f"{x:.1%} ({step})" for x, step in zip(blames_others, steps, strict=True))
    yield (
        f"The gate is undecided in {undecided_shares}; the naive rules never are. Where one operator is slower, the "
        f"gate also blames another in {blamed_shares}."
    )
    yield ""


def _share(rate: Rates, share: float) -> str:
    low, high = rate.interval(share)
    return f"{share:.1%} ({low:.0%}–{high:.0%})"


def _achieved(blocks: Blocks) -> str:
    slow_downs = []
    for share in SLOW_DOWNS:
        after = blocks.medians[f"slower_{share:.0%}"]
        ratios = [
            np.median([after[block, cell] / blocks.medians["base"][block, cell] for block in blocks.numbers])
            for cell in blocks.keys
            if cell.split(".")[0] == OPERATOR
        ]
        slow_downs.append(f"{share:.0%}: {' and '.join(f'{ratio - 1:+.1%}' for ratio in ratios)}")
    return "; ".join(slow_downs)


def _more_alarms(blocks: Blocks, each: int, resamples: int) -> str:
    """False alarms on the operators without a planted slow-down."""
    cells = [cell for cell in blocks.keys if cell.split(".")[0] != OPERATOR]
    rule = partial(gate_rules.gate, cells=cells)
    by_pair = [rates(rule, blocks, a, b, each, resamples, "", seed) for seed, (a, b) in enumerate(ALIKE)]
    alarms = float(np.mean([r.alarms for r in by_pair]))
    pooled = Rates(0.0, alarms, 0.0, sum(r.independent for r in by_pair))
    return (
        f"The {len(cells)} cells without a planted slow-down run the same code in all six processes. Three disjoint "
        f"pairs of processes per block give {pooled.independent} independent decisions on them: false alarms "
        f"{_share(pooled, alarms)}."
    )


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


def _plan_of(decision: Mapping[str, Any]) -> str:
    """The plan as printed, without the time it may take, which is estimated again for each decision."""
    return re.sub(r" \(at most [^)]*\)", "", str(decision["plan"]))


def _outcomes(decisions: Sequence[Mapping[str, Any]]) -> str:
    slower = [d["exit_code"] for d in decisions if d["planted"]]
    unchanged = [d["exit_code"] for d in decisions if not d["planted"]]
    words = ", ".join(f"{unchanged.count(code)} {word}" for code, word in WORDS.items() if code in unchanged)
    return f"Found: {slower.count(1)} of {len(slower)} slow-downs. With nothing planted: {words}."


def _live(decisions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for plan, group in groupby(decisions, key=_plan_of):
        of_plan = list(group)
        yield f"## {len(of_plan)} complete decisions by `attnbench gate`"
        yield ""
        yield f"After one `attnbench calibrate`. The plan: {plan}. {_outcomes(of_plan)}"
        yield ""
        yield "| planted | decision | blamed | minutes | when |"
        yield "| ---: | --- | --- | ---: | --- |"
        for d in of_plan:
            share = f"{d['planted']:.0%}" if d["planted"] else "nothing"
            blamed = ", ".join(d["slower"]) or "—"
            yield f"| {share} | {WORDS[d['exit_code']]} | {blamed} | {d['minutes']} | {d['date']} |"
        yield ""
