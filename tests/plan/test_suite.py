from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from attnbench.errors import BadInput
from attnbench.plan.cells import cells
from attnbench.plan.operator_facts import definitions
from attnbench.plan.settings import Limits, Measure
from attnbench.plan.suite import Suite, from_text, load, override, shipped
from attnbench.problem import Problem
from attnbench.registry import operators, outside_definition, why_not
from attnbench.thresholds import Gate

FULL = """
name: full
description: everything a suite can say
baseline: softmax
operators: [softmax, {linformer: {k: [64, 128], sharing: kv}}, local]
impls: [reference, sdpa]
scope: [core, layer]
sweep:
  - seq_len: {from: 256, to: 1000, factor: 2}
    channels: [64, 128]
  - image_size: [14, 8x16]
problem: {batch: 2, heads: 4, channels: 32, dtype: bfloat16, causal: true}
mode: [fwd, fwd_bwd]
measure: {rounds: 5, max_rounds: 7, crossover_precision: 3%, min_turns: 4, max_turns: 9, max_time: 400ms}
limits: {memory: 2GiB, cell_timeout: 2m, budget: 1h, first: largest}
gate:
  wall_time: 5%
  flops: 0%
  overrides: [{operator: loc*, mode: fwd, wall_time: 10%}, {cell: '*.n256.*', flops: 1%}]
"""
SMALL = "operators: [softmax]\nsweep: [{seq_len: [64, 128]}]\n"


def suite(text: str, directory: Path = Path()) -> Suite:
    return from_text(text, "mine.yaml", directory)


def mistakes(text: str, directory: Path = Path()) -> str:
    with pytest.raises(BadInput) as caught:
        cells(suite(text, directory))
    return str(caught.value)


def test_every_key_is_read_into_base_units() -> None:
    full = suite(FULL)
    assert full.operators == (("softmax", {}), ("linformer", {"k": (64, 128), "sharing": ("kv",)}), ("local", {}))
    assert full.sweep[0].values["seq_len"] == ((256,), (512,))
    assert full.sweep[1].values["image_size"] == ((14, 14), (8, 16))
    assert full.measure == Measure(5, 7, 0.03, 4, 9, 0.4)
    assert full.limits == Limits(1.0, 2 * 2**30, 120.0, 3600.0, largest_first=True)
    assert full.text == FULL
    assert full.problems()[0] == Problem(256, 64, 4, 2, "bfloat16", True)
    assert full.problems()[-1] == Problem.image(8, 16, 32, 4, 2, "bfloat16", True)
    assert len(full.problems()) == 6


def test_what_a_suite_does_not_say_has_defaults() -> None:
    small = suite(SMALL)
    assert (small.name, small.baseline, small.impls, small.scope, small.mode) == (
        "suite", "softmax", ("reference", "sdpa"), ("core",), ("fwd",),
    )  # fmt: skip
    assert (small.measure, small.limits, small.gate) == (Measure(), Limits(), Gate())
    assert small.problems() == [Problem(64, 256, 8), Problem(128, 256, 8)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("{from: 256, to: 2048, factor: 2}", (256, 512, 1024, 2048)),
        ("{from: 100, to: 160, factor: 1.25}", (100, 125, 156)),
        ("{from: 10, to: 20, step: 5}", (10, 15, 20)),
        ("{from: 10, to: 19, step: 5}", (10, 15)),
        ("{from: 7, to: 7, factor: 2}", (7,)),
        ("{from: 1K, to: 4K, factor: 2}", (1024, 2048, 4096)),
        ("{from: 1K, to: 4K, factor: sqrt2}", (1024, 1472, 2048, 2944, 4096)),
        ("{from: 1K, to: 4K, factor: 1.414}", (1024, 1448, 2047, 2895, 4094)),
        ("{from: 1, to: 4, factor: sqrt2}", (1, 2, 3, 4)),
        ("[3, 1]", (3, 1)),
        ("[1K, 1.5k, 1M]", (1024, 1536, 2**20)),
        ("5", (5,)),
    ],
)
def test_ranges_include_their_ends_where_they_hit_them(values: str, expected: tuple[int, ...]) -> None:
    (sweep,) = suite(f"operators: all\nsweep: [{{seq_len: {values}}}]").sweep
    assert sweep.values["seq_len"] == tuple((n,) for n in expected)


