"""The gate study's rules and page, on blocks whose truth is known."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CELLS = [f"{operator}.n{n}" for operator in ("softmax", "studied", "linformer") for n in (256, 512)]
KEYS = {c: f"{c.split('.')[0]}.reference.core.fwd.float32.full.b1.h4.c64.{c.split('.')[1]}.p0" for c in CELLS}
VARIANTS = {"base": 0.0, "again": 0.0, "slower_2%": 0.02, "slower_5%": 0.05, "slower_10%": 0.1, "slower_25%": 0.25}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("gate_report")


def record(folder: Path, count: int) -> None:
    """Blocks of processes with a luck of 1 % each, cells with 0.5 % of their own, samples that all know too well."""
    rng = np.random.default_rng(5)
    rows = []
    for block in range(1, count + 1):
        for variant, share in VARIANTS.items():
            luck = rng.normal(0, 0.01)
            for cell in CELLS:
                planted = math.log1p(share) if cell.startswith("studied.") else 0.0
                median = 1e3 * math.exp(luck + planted + rng.normal(0, 0.005))
                samples = " ".join(f"{median * (1 + 0.001 * i):.6g}" for i in range(-4, 5))
                rows.append((block, cell, variant, f"{median:.6g}", samples))
    columns = ["block", "cell", "variant", "median_us", "samples_us"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "clean.csv", index=False)
    machine = dict.fromkeys(("cpu", "cores", "system", "machine", "torch", "threads"), "one")
    study = {"machine": machine, "cells": KEYS, "clean_from": "then", "clean_until": "now", "clean_block_s": 12.0}
    (folder / "study.json").write_text(json.dumps(study))


def test_the_gate_finds_what_is_planted_and_the_naive_rules_cry_wolf(module: ModuleType, tmp_path: Path) -> None:
    record(tmp_path, 24)
    rules = sys.modules["gate_rules"]
    blocks = rules.read(tmp_path / "clean.csv", KEYS)

    def rated(rule: object, after: str, each: int, planted: str = "studied") -> object:
        return rules.rates(rule, blocks, "base", after, each, 6, planted)

    same = rated(rules.gate, "again", 12, "")
    assert (same.alarms, same.independent) == (0, 2)
    assert rated(rules.gate, "slower_10%", 12).found == 1
    assert rated(rules.gate, "slower_10%", 12).alarms == 0
    assert rated(rules.gate, "slower_2%", 12).found < 1  # below half the threshold, mostly
    naive = rules.NAIVE["Mann-Whitney, p < .05"]
    assert rated(naive, "again", 1, "").alarms > 0.5
    assert rated(rules.NAIVE["asv: ratio > 1.1 and p < .002"], "slower_5%", 1).found < 0.2


def test_few_independent_decisions_give_a_wide_interval(module: ModuleType) -> None:
    rates = sys.modules["gate_rules"].Rates
    low, high = rates(0.0, 0.0, 0.0, 3).interval(0.0)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 3))
    assert rates(0.0, 0.0, 0.0, 300).interval(0.0)[1] < 0.02
    low, high = rates(1.0, 0.0, 0.0, 3).interval(1.0)
    assert (low == pytest.approx(0.025 ** (1 / 3)), high) == (True, 1)
    assert rates(0.5, 0.0, 0.0, 0).interval(0.5) == (0, 1)


def test_the_page_says_how_many_blocks_there_were(module: ModuleType, tmp_path: Path) -> None:
    record(tmp_path, 2)
    module.write(tmp_path, tmp_path / "page.md", 3)
    text = (tmp_path / "page.md").read_text()
    assert "## Clean: 2 blocks" in text
    assert "Too few blocks" in text
    assert "attnbench gate**" not in text
    record(tmp_path, 10)
    table = pd.read_csv(tmp_path / "clean.csv", dtype=str)
    table.iloc[:-3].to_csv(tmp_path / "clean.csv", index=False)  # the last block was cut off
    module.write(tmp_path, tmp_path / "page.md", 3)
    text = (tmp_path / "page.md").read_text()
    assert "## Clean: 9 blocks" in text
    assert "| **attnbench gate**, 4 + 4 pairs |" in text
    assert text.count(" pairs pooled |") == 3
