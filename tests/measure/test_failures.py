"""One injected failure of each kind: each is its own visit's status and reason, and the run goes on."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from pandas import Series

from attnbench.analysis.baseline import fate
from attnbench.analysis.run import Run, read_run
from attnbench.analysis.series import panels
from attnbench.errors import BadInput
from attnbench.measure.device import device_of
from attnbench.measure.protocol import VisitAnswer
from attnbench.measure.worker.failures import at_size, guarded
from attnbench.measure.worker.prepared_cell import Misfit, Wrong
from attnbench.plan.settings import Limits
from attnbench.problem import Problem
from tests.running import faulty, made_once, measured, plan

EXPECTED = {
    "honest": ("ok", ""),
    "prints": ("ok", ""),
    "caches": ("wrong", "differs from the float64 reference"),
    # found by inputs changed in place, or already before where the allocator gave different inputs one address
    "caches_by_place": ("wrong", "the output differs from the float64 reference"),
    "decays": ("wrong", "round 1: "),  # what exactly is wrong with either of its sizes is tested below
    "off_by_one": ("wrong", "the output differs"),
    "nan": ("wrong", "NaN or infinite"),
    "infinite": ("wrong", "NaN or infinite"),
    "other_shape": ("wrong", "the reference gives"),
    "raises": ("error", "RuntimeError: it cannot (faulty.py, line"),
    "raises_surrogate": ("error", r"RuntimeError: a lone \ud800, an escape \u001b[31m, a turn \u202e (faulty.py"),
    "raises_unspeakable": ("error", "Unspeakable: a Unspeakable that cannot be printed (ValueError) (faulty.py"),
    "raises_textless": ("error", "Textless: a Textless that cannot be printed (TypeError) (faulty.py"),
    "raises_enormous": ("error", "RuntimeError: long long "),
    "raises_own_base": ("error", "OwnBase: own (faulty.py"),
    "raises_system_exit": ("error", "SystemExit: 3 (faulty.py"),
    "raises_generator_exit": ("error", "GeneratorExit (faulty.py"),
    "raises_keyboard_interrupt": ("error", "KeyboardInterrupt (faulty.py"),
    "recurses": ("error", "RecursionError: maximum recursion depth"),
    "names_badly": ("ok", ""),
    "names_a_number": ("ok", ""),
    "denies_badly": ("skipped", r"not \ud800 here"),
    "denies_with_a_number": ("error", "TypeError: why_not of denies_with_a_number returns 3; allowed: a sentence"),
    "takes_memory": ("oom", "out of memory"),
    "takes_gpu_memory": ("oom", "out of GPU memory"),
    "needs_memory": ("skipped", "MiB over the limit"),
    "exits": ("crashed", "exited with code 3"),
    "segfault": ("crashed", "SIGSEGV"),
    "sigkill": ("crashed", "SIGKILL"),
    "rubbish": ("crashed", "no answer"),
    "speaks_of_memory": ("error", "out of memory"),
    "lacks_shared_memory": ("skipped", "needs more shared memory"),
    "absent": ("skipped", "has no impl absent"),
}


def raised(error: Exception, *, small: bool) -> str:
    """The reason of a check in which this is raised. small: at the size where impls are checked first."""

    def ask() -> VisitAnswer:
        with at_size(Problem(63, 8)) if small else nullcontext():
            raise error

    return guarded(VisitAnswer, device_of("cpu"), ask).reason


@pytest.mark.parametrize("kind", [Wrong, Misfit, BadInput, MemoryError, RuntimeError])
def test_every_reason_names_the_size_where_it_is_not_the_cells(kind: type[Exception]) -> None:
    assert raised(kind("no"), small=True).endswith("; at 63 tokens, where impls are checked first")
    assert "tokens" not in raised(kind("no"), small=False)
    assert (raised(kind("no"), small=False) == "no") == (kind in (Wrong, Misfit, BadInput))


FIRST, LAST = 32, 200
"""The sizes that impls of EXPECTED have, a few others too. LAST: the one that ends the worker which forecasts as well;
after it nothing is foreseen any more, so that none is started in its place."""


def size_of(impl: str) -> int:
    return LAST if impl == "exits" else FIRST


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    cells = [faulty(impl, size_of(impl)) for impl in EXPECTED]
    cells += [faulty(impl, n, from_n=64) for impl in ("oom_from", "reference") for n in (128, 32, 64)]
    cells += [faulty(impl, 64) for impl in ("absent", "honest")]
    cells += [faulty("decays", 48), faulty("hangs", 32), faulty("hangs", 64)]
    limits = Limits(cell_timeout_s=20.0)
    folder = made_once(
        tmp_path_factory, "failures", lambda made: measured(made / "run", plan(cells, limits=limits), forecast=True)
    )
    return read_run(folder / "run")


def row(run: Run, impl: str, seq_len: int | None = None) -> Series:
    seq_len = seq_len or size_of(impl)
    (row,) = (row for _, row in run.results.iterrows() if (row["impl"], row["seq_len"]) == (impl, seq_len))
    return row


@pytest.mark.parametrize("impl", EXPECTED)
def test_each_failure_is_its_own_status_and_reason(run: Run, impl: str) -> None:
    status, reason = EXPECTED[impl]
    result = row(run, impl)
    assert (result["status"], reason in result["reason"]) == (status, True), result["reason"]


CAUSES = {
    "nan": "wrong",
    "raises": "raised",
    "takes_memory": "oom",
    "takes_gpu_memory": "oom",
    "needs_memory": "predicted_memory",
    "exits": "crashed",
    "rubbish": "crashed",
    "absent": "unsupported",
    "speaks_of_memory": "raised",
    "lacks_shared_memory": "unsupported",
}


@pytest.mark.parametrize("impl", EXPECTED)
def test_the_cause_is_stored_beside_the_reason(run: Run, impl: str) -> None:
    cause = row(run, impl)["cause"]
    assert (cause == "") == (EXPECTED[impl][0] == "ok")
    assert cause == CAUSES.get(impl, cause)


def test_words_in_a_reason_are_no_cause(run: Run) -> None:
    """A sentence that speaks of memory is no sign that memory ran out: nobody wins against it."""
    compared = panels(run.results[run.results["impl"].isin(["lacks_shared_memory", "needs_memory"])])
    ends = {series.impl: list(fate(series.points).values()) for panel in compared for series in panel.series}
    assert ends == {"lacks_shared_memory": ["skipped"], "needs_memory": ["oom"]}


@pytest.mark.parametrize("impl", EXPECTED)
def test_only_what_is_right_has_a_time(run: Run, impl: str) -> None:
    assert (row(run, impl)["wall_time_s"] > 0) == (EXPECTED[impl][0] == "ok")


def test_what_operators_say_is_bounded_and_printable_where_it_is_stored(run: Run) -> None:
    texts = [*run.visits["reason"], *run.visits["kernel"], *(w for ws in run.visits["warnings"] for w in ws)]
    assert all(text.isprintable() and len(text) < 2500 for text in texts)
    assert row(run, "names_badly")["kernel"].startswith(r"\ud800\u001b[2J")
    assert row(run, "names_a_number")["kernel"] == "3"


def test_a_crash_is_followed_by_a_fresh_worker_in_the_same_round(run: Run) -> None:
    checks = run.visits[(run.visits["round"] == 0) & (run.visits["seq_len"] == FIRST)]
    processes = checks.drop_duplicates("impl").set_index("impl")["process"]
    assert processes["sigkill"] != processes["segfault"]
    assert processes["honest"] == processes["off_by_one"]


def test_what_a_library_prints_is_no_answer(run: Run) -> None:
    assert row(run, "prints")["status"] == "ok"


def test_a_hang_in_native_code_ends_at_the_limit(run: Run) -> None:
    hung, larger = row(run, "hangs"), row(run, "hangs", 64)
    assert (hung["status"], hung["cause"]) == ("timeout", "timeout")
    assert "no answer within 20 s" in hung["reason"]
    assert (larger["status"], larger["cause"]) == ("skipped", "beyond_timeout")
    assert "ran out of time" in larger["reason"]
    assert row(run, "honest", 64)["status"] == "ok"


def test_after_an_out_of_memory_the_larger_sizes_of_the_series_alone_are_skipped(run: Run) -> None:
    sizes = (32, 64, 128)
    assert [row(run, "oom_from", n)["status"] for n in sizes] == ["ok", "oom", "skipped"]
    assert "beyond n64" in row(run, "oom_from", 128)["reason"]
    assert [row(run, "oom_from", n)["cause"] for n in sizes] == ["", "oom", "beyond_oom"]
    assert all(row(run, "reference", n)["status"] == "ok" for n in sizes)
    assert not row(run, "reference", 128)["reason"]


def test_what_cannot_run_at_any_size_is_one_row(run: Run) -> None:
    impls = run.results["impl"]
    assert list(run.results[impls == "absent"]["seq_len"]) == [32]
    assert len(run.results[impls == "honest"]) == 2


def test_what_decayed_before_its_visit_began_is_wrong_as_well(run: Run) -> None:
    decayed = run.results[run.results["impl"] == "decays"]
    assert list(decayed["status"]) == ["wrong", "wrong"]
    assert sum("its answer is not the one that was checked" in reason for reason in decayed["reason"]) == 1
    assert decayed["wall_time_s"].isna().all()