def test_heads_follow_head_dim() -> None:
    text = "operators: all\nproblem: {%s}\nsweep: [{seq_len: 8%s}]"
    assert suite(text % ("head_dim: 16, channels: 64", "")).problems()[0].heads == 4
    assert suite(text % ("head_dim: 16", ", channels: [32, 64]")).problems()[1].heads == 4
    both = suite(text % ("head_dim: 16, heads: 2", "")).problems()[0]
    assert (both.heads, both.channels) == (2, 32)
    assert "64 is not heads 2 · head_dim 16" in mistakes(text % ("head_dim: 16, heads: 2", ", channels: 64"))


def test_the_gate_takes_the_last_override_that_matches() -> None:
    gate = suite(FULL).gate
    key = "local.reference.core.fwd.bfloat16.causal.b2.h4.c64.n{}.p00000000"
    assert gate.threshold("wall_time", key.format(512)) == 0.1
    assert gate.threshold("wall_time", key.format(512).replace(".fwd.", ".fwd_bwd.")) == 0.05
    assert gate.threshold("flops", key.format(256)) == 0.01
    assert gate.threshold("flops", key.format(512)) == 0.0
    assert gate.threshold("energy", key.format(512)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sweeep: []", "sweeep: unknown key (did you mean 'sweep'?); allowed: name,"),
        ("problem: {head: 4}", "problem.head: unknown key (did you mean 'heads'?); allowed: channels, heads, head_dim"),
        ("operators: [sofmax]", "operators[0]: 'sofmax' is no operator (did you mean 'softmax'?)"),
        ("operators: [3]", "operators[0]: 3 is no operator"),
        ("operators: []", "operators: empty"),
        ("operators: {performr: {}}", "'performr' is no operator (did you mean 'performer'?)"),
        ("operators: [softmax, softmax]", "'softmax' is given twice"),
        ("operators: {performer: {kind: gaussian}}", "kind = 'gaussian'; allowed: softmax, relu"),
        ("operators: {performer: {kin: relu}}", "operators.performer.kin: unknown parameter (did you mean 'kind'?)"),
        ("operators: {linformer: {k: -4}}", "k = -4; allowed: a whole number ≥ 1"),
        ("operators: {linformer: {k: .nan}}", "operators.linformer.k: nan; allowed: a line of text, a finite number"),
        ("operators: {linformer: {k: [1, .inf]}}", "operators.linformer.k[1]: inf"),
        ("operators: {linformer: {k: []}}", "operators.linformer.k: empty"),
        ("operators: {linformer: 4}", "operators.linformer: 4; allowed: parameters and their values"),
        ("operators: [linformer, {linformer: {k: 256}}]", "are given twice"),
        ("baseline: sofmax", "baseline: 'sofmax' is no operator (did you mean 'softmax'?)"),
        ("impls: [refrence]", "impls[0]: no operator of the suite has 'refrence' (did you mean 'reference'?); allo"),
        ("impls: [Reference]", "impls[0]: 'Reference' (did you mean 'reference'?); allowed: reference, sdpa"),
        ("impls: ['cuda:flsh']", "impls[0]: no operator of the suite has 'cuda:flsh'"),
        ("impls: [cuda, '-cuda:flsh']", "impls[1]: no operator of the suite has 'cuda:flsh'"),
        ("impls: []", "impls: empty"),
        ("scope: [cor]", "scope[0]: 'cor' (did you mean 'core'?); allowed: core, layer, block"),
        ("mode: [fwd, fwd]", "mode[1]: 'fwd' is given twice"),
        ("sweep: []", "sweep: empty"),
        ("sweep: {seq_len: 4}", "sweep: a mapping; write a list of entries"),
        ("sweep: [{}]", "sweep[0]: no size"),
        ("sweep: [{channels: [64]}]", "sweep[0]: no size"),
        ("sweep: [{seq_len: []}]", "sweep[0].seq_len: empty"),
        ("sweep: [{seq_len: [-256]}]", "sweep[0].seq_len[0]: -256; allowed: a whole number from 1 to 67108864"),
        ("sweep: [{seq_len: [1.0e+300]}]", "sweep[0].seq_len[0]: 1e+300; allowed"),
        ("sweep: [{seq_len: .nan}]", "sweep[0].seq_len: nan; allowed"),
        ("sweep: [{seq_len: [true]}]", "sweep[0].seq_len[0]: true; allowed"),
        ("sweep: [{seq_len: [64, 64]}]", "sweep[0].seq_len[1]: 64 is given twice"),
        ("sweep: [{seq_len: 64, image_size: 8}]", "sweep[0]: seq_len and image_size exclude each other"),
        ("sweep: [{seq_len: {from: 9, to: 3, step: 1}}]", "the range is empty"),
        ("sweep: [{seq_len: {from: 1, to: 3}}]", "a range with the keys 'from, to'"),
        ("sweep: [{seq_len: {from: 1, to: 9, factor: 1}}]", "factor 1; allowed: a number from 1.01"),
        ("sweep: [{seq_len: {from: 1, to: 9, factor: .nan}}]", "factor nan; allowed"),
        ("sweep: [{seq_len: {from: 1, to: 67108864, step: 1}}]", "more than 1000 values"),
        ("sweep: [{seq_len: {from: 1, to: 9, step: 0}}]", "sweep[0].seq_len: 0; allowed"),
        ("sweep: [{image_size: [8x]}]", "sweep[0].image_size[0]: '8x'; allowed: a side from 1 to 8192, or height x"),
        ("sweep: [{image_size: [9999999x4]}]", "sweep[0].image_size[0]: '9999999x4'"),
        ("sweep: [{image_size: [8, 8x8]}]", "'8x8' is given twice"),
        ("sweep: [{seq_len: 8}, {seq_len: [4, 8]}]", "sweep[1]: n8 at 256 channels is in sweep[0] already"),
        ("sweep: [{seq_len: 8, operators: [local]}]", "sweep[0].operators: 'local' is none of the suite's"),
        ("sweep: [{seq_len: 8, operators: [3]}]", "sweep[0].operators[0]: 3; allowed: names of the suite's operators"),
        (
            "sweep: [{seq_len: 8, operators: softmax}, {seq_len: 8}]",
            "sweep[1]: n8 at 256 channels is in sweep[0] already",
        ),
        ("limits: {first: large}", "limits.first: 'large' (did you mean 'largest'?); allowed: smallest, largest"),
        ("sweep: [{seq_len: 8, channels: [64, 60]}]", "sweep[0].channels[1]: 60 is not divisible by heads 8"),
        ("problem: {channels: 100}", "problem.channels: 100 is not divisible by heads 8"),
        ("problem: {batch: 0}", "problem.batch: 0; allowed: a whole number from 1"),
        ("problem: {dtype: float31}", "problem.dtype: 'float31' (did you mean 'float32'?)"),
        ("problem: {causal: 1}", "problem.causal: 1; allowed: true, false"),
        ("problem: {seq_len: 64}", "problem.seq_len: a size belongs in `sweep:`"),
        ("problem: [64]", "problem: [64]; allowed: a mapping"),
        ("measure: {rounds: 0}", "measure.rounds: 0; allowed"),
        ("measure: {min_turns: 9, max_turns: 3}", "measure: min_turns 9 is above max_turns 3; exchange them"),
        ("measure: {rounds: 9, max_rounds: 3}", "measure: rounds 9 is above max_rounds 3; exchange them"),
        ("measure: {max_samples: 9}", "measure.max_samples: of an earlier timing contract: max_turns is the most"),
        ("measure: {within_process_precision: 5%}", "crossover_precision is what a run is precise to now"),
        ("measure: {crossover_precision: 5}", "crossover_precision: 5; allowed: a percentage from 0.1% to 100%"),
        ("measure: {crossover_precision: none}", "or null: then `rounds` rounds are made and no more"),
        ("measure: {max_time: 1}", "measure.max_time: 1; allowed: a duration"),
        ("measure: null", "measure: nothing; allowed: a mapping"),
        ("limits: {memory: 200%}", "limits.memory: '200%'"),
        ("limits: {budgt: 3m}", "limits.budgt: unknown key (did you mean 'budget'?)"),
        ("gate: {wall_tme: 5%}", "gate.wall_tme: unknown key (did you mean 'wall_time'?)"),
        ("gate: {wall_time: 5}", "gate.wall_time: 5; allowed: a percentage"),
        ("gate: {overrides: [{operator: local}]}", "gate.overrides[0]: needs what it matches and a threshold"),
        ("gate: {overrides: [{operatr: local, flops: 1%}]}", "gate.overrides[0].operatr: unknown key"),
        ("name: a b", "name: 'a b'; allowed"),
        ("name: ../x", "name: '../x'; allowed"),
        ("description: [a]", "description: [a]"[:14]),
        ("operators_from: [nowhere.py]", "nowhere.py does not exist"),
        ("operators_from: [no_such_package_here]", "no package 'no_such_package_here' can be imported"),
        ("operators_from: [/etc/passwd]", "operators_from[0]: '/etc/passwd'; allowed: the path of a .py file"),
    ],
)  # fmt: skip
def test_each_mistake_is_named_with_its_key_path(change: str, message: str) -> None:
    key = change.split(":")[0]
    kept = "".join(line + "\n" for line in SMALL.splitlines() if not line.startswith(key + ":"))
    cells(suite(SMALL))
    told = mistakes(kept + change)
    assert message in told
    assert told.startswith("mine.yaml has one mistake"), told


