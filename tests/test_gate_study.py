"""The gate study's rules and page, on blocks whose truth is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import gate_report, gate_rules
from benchmarks.coverage import gate as coverage
from benchmarks.gate_rules import NAIVE, Blocks, Rates, naive, ordered, rates, swapped

CELLS = [f"{operator}.n{n}" for operator in ("linformer", "softmax", "studied") for n in (256, 512)]
VARIANTS = {"base": 0.0, "again": 0.0, "slower_2%": 0.02, "slower_5%": 0.05, "slower_10%": 0.1, "slower_25%": 0.25}


def record(folder: Path, count: int) -> Blocks:
    """Blocks of processes with a luck of 1 % each, cells with 0.5 % of their own, samples that all know too well."""
    rng = np.random.default_rng(5)
    rows = []
    for block in range(1, count + 1):
        for variant, share in VARIANTS.items():
            luck = rng.normal(0, 0.01)
            for cell in CELLS:
                planted = math.log1p(share) if cell.startswith("studied.") else 0.0
                level = 1e3 * math.exp(luck + planted + rng.normal(0, 0.005))
                rows.append((block, cell, variant, " ".join(f"{level * (1 + 0.001 * i):.6g}" for i in range(-4, 5))))
    pd.DataFrame(rows, columns=["block", "cell", "variant", "samples_us"]).to_csv(folder / "clean.csv", index=False)
    machine = dict.fromkeys(("cpu", "cores", "system", "machine", "torch", "threads"), "one")
    cells = dict.fromkeys(CELLS, "key")
    study = {"machine": machine, "cells": cells, "clean_from": "then", "clean_until": "now", "clean_block_s": 12.0}
    (folder / "study.json").write_text(json.dumps(study))
    return gate_rules.read(folder / "clean.csv")


def test_the_gate_finds_what_is_planted_and_the_naive_rules_cry_wolf(tmp_path: Path) -> None:
    blocks = record(tmp_path, 24)
    planted = blocks.of("studied")
    assert [blocks.cells[cell] for cell in planted] == ["studied.n256", "studied.n512"]

    def sequential(after: str) -> Rates:
        ratios = blocks.ratios("base", after)
        return rates(lambda rng, suites: ordered(rng, suites, ratios), 12, blocks.sizes, planted)

    same = rates(lambda rng, n: swapped(rng, n, blocks.ratios("base", "again")), 12, blocks.sizes)
    assert (same.alarms, same.undecided) == (0, 0)
    assert same.pairs[0] <= 8
    assert (sequential("slower_10%").found, sequential("slower_10%").alarms) == (12, 0)
    assert sequential("slower_2%").found == 0  # below half the threshold
    mann_whitney = naive(NAIVE["Mann-Whitney, p < .05"], blocks, "base", "again", 1, 0)
    assert mann_whitney.alarms > 0.5 * mann_whitney.draws
    asv = naive(NAIVE["asv: ratio > 1.1 and p < .002"], blocks, "base", "slower_5%", 1, 0, planted)
    assert asv.found < 0.2 * asv.draws


def test_disjoint_decisions_share_no_pair_and_an_unfinished_one_is_none(tmp_path: Path) -> None:
    blocks = record(tmp_path, 24)
    same = blocks.ratios("base", "again")
    decided = list(gate_rules.disjoint(same, blocks.sizes))
    assert len(decided) > 1
    assert sum(outcome.pairs for outcome in decided) <= 24
    assert list(gate_rules.disjoint(same * 50, blocks.sizes)) == []


def test_few_decisions_give_a_wide_interval() -> None:
    interval = gate_rules.clopper_pearson
    assert interval(0, 3) == (0, pytest.approx(1 - 0.025 ** (1 / 3)))
    assert interval(3, 3) == (pytest.approx(0.025 ** (1 / 3)), 1)
    assert interval(0, 10_000)[1] < 0.0005


def test_the_page_says_how_many_blocks_there_were(tmp_path: Path) -> None:
    record(tmp_path, 2)
    gate_report.write(tmp_path, tmp_path / "page.md", 20)
    text = (tmp_path / "page.md").read_text()
    assert "## Clean: 2 blocks" in text
    assert "Too few blocks" in text
    assert "attnbench gate**" not in text
    assert "No complete decision" in text
    record(tmp_path, 10)
    table = pd.read_csv(tmp_path / "clean.csv", dtype=str)
    table.iloc[:-3].to_csv(tmp_path / "clean.csv", index=False)  # the last block was cut off
    study = json.loads((tmp_path / "study.json").read_text())
    live = {"exit_code": 1, "slower": ["studied"], "pairs": 6, "minutes": 2.0, "date": "now"}
    study["sequential"] = [{**live, "planted": 0.1}, {**live, "planted": 0.0, "exit_code": 0, "slower": []}]
    (tmp_path / "study.json").write_text(json.dumps(study))
    gate_report.write(tmp_path, tmp_path / "page.md", 20)
    text = (tmp_path / "page.md").read_text()
    assert "## Clean: 9 blocks" in text
    assert text.count("| **attnbench gate**, ") == 2
    assert text.count(" pairs pooled |") == 3
    assert "Found: 1 of 1 (2%–100%) slow-downs" in text
    assert "An operator without a slow-down was blamed in 0 of 2" in text
    assert "three or less in 2 of 2" in text
    study["sequential"].append({**live, "planted": 0.05, "slower": ["softmax", "studied"], "minutes": 4.0})
    text = "\n".join(gate_report._live(study["sequential"]))
    assert "An operator without a slow-down was blamed in 1 of 3" in text
    assert "4.0 at most; three or less in 2 of 3" in text


def test_the_table_of_noise_models_has_a_row_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "MODELS", ("Gaussian", "shared 8 %"))
    monkeypatch.setattr(coverage, "UNCHANGED", 2)
    rows = [line.split(" | ") for line in coverage.table(2).splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip("| ") for row in rows] == ["Gaussian", "shared 8 %", "recorded, quiet", "recorded, loaded"]
    spreads = [float(row[1].rstrip("%")) for row in rows]
    assert 3 < spreads[0] < 4
    assert 8 < spreads[1] < 10
