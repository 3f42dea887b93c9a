"""attnbench choose: labels, constraints with their negative controls, what is shown, and bad input."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.analysis.cards import CARDS
from attnbench.errors import BadInput
from attnbench.problem import Cell, Problem
from attnbench.properties import PROPERTIES
from tests.stored import cell, folder, timed, visit

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
RECORDED = ("--run", str(REFERENCE / "ci"))
MEASURED = ("softmax", "fnet", "linear_transformer", "performer", "linformer")
FEW = ("--operators", "softmax,local,linear_transformer,synthesizer,identity")


@pytest.fixture(scope="module")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A few operators of a recorded run, forward; and the words that ask for its problems."""
    made = folder(tmp_path_factory.mktemp("choose") / "run", [])
    lines = (REFERENCE / "cpu-sequence" / "visits.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    chosen = [line for line in lines if json.loads(line)["key"].startswith(tuple(f"{name}." for name in MEASURED))]
    (made / "visits.jsonl").write_text("".join(line for line in chosen if ".fwd." in line), encoding="utf-8")
    for name in ("environment.json", "suite.yaml"):
        (made / name).write_bytes((REFERENCE / "cpu-sequence" / name).read_bytes())
    return ("--channels", "256", "--run", str(made))


def invoke(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["choose", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def document(*words: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(invoke(*words, "--format", "json", code=code))
    return found


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["name"] for row in rows]


def out(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found["out"]}


def test_by_a_card_every_time_is_the_roofline_by_its_data_sheet() -> None:
    found = document("--seq-len", "2K", "--head-dim", "64", "--causal", "--dtype", "bf16", "--device", "h100", *FEW)
    rows = {row["name"]: row for row in found["choices"]}
    softmax, card = rows["softmax:sdpa"], CARDS["H100"]
    n, c = 2048, 512
    products = 4 * c * n * (n + 1) // 2 / card.matmul_flops_per_s["bfloat16"]
    traffic = 4 * n * c * 2 / card.copy_bytes_per_s
    assert softmax["time_s"] == pytest.approx(max(products, traffic))
    assert (softmax["bound"], softmax["flops"]) == (
        "traffic" if traffic > products else "products",
        2 * n * (n + 1) * c,
    )
    assert {row["time_source"] for row in rows.values()} == {"analytic"}
    assert {row["memory_source"] for row in rows.values()} == {"predicted"}
    assert (softmax["state_bytes"], softmax["exact"] if "exact" in softmax else softmax["properties"]["exact"]) == (
        2 * n * c * 2,
        True,
    )
    assert found["memory_limit_bytes"] == card.memory_bytes
    assert out(found)["identity"]["why"] == "nothing"


def test_a_cheaper_exact_form_counts_for_the_kinds_that_it_is_of() -> None:
    words = ("--seq-len", "64K", "--head-dim", "64", "--dtype", "bf16", "--device", "H100", "--operators", "non_local")
    card = CARDS["H100"]

    def least(kind: str) -> Any:
        return document(*words, "--param", f"kind={kind}")["choices"][0]

    softmax, rewritten = least("embedded_gaussian"), least("dot_product")
    assert softmax["time_s"] == pytest.approx(softmax["flops"] / card.matmul_flops_per_s["bfloat16"])
    assert rewritten["time_s"] < rewritten["flops"] / card.matmul_flops_per_s["bfloat16"] / 10


def test_a_need_that_is_not_met_puts_an_operator_out() -> None:
    words = ("--seq-len", "1K", "--causal", "--device", "H100", *FEW)
    assert "local" in names(document(*words)["choices"])
    found = document(*words, "--need", "all_pairs,decode")
    assert "local" not in names(found["choices"])
    assert (out(found)["local"]["why"], out(found)["local"]["unmet"]) == ("need", ["all_pairs"])
    assert "linear_transformer" in names(found["choices"])
    exact = document(*words, "--need", "exact")
    assert names(exact["choices"]) == ["softmax:sdpa"]


def test_what_is_not_defined_is_out_with_its_reason() -> None:
    found = document("--seq-len", "1K", "--causal", "--device", "H100", "--operators", "fnet,kao_kv,softmax")
    assert {name: row["why"] for name, row in out(found).items()} == {"fnet": "undefined", "kao_kv": "undefined"}
    assert "image" in out(found)["kao_kv"]["reason"]


def test_memory_above_the_limit_puts_an_operator_out_and_says_how_much() -> None:
    words = ("--seq-len", "4K", "--device", "H100", "--operators", "softmax,synthesizer")
    assert set(names(document(*words, "--memory", "10GiB")["choices"])) == {"softmax:sdpa", "synthesizer"}
    found = document(*words, "--memory", "1GiB")
    assert names(found["choices"]) == ["softmax:sdpa"], "of softmax an impl without N² memory is there"
    row = out(found)["synthesizer"]
    assert (row["why"], row["memory_bytes"] > 2**30) == ("memory", True)
    assert "out, needs more memory: synthesizer (1." in invoke(*words, "--memory", "1GiB")
    assert document(*words, "--memory", "50%")["memory_limit_bytes"] == (CARDS["H100"].memory_bytes or 0) // 2


def test_by_a_run_times_are_measured_or_interpolated_and_others_stand_apart(sequence: tuple[str, ...]) -> None:
    operators = ("--operators", "softmax,fnet,linear_transformer,based")
    measured = document("--seq-len", "1024", *sequence, *operators)
    assert {row["name"]: row["time_source"] for row in measured["choices"]} == {
        "softmax": "measured", "softmax:sdpa": "measured", "fnet": "measured", "linear_transformer": "measured",
        "based": "analytic",
    }  # fmt: skip
    assert {row["memory_source"] for row in measured["choices"]} == {"measured", "predicted"}
    assert names(measured["choices"])[-1] == "based", "whatever its roofline"
    between = document("--seq-len", "1500", *sequence, *operators)
    fnet = next(row for row in between["choices"] if row["name"] == "fnet")
    assert (fnet["time_source"], fnet["between"], fnet["memory_source"]) == (
        "interpolated",
        ["1024", "2048"],
        "predicted",
    )
    left, right = (
        next(row["time_s"] for row in document("--seq-len", n, *sequence, "--operators", "fnet")["choices"])
        for n in ("1024", "2048")
    )
    assert left < fnet["time_s"] < right
    assert fnet["time_low_s"] < fnet["time_s"] < fnet["time_high_s"]
    assert between["best"] == ["fnet"]


def test_beyond_a_run_nothing_is_extrapolated_silently(sequence: tuple[str, ...]) -> None:
    words = ("--seq-len", "4K", *sequence, "--operators", "softmax,fnet")
    found = document(*words)
    assert {row["time_source"] for row in found["choices"]} == {"analytic"}
    assert found["unlike"] == {"size": {"problem": "4096 tokens", "run": "128 tokens to 3072 tokens"}}
    text = invoke(*words)
    assert "Nothing of this is measured" in text
    assert "128 tokens to 3072 tokens, not 4096 tokens" in " ".join(text.split())
    batch = invoke("--seq-len", "1K", "--batch", "4", *sequence, "--operators", "fnet")
    assert "(batch: 1, not 4)" in " ".join(batch.split())


def test_params_that_are_given_are_kept_to(sequence: tuple[str, ...]) -> None:
    words = ("--seq-len", "1024", *sequence, "--operators", "linformer")
    assert [row["time_source"] for row in document(*words)["choices"]] == ["measured"]
    other = document(*words, "--param", "k=64")["choices"]
    assert [(row["name"], row["time_source"]) for row in other] == [("linformer k=64", "analytic")]
    both = document(*words, "--param", "k=256,64")["choices"]
    assert {row["name"]: row["time_source"] for row in both} == {
        "linformer k=256": "measured",
        "linformer k=64": "analytic",
    }
    same = document(*words, "--param", "k=256")["choices"]
    assert [(row["name"], row["time_source"]) for row in same] == [("linformer", "measured")]


def test_a_table_fits_80_columns_and_says_what_its_marks_are(sequence: tuple[str, ...]) -> None:
    text = invoke("--seq-len", "1500", *sequence, "--operators", "softmax,fnet,performer,based,local")
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("The fastest: fnet (≈1.03ms). Of exact softmax: softmax:sdpa (≈32.")
    table, notes = text.split("\n\n", 1)
    assert [line.strip() for line in table.splitlines() if line.strip().isalpha()][-2:] == ["interpolated", "analytic"]
    for mark in ("≈", "≥", "~"):
        assert mark in table
        assert mark in notes
    assert "!" in next(line for line in table.splitlines() if "performer" in line)
    assert "no nearer than the mean of v" in " ".join(notes.split())
    assert "inputs included (`show`: without inputs)" in " ".join(notes.split())


def test_what_a_roofline_leaves_possible_is_told(sequence: tuple[str, ...]) -> None:
    words = ("--seq-len", "1024", *sequence)
    assert "By that, none of them could be faster" in invoke(*words, "--operators", "fnet,based")
    assert "By that, based could be faster" in invoke(*words, "--operators", "softmax,based")


def test_csv_and_markdown_hold_the_same_rows() -> None:
    words = ("--seq-len", "1K", "--device", "A100", *FEW)
    rows = list(csv.DictReader(io.StringIO(invoke(*words, "--format", "csv"))))
    found = document(*words)
    assert names(rows) == names(found["choices"]) + names(found["out"])
    assert set(json.loads(rows[0]["properties"])) == set(PROPERTIES)
    text = invoke(*words, "--format", "markdown")
    assert all(name in text.replace("\\", "") for name in names(rows))
    assert "| operator |" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seq-len", "8", "--need", "al_pairs"), "'al_pairs' (did you mean 'all_pairs'?); allowed: exact"),
        (("--seq-len", "8", "--device", "H10O"), "no such card (did you mean 'H100'?)"),
        (("--seq-len", "8", "--device", "H100", *RECORDED), "Give one of them"),
        (
            (
                "--seq-len",
                "8,16",
            ),
            "2 problems",
        ),
        (("--seq-len", "8", "--dtype", "bf16,fp32"), "2 problems"),
        (("--seq-len", "8", "--channels", "100"), "100 is not divisible by heads 8"),
        ((), "--seq-len: missing"),
        (("--seq-len", "-1"), "one mistake"),
        (("--seq-len", "8", "--memory", "12"), "--memory '12'; allowed"),
        (("--seq-len", "8", "--device", "H100", "--memory", "81GiB"), "--memory 81GiB: H100 has 80.0GiB"),
        (("--seq-len", "8", "--operators", "softmx"), "did you mean 'softmax'"),
        (("--seq-len", "8", "--run", "nosuch"), "nosuch: no such folder"),
        (("--seq-len", "8", "--picture", "a.jpg"), "--picture a.jpg: allowed"),
        (("--seq-len", "8", "--metric", "wall_time"), "--metric wall_time: it is that of a run"),
        (("--seq-len", "8", *RECORDED, "--metric", "wal_time"), "did you mean 'wall_time'"),
        (("--seq-len", "8", "--train", "--mode", "infer"), "two modes"),
    ],
)
def test_bad_input_is_one_paragraph(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadInput) as error:
        invoke(*words)
    assert message in str(error.value)


def test_nothing_left_is_told_with_exit_code_3() -> None:
    words = ("--seq-len", "1K", "--device", "T4")
    text = invoke(*words, "--operators", "local", "--need", "all_pairs", code=3)
    assert "Nothing meets all" in text
    assert "out, lacks what is needed: local (no all_pairs)." in text
    assert "no rate of bfloat16 products of T4" in invoke(*words, "--dtype", "bf16", "--operators", "softmax", code=3)


def test_this_machine_is_measured_where_nothing_else_is_named() -> None:
    found = document("--seq-len", "64", "--operators", "softmax", "--device", "cpu")
    assert found["rates"]["origin"] == "measured on this machine now"
    assert found["choices"][0]["time_source"] == "analytic"


@pytest.mark.parametrize(("form", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture_is_written(sequence: tuple[str, ...], tmp_path: Path, form: str, start: bytes) -> None:
    path = tmp_path / f"choice.{form}"
    invoke("--seq-len", "1500", *sequence, "--operators", "softmax,fnet,based", "--picture", str(path))
    drawn = path.read_bytes()
    assert drawn.startswith(start)
    if form == "svg":
        assert all(
            name in drawn.decode() for name in ("softmax:sdpa", "fnet", "based", "no other is faster and leaner")
        )


OWN = """
from attnbench.operator import Complexity, Operator, Paper
from attnbench.operators.exact.softmax import CORE

OPERATOR = Operator(
    paper=Paper("Own", 2026, "Own", "https://example.org", "eq. 1"),
    forms={"core": CORE},
    complexity=lambda params: Complexity(time="n^2", memory="n^2"),
    data_dependent=lambda params: %s,
)
"""


def test_an_operator_of_ones_own_is_chosen_from_and_its_mistakes_are_told(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text(OWN % "True", encoding="utf-8")
    words = ("--seq-len", "64", "--device", "A100", "--operators", "mine,softmax", "--operators-from", str(own))
    assert "mine" in " ".join(names(document(*words)["choices"]))
    own = tmp_path / "broken.py"
    own.write_text(OWN % "1 / 0", encoding="utf-8")
    with pytest.raises(BadInput, match="ZeroDivisionError"):
        invoke("--seq-len", "64", "--device", "A100", "--operators", "broken", "--operators-from", str(own))


def stored(path: Path, properties: dict[str, Any] | None = None) -> tuple[str, ...]:
    """A run of an operator that is not installed, and of one that was skipped; and the words that ask for it."""
    made = folder(
        path,
        [
            *(each for n in (64, 128) for each in _visits(cell("gone", seq_len=n), 1e-3 * n)),
            visit(cell("local"), status="skipped", reason="too \x1b[31mred"),
        ],
    )
    environment: dict[str, Any] = {"torch": "2.13.0", "device": "cpu"}
    if properties is not None:
        environment["properties"] = {"gone {}": {"full": properties}}
    (made / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    return ("--channels", "32", "--heads", "4", "--run", str(made))


def _visits(of: Cell, seconds: float) -> list[Any]:
    return [visit(of), *(timed(of, round, seconds * (1 + 0.01 * round)) for round in (1, 2, 3))]


def test_a_run_of_an_operator_that_is_not_installed_and_without_rates(tmp_path: Path) -> None:
    found = document("--seq-len", "64", *stored(tmp_path / "old"))
    assert names(found["choices"]) == ["gone"]
    assert (found["choices"][0]["memory_bytes"], found["choices"][0]["flops"]) == (None, None)
    assert "no rates" in out(found)["softmax"]["reason"]
    text = invoke("--seq-len", "64", *stored(tmp_path / "again"))
    assert "\x1b" not in text
    assert "?: not known" in text


def test_needs_of_an_operator_that_is_not_installed_are_as_its_run_says(tmp_path: Path) -> None:
    words = ("--seq-len", "64", "--need", "all_pairs")
    has, has_not, unknown = (
        document(*words, *stored(tmp_path / name, properties), code=code)
        for name, properties, code in (("a", {"all_pairs": True}, 0), ("b", {"all_pairs": False}, 3), ("c", None, 3))
    )
    assert names(has["choices"]) == ["gone"]
    assert out(has_not)["gone"]["unmet"] == ["all_pairs"]
    assert out(unknown)["gone"]["reason"] == "not known"


def test_a_run_in_which_nothing_ran(tmp_path: Path) -> None:
    skipped = Cell("softmax", "reference", "core", "fwd", Problem(64, 32, 4), {"value_map": False})
    made = folder(tmp_path / "run", [visit(skipped, status="skipped", reason="too large")])
    words = ("--seq-len", "64", "--channels", "32", "--heads", "4", "--run", str(made), "--operators", "softmax")
    text = invoke(*words, code=3)
    assert "Nothing meets all" in text
    assert "out, did not run: softmax (too large)." in text
    empty = folder(tmp_path / "empty", [])
    assert "no time is known" in invoke(*words[:-3], str(empty), *words[-2:], code=3)