def test_all_mistakes_are_told_at_once() -> None:
    told = mistakes("operators: [sofmax]\nsweep: [{seq_len: -1}, {seq_len: 8, channels: 9}]\nmod: [fwd]\nscope: x\n")
    assert told.startswith("mine.yaml has 5 mistakes")
    for path in ("operators[0]", "sweep[0].seq_len", "sweep[1].channels[0]", "mod", "scope"):
        assert f"\n  {path}: " in told


def test_too_many_cells_are_refused_before_they_are_made() -> None:
    text = "operators: all\nsweep: [{seq_len: {from: 1, to: 1000, step: 1}, channels: {from: 8, to: 8000, step: 8}}]"
    assert "cells; allowed: at most 10000" in mistakes(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (f"operators: {{linformer: {{k: {list(range(1, 1002))}}}}}", "operators.linformer.k: 1001 values"),
        (f"operators: [{', '.join(f'{{linformer: {{k: {k}}}}}' for k in range(1, 1002))}]", "operators: 1001 entries"),
        (f"operators: [softmax]\nimpls: [{', '.join(f'cuda:a{i}' for i in range(1001))}]", "impls: 1001 values"),
    ],
    ids=["values of a parameter", "entries of operators", "impls"],
)
def test_a_long_list_is_refused_before_its_values_are_compared(change: str, message: str) -> None:
    told = mistakes(change + "\nsweep: [{seq_len: 8}]")
    assert f"{message}; allowed: at most 1000" in told
    assert told.startswith("mine.yaml has one mistake"), told


