from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.errors import BadInput
from attnbench.plan.suite import shipped
from attnbench.properties import PROPERTIES
from attnbench.registry import operators, scan


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["list", *words])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_operators_have_everything_in_json() -> None:
    rows = {row["name"]: row for row in json.loads(run("operators", "--format", "json"))}
    assert list(rows) == list(operators())
    softmax, linformer = rows["softmax"], rows["linformer"]
    assert (softmax["family"], softmax["time"], softmax["memory"], softmax["exact"]) == ("exact", "n^2", "n^2", True)
    assert softmax["causal"] is True
    assert linformer["causal"].startswith("shortening mixes")
    assert linformer["params"]["k"] == {
        "default": 256, "allowed": "a whole number ≥ 1", "meaning": "length of the shortened keys and values",
    }  # fmt: skip
    assert linformer["paper"]["year"] == 2020
    assert softmax["impls"]["core"]["sdpa"] is None
    relu = rows["performer"]["kinds"]["relu"]
    assert relu.keys() == {"time", "memory", "pairs", "properties"}
    assert (relu["time"], relu["memory"], relu["pairs"]) == ("n", "n", {"full": "all", "causal": "all"})
    assert [kind["properties"]["full"]["drop_in"] for kind in rows["performer"]["kinds"].values()] == [True, False]
    assert rows["softmax"]["properties"] == {form: dict.fromkeys(PROPERTIES, True) for form in ("full", "causal")}
    assert rows["longformer"]["properties"].keys() == {"full"}
    assert rows["longformer"]["state"] is None
    assert rows["compressed"]["pairs"] == {"full": "all", "causal": "fixed"}
    assert rows["gla"]["pairs"] == {"causal": "all"}
    states = {name: row["state"] for name, row in rows.items()}
    assert states["softmax"] == "n"
    assert states["local"] == states["linear_transformer"] == "1"
    assert states["sparse_transformer"] == "n^0.5"
    assert states["linformer"] is states["lambda_layer"] is None


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="needs a machine without a GPU")
def test_an_impl_that_cannot_run_here_has_its_reason() -> None:
    rows = json.loads(run("operators", "--format", "json"))
    reasons = [r for row in rows for impls in row["impls"].values() for impl, r in impls.items() if "cuda" in impl]
    assert reasons.count(None) == 0
    table = run("operators")
    assert not reasons or "cannot run here" in table


def test_what_an_operator_lacks_is_in_the_table() -> None:
    lines = run("operators").splitlines()

    def line_of(name: str, below: int = 0) -> str:
        return lines[next(i for i, line in enumerate(lines) if line.startswith(f"  {name} ")) + below]

    assert line_of("local", below=1).strip() == "lacks all_pairs"
    assert line_of("softmax").endswith("both")
    assert line_of("linformer").split()[:2] == ["linformer", "2020"]
    assert line_of("linformer", below=1).strip() == "lacks any_length"
    assert line_of("compressed", below=1).strip() == "causal form: not all_pairs"
    assert (
        line_of("longformer", below=1).strip()
        == "lacks all_pairs; kinds: window, mixed_heads; causal form: with other params"
    )
    assert "content, global (n^2, not any_length), conv" in line_of("lambda_layer", below=1)
    notes = " ".join(" ".join(lines).split())
    assert "exact: softmax. drop_in, not exact: performer, nystromformer, moba, " in notes
    assert "see what contents have chosen: reformer, dsa, moba." in notes


def test_properties_are_listed_each_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert [row["name"] for row in json.loads(run("properties", "--format", "json"))] == list(PROPERTIES)
    assert len(run("properties").strip().splitlines()) == 2 + 2 * len(PROPERTIES)


def test_suites_and_metrics_are_listed() -> None:
    assert [row["name"] for row in json.loads(run("suites", "--format", "json"))] == list(shipped())
    assert [row["name"] for row in json.loads(run("metrics", "--format", "json"))] == scan("attnbench.measure.metrics")


def test_names_narrow_the_list_and_unknown_ones_are_told() -> None:
    rows = list(csv.DictReader(io.StringIO(run("operators", "local", "softmax", "--format", "csv"))))
    assert [row["name"] for row in rows] == ["local", "softmax"]
    assert json.loads(rows[0]["domains"]) == ["sequence", "image"]
    table, notes = run("operators", "softmax", "--format", "markdown").split("\n\n")
    assert (table.count("\n"), notes[:2]) == (3, "- ")  # heading, its line, family, operator
    with pytest.raises(BadInput, match="did you mean 'softmax'"):
        run("operators", "softmx")


def test_the_table_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for what in ("operators", "suites", "metrics", "properties"):
        table = run(what)
        assert max(map(len, table.splitlines())) <= 80
    assert "softmax" in run("operators")


@pytest.mark.parametrize(
    ("words", "needed"),
    [("list operators", ["torch"]), ("estimate softmax --seq-len 64", ["torch", "pandas", "sympy"])],
)
def test_of_the_libraries_that_take_long_it_imports_what_it_needs(words: str, needed: list[str]) -> None:
    """Sympy by torch's gradients. Predicted memory needs no compiler of torch's."""
    slow = ("torch", "pandas", "sympy", "scipy", "matplotlib", "triton", "torch._dynamo", "torch._inductor")
    code = (
        "import atexit, sys\n"
        f"libraries = {slow}\n"
        "atexit.register(lambda: print([name for name in libraries if name in sys.modules], file=sys.stderr))\n"
        f"sys.argv = ['attnbench', *{words.split()}]\n"
        "from attnbench.__main__ import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, f"{needed}\n")


def test_an_operator_without_a_kernel_says_why() -> None:
    table = " ".join(run("operators", "fnet", "efficient").split())
    assert "fnet has no impl cuda" in table
    assert "cuFFT" in table
    assert "efficient has no impl cuda" not in table
    identity = " ".join(run("operators", "identity").split())
    assert "identity has no impl cuda: it computes nothing" in identity
    assert "logarithmic" not in identity


def test_every_operator_has_a_kernel_or_a_reason_and_not_both() -> None:
    for source in operators().values():
        operator = source.load()
        has_kernel = any(impl.startswith("cuda") for form in operator.forms.values() for impl in form.impls)
        assert has_kernel is not bool(operator.no_kernel), source.location
