"""Every table at 60, 80 and 120 columns: no verdict, status, number or interval is cut, whatever stands beside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import attnbench
from attnbench.analysis.compare.findings import Comparison, Finding
from attnbench.analysis.summary import summarise
from attnbench.commands import list as listed
from attnbench.commands import roofline
from attnbench.measure import examination
from attnbench.measure.catalogue import catalogue
from attnbench.measure.machine.condition import Condition
from attnbench.outputs import _listings as listings
from attnbench.outputs import table
from attnbench.outputs._columns import lines
from attnbench.store.records import SUITE
from tests import stored
from tests.analysis.runs import laws

WIDTHS = (60, 80, 120)
REASON = (
    "the output differs from the definition by 0.31, beyond the bound 0.0021 (twice the reference's own error); first "
    "at [0, 3, 17, 2], in 812 of 4096 values, and " + "in every process that tried it again, " * 4 + "to the end"
)
NAME = "performer:cuda:flash_attn_3 fwd_bwd n131072 layer bfloat16 causal b4 h8 c512"
KEY = "sparse_transformer.cuda:flash_attn_3.layer.fwd_bwd.bfloat16.causal.b4.h8.c512.n131072.p5d1f9b2a"
FINDINGS = (
    Finding(KEY, NAME, "status", "ok", "wrong", "changed", True, reason=REASON),
    Finding(KEY, NAME, "wall_time", 1.23e-3, 1.5e-3, "slower", True, 1.2345, 1.1, 1.345, 0.05, 0.03, REASON),
    Finding(KEY, KEY, "peak_memory", 1.23e8, 1.5e8, "more", True, 1.2345, 1.2345, 1.2345, 0.0, 0.0, "exact"),
    Finding(KEY, NAME, "scaling of peak_memory", "n (N^1.00)", "undecided (N^1.87)", "more", True, reason=REASON),
    Finding(KEY, NAME, "wall_time", 1.2e-5, 1.3e-5, "undecided", False, 1.083, 0.98, 1.3, 0.05, 0.2, REASON),
)
LAWS = {
    "softmax": lambda n: 1e-6 * n**2,
    "performer:cuda:flash_attn_3": lambda n: 1e-4 * n,
    "local": lambda n: 1e-4 * n,
}


def compared(tmp_path: Path) -> list[str]:
    table.comparisons([Comparison("before", "after", FINDINGS, measured=5, gated=True)])
    return [
        "CHANGED", "SLOWER", "MORE", "undecided", "wrong", "1.23ms", "1.50ms", "117MiB", "143MiB", "+23.4%",
        "[+10.0%, +34.5%]", "[-2.0%, +30.0%]", "(N^1.00)", "(N^1.87)", "scaling", KEY, *REASON.split(),
    ]  # fmt: skip


def diagnosed(tmp_path: Path) -> list[str]:
    document = examination.document([Condition("transparent huge pages", "warning", REASON, REASON)], None)
    table.rows(listings.conditions(document))
    return ["warning", *REASON.split()]


def metrics(tmp_path: Path) -> list[str]:
    rows = catalogue("metrics")
    listed.command("metrics", form="table")
    return [word for row in rows for word in f"{row['name']} {row['column']} {row['meaning']}".split()]


def operators(tmp_path: Path) -> list[str]:
    listed.command("operators", ["softmax", "sparse_transformer"], form="table")
    return ["sparse_transformer", "n^1.5", "reference", "sdpa", "cuda:flash_attn"]


def rooflines(tmp_path: Path) -> list[str]:
    metrics = {"flops": 10**9, "reference_flops": 10**9, "bytes_required": 10**6, "bytes_moved": 10**6}
    what = stored.cell("softmax", "cuda:flash_attn_3", 1024)
    check, visit = stored.visit(what, metrics=metrics), stored.timed(what, 1, 0.0123)
    folder = stored.folder(tmp_path / "run", [check, visit])
    rates = '{"torch": "2.13.0", "rates": {"copy_bytes_per_s": 1e9, "matmul_flops_per_s": {"float32": 1e12}}}'
    (folder / "environment.json").write_text(rates)
    (folder / SUITE).write_text("name: made\n")
    roofline.command(folder, "table")
    return ["softmax:cuda:flash_attn_3", "1024", "12.3ms", "1.00ms", "12.3×", "matmul", "float32,"]


def shown(tmp_path: Path) -> list[str]:
    statuses = {("softmax", 4096): "oom", ("local", 256): "wrong"}
    run = laws((256, 512, 1024, 2048, 4096), LAWS, own=0.005, statuses=statuses)
    run.visits.loc[run.visits["status"] != "ok", "reason"] = REASON
    run.environment.update(stated={"local {}": {"time": "n log n", "memory": "n"}}, exact=["softmax {}"])
    table.write(summarise(run), Console())
    return ["oom", "wrong", "performer:cuda:flash_attn_3", "every", "size", *REASON.split()]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("prints", [compared, diagnosed, metrics, operators, rooflines, shown])
def test_nothing_is_cut_in_any_table(
    prints: Callable[[Path], list[str]],
    width: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    whole = prints(tmp_path)
    printed = capsys.readouterr().out.splitlines()
    for word in whole:
        assert any(re.search(rf"(^|[ ↓]){re.escape(word)}($|[ *])", line) for line in printed), (word, printed)
    for line in printed:
        assert "…" not in re.sub(r"\[[^]]*\]", "", line)
        assert len(line) <= width or max(map(len, line.split())) > width / 2, line


@pytest.mark.parametrize("width", WIDTHS)
def test_a_reason_stands_on_lines_of_its_own(width: int) -> None:
    rows = [["CHANGED", NAME, REASON], ["same", NAME, ""]]
    found = [
        [piece for piece in line if piece.text.strip()]
        for line in lines(["verdict", "what", "reason"], rows, width, (), [2])
    ]
    own = [line for line in found if any(piece.column == 2 for piece in line)]
    assert all(len(line) == 1 for line in own)
    assert " ".join(piece.text for line in own for piece in line) == REASON
    assert {piece.text for line in found for piece in line if piece.column == 0} - {"verdict"} == {"CHANGED", "same"}


def test_every_table_is_set_by_the_one_that_cuts_nothing() -> None:
    """A table of rich's own gives way in any column, down to one letter; the line of a progress bar has room."""
    sources = Path(attnbench.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if "rich.table" in path.read_text(encoding="utf-8")] == ["_progress.py"]


def test_a_long_name_is_broken_after_a_comma_before_a_table_becomes_paragraphs() -> None:
    """The negative control: a name with no place to break."""
    figures = ["1024", "12", "668µs", "667µs", "1.2%", "▁▂▃▄▅▆▇█"]
    head = ["seq_len", "size", "runs", "first", "newest", "varies", "trail"]
    broken, whole = (
        ["".join(piece.text for piece in line) for line in lines(head, [[name, *figures]], 80)]
        for name in (
            "sparse_transformer heads=split,kind=strided,stride=sqrt(n)",
            "sparse_transformer_heads=split_kind=strided_stride=sqrt(n)",
        )
    )
    assert max(map(len, [*broken, *whole])) <= 80
    assert broken[0].split() == head
    assert [line.split() for line in broken[2:]] == [
        ["sparse_transformer", "heads=split,", *figures], ["kind=strided,stride=sqrt(n)"]
    ]  # fmt: skip
    assert whole[0].startswith("sparse_transformer_heads=split_kind=strided_stride=sqrt(n)  size 1024")