def test_a_key_of_any_length_is_named_in_short() -> None:
    told = mistakes(f"operators:\n  linformer:\n    ? {'k' * 100_000}\n    : [{{}}]\nsweep: [{{seq_len: 8}}]")
    assert "operators.linformer.kkkk" in told
    assert len(told) < 1000


def test_a_parameter_may_have_a_thousand_values() -> None:
    text = f"operators: {{linformer: {{k: {list(range(1, 1001))}}}}}\nsweep: [{{seq_len: 8}}]"
    assert len(suite(text).operators[0][1]["k"]) == 1000


def test_reading_a_suite_imports_no_torch() -> None:
    code = """import sys
from attnbench.plan.suite import load, shipped
for name in shipped(): load(name)
sys.exit('torch' in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", shipped())
def test_shipped_suites_are_valid_and_expand(name: str) -> None:
    loaded = load(name)
    assert loaded.name == name
    assert loaded.description
    found = cells(loaded)
    assert len({cell.key for cell in found}) == len(found) > 0
    assert cells(loaded) == found


def twice_or_undefined(chosen: Suite) -> tuple[set[str], set[str]]:
    """Operators that a suite measures as a sequence and as an image of as many tokens, and those that it would skip."""
    sources = operators()
    domains: dict[Any, set[str]] = {}
    undefined = set()
    for cell in cells(chosen):
        operator, p = sources[cell.operator].load(), cell.problem
        if outside_definition(operator, p, cell.params, cell.scope) is not None:
            undefined.add(cell.operator)
        domains.setdefault((cell.operator, cell.impl, p.seq_len, p.batch), set()).add(p.domain)
    return {name for (name, *_), several in domains.items() if len(several) > 1}, undefined


@pytest.mark.parametrize("name", [name for name in shipped() if name.startswith("gpu")])
def test_suites_for_a_gpu_spend_no_time_twice(name: str) -> None:
    chosen = load(name)
    assert chosen.limits.largest_first
    twice, undefined = twice_or_undefined(chosen)
    assert (twice - {chosen.baseline}, undefined) == (set(), set())


def test_a_suite_may_spend_time_twice() -> None:
    """The negative control of the test before."""
    sweep = "sweep: [{seq_len: 64}, {image_size: 8}, {seq_len: 64, causal: true}]"
    assert twice_or_undefined(suite(f"operators: [local, lambda_layer, linformer]\n{sweep}")) == (
        {"local", "lambda_layer", "linformer"},
        {"lambda_layer", "linformer"},
    )


def test_an_unknown_name_shows_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="did you mean 'quick'"):
        load("quik")
    (tmp_path / "quick").mkdir()
    assert load("quick").name == "quick"
    with pytest.raises(BadInput, match="does not exist"):
        load("quik.yaml")


def test_impls_stand_for_what_an_operator_has() -> None:
    def impls(text: str) -> set[tuple[str, str]]:
        return {
            (cell.operator, cell.impl) for cell in cells(suite(SMALL.replace("[softmax]", "[softmax, local]") + text))
        }

    assert impls("") == {("softmax", "reference"), ("softmax", "sdpa"), ("local", "reference")}
    assert ("local", "compiled") in impls("impls: [compiled]")
    cuda = impls("impls: [cuda]")
    assert ("softmax", "sdpa") not in cuda
    assert all(impl.split(":")[0] == "cuda" for _, impl in cuda)
    assert {operator for operator, _ in cuda} == {"softmax", "local"}
    assert ("softmax", "cuda:flash") in cuda
    assert impls("impls: [cuda, '-cuda:flash']") == cuda - {("softmax", "cuda:flash")}
    assert impls("impls: [cuda, '-cuda']") == {each for each in cuda if each[1] != "cuda"}, "its variants stay"
    assert impls("impls: [-cuda:flash, cuda]") == cuda - {("softmax", "cuda:flash")}


def test_a_cell_outside_the_definition_is_kept_with_its_reason() -> None:
    found = cells(suite("operators: [linformer]\nsweep: [{seq_len: 8}]\nproblem: {causal: true}"))
    assert len(found) == 1
    from attnbench.registry import operators

    assert why_not(operators()["linformer"].load(), found[0], "cpu") is not None


ENTRIES = """
operators: [softmax, local, {linformer: {k: [2, 4]}}]
sweep:
  - seq_len: [8, 16]
  - {seq_len: [8, 16], causal: true, operators: [softmax, local]}
  - {seq_len: [32], operators: linformer}
  - {seq_len: [32], operators: [softmax]}
"""


def test_an_entry_of_a_sweep_may_name_its_operators() -> None:
    counts = Counter((c.operator, c.problem.causal, c.problem.seq_len > 16) for c in cells(suite(ENTRIES)))
    one, two = 2, 4  # impls reference and sdpa, sdpa of softmax alone
    assert counts["linformer", False, True] == 2
    assert counts["linformer", True, False] == 0
    assert (counts["softmax", True, False], counts["local", True, False]) == (two, 2)
    assert (counts["softmax", False, True], counts["local", False, True]) == (one, 0)


def test_operators_given_on_the_command_line_leave_only_their_entries() -> None:
    alone = override(suite(ENTRIES), operators=["linformer"])
    assert {(c.operator, c.problem.causal, c.problem.seq_len) for c in cells(alone)} == {
        ("linformer", False, n) for n in (8, 16, 32)
    }
    other = override(suite(ENTRIES), operators=["efficient,softmax"])
    assert {c.problem.causal for c in cells(other) if c.operator == "efficient"} == {False}
    assert {c.problem.causal for c in cells(other) if c.operator == "softmax"} == {False, True}


def test_operators_given_on_the_command_line_leave_only_impls_that_one_has() -> None:
    text = "operators: [nystromformer, mla]\nimpls: [reference, %s]\nsweep: [{seq_len: 64}]"
    whole = suite(text % "'cuda:flash_mla', '-cuda:fa4'")
    alone = override(whole, operators=["nystromformer"])
    assert alone.impls == ("reference",)
    assert cells(alone)
    assert override(whole, operators=["mla"]).impls == whole.impls
    with pytest.raises(BadInput, match="no operator of the suite has 'cuda:flash_mlb'"):
        cells(override(suite(text % "'cuda:flash_mlb'"), operators=["nystromformer"]))
    with pytest.raises(BadInput, match="no operator of the suite has 'cuda:flash_mla'"):
        cells(override(whole, operators=["nystromformer"], impls=["cuda:flash_mla"]))


def test_params_are_resolved_and_multiply() -> None:
    found = cells(suite("operators: {linformer: {k: [64, 128], sharing: [kv, none]}}\nsweep: [{seq_len: 8}]"))
    assert [dict(cell.params) for cell in found] == [
        {"k": k, "sharing": sharing} for k in (64, 128) for sharing in ("kv", "none")
    ]


def test_overrides_replace_what_the_suite_says() -> None:
    changed = override(suite(FULL), operators=["linformer", "identity"], impls=["reference"], rounds=2, budget="90s")
    assert changed.operators == (("linformer", {"k": (64, 128), "sharing": ("kv",)}), ("identity", {}))
    assert (changed.impls, changed.measure.rounds, changed.limits.budget_s) == (("reference",), 2, 90.0)
    assert (changed.measure.max_rounds, changed.measure.max_turns) == (2, 9)
    assert cells(suite(changed.text)) == cells(changed)
    assert override(suite(FULL)).text == FULL
    assert [name for name, _ in override(suite(FULL), operators=["local,softmax"]).operators] == ["softmax", "local"]


def test_overrides_are_checked_like_the_suite() -> None:
    with pytest.raises(BadInput) as caught:
        override(suite(FULL), operators=["locl"], impls=["Sdpa"], rounds=0, budget="5")
    told = str(caught.value)
    for part in (
        "--operator: 'locl' is no operator (did you mean 'local'?)",
        "--impl: 'Sdpa' (did you mean 'sdpa'?)",
        "--rounds: 0",
        "--budget: '5'",
    ):
        assert part in told


OWN = '''"""y = 2 v."""
from attnbench.operators.exact.identity import OPERATOR as identity
from attnbench.operator import Complexity, Form, Operator, Paper
core = identity.forms["core"]
OPERATOR = Operator(
    paper=identity.paper,
    forms={"core": Form(lambda problem, params, v: 2 * v, core.make_inputs, %s)},
    complexity=lambda params: Complexity("1", "n"),
)
'''


def test_a_users_own_operator_is_loaded_from_beside_the_suite(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(OWN % "core.cost")
    text = "operators_from: [twice.py]\noperators: [twice, softmax]\nsweep: [{seq_len: 8}]"
    assert {cell.operator for cell in cells(suite(text, tmp_path))} == {"twice", "softmax"}
    assert suite(text, tmp_path).operators_from == (str(tmp_path / "twice.py"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import math\n1 / 0\n", "line 2 (1 / 0): ZeroDivisionError"),
        ("def f(:\n", "line 1: SyntaxError"),
        ("import sys\nsys.exit(3)\n", "line 2 (sys.exit(3)): SystemExit"),
        ("x = 1\n", "an operator file defines OPERATOR"),
        ("from attnbench.operator import Form\nForm(None, None)\n", "line 2 (Form(None, None)): TypeError"),
        (OWN % "lambda problem, params, mode: 3", "cost returns int, not Cost"),
        (OWN % "lambda problem, params, mode: 1 / 0", "cost: "),
        (OWN.replace('"core":', '"cor":') % "core.cost", "forms has 'cor'"),
        (OWN.replace("core.make_inputs, %s", "core.make_inputs, core.cost, {'a,b': None}"), "an impl is named 'a,b'"),
        ("class Own(BaseException): pass\nraise Own\n", "line 2 (raise Own): Own"),
        ("raise ValueError('\\ud800 \\x1b[2J')\n", r"ValueError: \ud800 \u001b[2J. Correct"),
    ],
)
def test_a_users_broken_operator_is_told_with_its_own_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "broken.py").write_text(content)
    told = mistakes("operators_from: broken.py\noperators: [broken]\nsweep: [{seq_len: 8}]", tmp_path)
    assert message in told
    assert "broken.py" in told


@pytest.mark.parametrize("name", ["a,b", "a.b", "a b", "a\n"])
def test_an_own_operators_file_is_named_as_a_key_can_hold_it(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text(OWN % "core.cost")
    with pytest.raises(BadInput, match="is not a valid name; allowed: letters"):
        operators([str(tmp_path / f"{name}.py")])


def test_what_an_own_operator_says_of_its_growth_is_asked_like_all_else_of_it(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(OWN.replace('Complexity("1", "n")', "1 / 0") % "core.cost")
    own = suite("operators_from: [twice.py]\noperators: [twice]\nsweep: [{seq_len: 8}]", tmp_path)
    with pytest.raises(BadInput, match=r"twice\.py: complexity, exact, estimates: .*ZeroDivisionError"):
        definitions(cells(own), own.operators_from)


def test_the_suite_of_the_readme_is_one() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    text = readme.split("## A suite")[1].split("```yaml\n")[1].split("```")[0]
    assert len(from_text(text, "README.md", Path()).problems()) > 10
