"""Two functions compared: what is slower is found, what is the same is not blamed, what differs is refused."""

from __future__ import annotations

import copy
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import attnbench
from attnbench.analysis.compare.tier1_paired import LOOKS, Change
from attnbench.api.callables import CallablesComparison
from attnbench.measure import callables, paired_callables
from attnbench.measure.callables import Side, Turns, measure_pair, sides_of, try_out
from attnbench.measure.paired_callables import decide, two_sided
from tests.api.functions import (
    THREAD_S,
    a_fifth_slower,
    dies_elsewhere,
    fails_elsewhere,
    four_times_slower,
    is_killed_elsewhere,
    leaves_a_thread,
    new,
    old,
    process_id,
    sort_in_place,
)

compare = attnbench.compare_callables


def test_a_planted_slow_down_of_a_fifth_is_found_and_the_same_function_is_not_slower() -> None:
    slower = compare(old, a_fifth_slower, 3000)
    assert slower.verdict == "slower", slower
    assert slower.low is not None
    assert 1.1 < slower.ratio < 1.35
    assert compare(a_fifth_slower, old, 3000).verdict == "faster"
    same = compare(old, new, 3000, threshold="10%")
    assert same.verdict == "same", same
    assert (same.alpha, same.where, same.device) == (0.01, "this process", "cpu")
    assert str(same.outputs) == "outputs are equal"
    assert same.check() is same
    with pytest.raises(AssertionError, match=r"(?s)slower than max_slowdown=5% allows.*a_fifth_slower takes"):
        slower.check()
    assert slower.check("100%") is slower


def test_a_smaller_slow_down_than_was_looked_for_is_judged_by_the_same_pairs() -> None:
    change = Change(0.0, -0.02, 0.02, math.nan, math.nan)
    result = CallablesComparison(
        ("a", "b"), "same", 1.0, 0.98, 1.02, 0.05, 0.01, 0.05, (1.0, 1.0), 5, "this process", "cpu", None, 0.05, False,
        change,
    )  # fmt: skip
    assert result.check("3%") is result
    with pytest.raises(AssertionError, match="compare with a smaller one"):
        result.check("1%")
    assert result.check("1%", undecided="pass") is result
    with pytest.raises(attnbench.BadInput, match=r"undecided = 'psas' .*allowed: fail, pass"):
        result.check("1%", undecided="psas")  # type: ignore[arg-type]


def pairs(ratio: float, sd: float, seed: int = 0) -> Iterator[tuple[float, float]]:
    draw = np.random.default_rng(seed)
    while True:
        yield 1.0, ratio * math.exp(draw.normal(0, sd))


@pytest.mark.parametrize(("ratio", "verdict"), [(1.0, "same"), (1.2, "slower"), (0.8, "faster")])
def test_pairs_are_taken_until_it_is_decided(ratio: float, verdict: str) -> None:
    found = decide(pairs(ratio, 0.02), LOOKS, 0.05, math.inf)
    assert found.decided.verdict == verdict
    assert found.pairs in LOOKS[:3]
    assert found.fastest[1] == pytest.approx(ratio, rel=0.03)
    noisy = decide(pairs(1.0, 0.1), LOOKS, 0.05, math.inf)
    assert noisy.pairs > found.pairs


def test_where_the_time_is_over_first_nothing_is_decided() -> None:
    found = decide(pairs(1.5, 0.001), LOOKS, 0.05, time.monotonic() - 1)
    assert (found.decided.verdict, found.pairs, found.ended) == ("undecided", 1, True)
    late = iter([(1.0, 1.5)] * 7)
    found = decide(late, (7,), 0.05, math.inf)
    assert (found.decided.verdict, found.ended) == ("slower", False)


def test_what_is_surely_not_slower_is_the_same_only_where_it_is_not_much_faster() -> None:
    wide = Change(math.log(0.5), math.log(0.2), math.log(0.9), math.nan, math.nan)
    assert wide.verdict(0.05) == "same", "to a gate, which looks for slow-downs"
    assert two_sided(wide, 0.05) == "undecided"
    narrow = Change(math.log(0.99), math.log(0.97), math.log(1.01), math.nan, math.nan)
    assert two_sided(narrow, 0.05) == "same"
    assert two_sided(Change(math.log(0.9), math.log(0.89), math.log(0.91), math.nan, math.nan), 0.05) == "faster"
    assert two_sided(Change(math.log(1.1), math.log(1.09), math.log(1.11), math.nan, math.nan), 0.05) == "slower"


def test_errors_are_as_rare_as_is_promised() -> None:
    """α = 1 % and β = 5 %, either way."""
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.02, (300, LOOKS[-1]))

    def verdicts(change: float) -> Counter[str]:
        logs = noise + math.log1p(change)
        return Counter(
            decide(((1.0, math.exp(x)) for x in each), LOOKS, 0.05, math.inf).decided.verdict for each in logs
        )

    same, slower, faster = verdicts(0.0), verdicts(0.05), verdicts(1 / 1.05 - 1)
    assert same["slower"] + same["faster"] <= 6
    assert slower["slower"] >= 285
    assert faster["faster"] >= 285
    assert not slower["faster"] + faster["slower"]


def counted(side: Side, into: list[tuple[str, int]], name: str) -> None:
    sample = side.sample

    def noted(number: int, settle: Callable[[], object]) -> float:
        into.append((name, number))
        return sample(number, settle)

    side.sample = noted  # type: ignore[method-assign]


def test_both_take_as_many_samples_in_turns_of_random_order() -> None:
    sides = sides_of(old, lambda steps: old(4 * steps), 20)
    for side in sides:
        side.function(20)
    plan = try_out(sides, callables.nothing)
    assert sides[1].call_s > 2 * sides[0].call_s
    assert plan.samples == 8
    assert plan.turns == callables.MOST_TURNS
    taken: list[tuple[str, int]] = []
    counted(sides[0], taken, "a")
    counted(sides[1], taken, "b")
    seconds = measure_pair(sides, plan, callables.nothing, random.Random(0))
    assert [name for name, _ in taken].count("a") == [name for name, _ in taken].count("b") == 8 * plan.turns
    firsts = {taken[turn * 16][0] for turn in range(plan.turns)}
    assert firsts == {"a", "b"}
    assert dict(taken)["a"] > dict(taken)["b"] > 1, "batches of as long"
    assert seconds[1] > 2 * seconds[0]


def test_long_calls_take_fewer_turns() -> None:
    sides = sides_of(time.sleep, time.sleep, 0.3)
    plan = try_out(sides, callables.nothing)
    assert plan == Turns(1, 1, pytest.approx(0.6, rel=0.3))  # type: ignore[arg-type]


def test_a_device_that_torch_has_started_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(Tensor=type("Tensor", (), {})))
    waited = SimpleNamespace(is_started=lambda: True, synchronise=lambda: events.append("settled"))
    host = SimpleNamespace(is_started=lambda: False)
    monkeypatch.setattr(callables, "device_of", lambda name: waited if name == "cuda" else host)
    settle = callables.settle_of_started()
    side, _ = sides_of(lambda: events.append("called"), old, ())
    side.sample(2, settle)
    assert events == ["settled", "called", "called", "settled"]
    waited.is_started = lambda: False
    assert callables.settle_of_started() is callables.nothing


def test_inputs_are_arguments_or_one_argument_or_made_anew() -> None:
    def words(*positional: object, **named: object) -> tuple[object, ...]:
        return (*positional, *named.items())

    for inputs, expected in (
        ((1, 2), (1, 2)),
        ({"x": 1}, (("x", 1),)),
        ([1, 2], ([1, 2],)),
        (3, (3,)),
        (lambda: (4, 5), (4, 5)),
    ):
        side, _ = sides_of(words, words, inputs)
        assert next(side.calls(1))() == expected
    numbers = iter(range(100))
    side, _ = sides_of(words, words, lambda: next(numbers))
    assert [call() for call in side.calls(3)] == [(0,), (1,), (2,)]


def test_a_function_that_changes_its_inputs_needs_fresh_ones() -> None:
    with pytest.raises(attnbench.BadInput, match=r"sort_in_place changes its inputs.*lambda: \(data"):
        compare(sorted, sort_in_place, [3, 1, 2])
    draw = random.Random(0)
    result = compare(sorted, sort_in_place, lambda: ([draw.random() for _ in range(200)],), pairs=2)
    assert str(result.outputs) == "outputs are equal", "random, and the same for both"


def lazily(steps: int) -> Iterator[float]:
    yield old(steps)


async def later(steps: int) -> float:
    return old(steps)


@pytest.mark.parametrize(("function", "kind"), [(lazily, "generator"), (later, "coroutine")])
@pytest.mark.filterwarnings("ignore:coroutine 'later' was never awaited")
def test_a_call_that_does_not_do_its_work_is_not_timed(function: Callable[..., Any], kind: str) -> None:
    for check in (True, False):
        with pytest.raises(attnbench.BadInput, match=rf"{function.__name__} gives a {kind}, whose work .* not done"):
            compare(old, function, 3, check_outputs=check)


def test_a_function_that_is_never_the_same_is_told_from_one_that_is_another() -> None:
    draw = random.Random(0)

    def drawn(steps: int) -> float:
        return draw.random()

    for functions in ((drawn, drawn), (old, drawn), (drawn, old)):
        with pytest.raises(attnbench.BadInput, match=r"drawn.* gives something else at every call.*check_outputs=F"):
            compare(*functions, 3)
    assert compare(drawn, drawn, 3, check_outputs=False, pairs=2).outputs is None
    with pytest.raises(attnbench.BadInput, match="do not give the same"):
        compare(old, lambda steps: 0.5, 3)


def test_what_cannot_be_compared_is_told_and_not_called_random() -> None:
    within: list[Any] = []
    within.append(within)
    for output, reason in (
        (within, "RecursionError"),
        ([0.5, 10**400], "OverflowError"),
        (object(), "cannot be compared"),
    ):
        with pytest.raises(attnbench.BadInput, match=rf"do not give the same: .*{reason}"):
            compare(lambda given: copy.copy(given), lambda given: copy.deepcopy(given), (output,))


def test_a_function_that_changes_settings_of_torch_for_both_is_refused() -> None:
    import torch

    default = torch.get_default_dtype()

    def changing(steps: int) -> float:
        torch.set_default_dtype(torch.float64)
        return old(steps)

    def restoring(steps: int) -> float:
        result = changing(steps)
        torch.set_default_dtype(default)
        return result

    try:
        with pytest.raises(attnbench.BadInput, match=r"changing changes torch's default dtype \(from .*for both"):
            compare(old, changing, 3)
    finally:
        torch.set_default_dtype(default)
    assert compare(old, restoring, 3, pairs=2).pairs == 2


def test_what_differs_is_refused_until_that_is_allowed() -> None:
    with pytest.raises(attnbench.BadInput, match=r"old and .*<lambda> do not give the same.*check_outputs=False"):
        compare(old, lambda steps: old(steps) * (1 + 1e-6), 100)
    off = compare(old, lambda steps: old(steps) * (1 + 1e-6), 100, pairs=2, tolerance=1e-5)
    assert "allowed 1.0e-05, as given" in str(off)
    other = compare(old, lambda steps: "another", 100, pairs=2, check_outputs=False)
    assert other.outputs is None
    assert "not compared" in str(other)


def test_fresh_processes_give_a_pair_each() -> None:
    result = compare(old, four_times_slower, 3000, processes=3)
    assert (result.pairs, result.where) == (3, "3 fresh processes")
    assert 2 < result.ratio < 8  # three pairs on a machine that may be busy
    with pytest.raises(attnbench.BadInput, match="do not give the same"):
        compare(process_id, old, 3, processes=2)


@pytest.mark.parametrize(
    ("first", "inputs", "named"),
    [
        (lambda steps: 0, 1, r"cannot be given to another process: .*top of a module"),
        (fails_elsewhere, os.getpid(), "RuntimeError: not here"),
        (dies_elsewhere, os.getpid(), "exited with code 7; it last printed: last words"),
        (is_killed_elsewhere, os.getpid(), "was killed by SIGKILL; it printed nothing"),
    ],
    ids=["a lambda", "an error", "a death", "a signal"],
)
def test_what_another_process_cannot_do_is_told(first: Callable[..., Any], inputs: object, named: str) -> None:
    with pytest.raises(attnbench.BadInput, match=named):
        compare(first, first, inputs, processes=2)


def test_a_thread_that_a_function_leaves_does_not_hold_up_the_next_process() -> None:
    begun = time.monotonic()
    assert compare(leaves_a_thread, leaves_a_thread, os.getpid(), processes=2, budget="1s").pairs
    assert time.monotonic() - begun < THREAD_S


def test_a_function_of_the_main_module_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new, "__module__", "__main__")
    with pytest.raises(
        attnbench.BadInput, match="new cannot be imported in another process: it is defined in __main__"
    ):
        compare(old, new, 3, processes=2)


def test_a_fresh_process_imports_only_what_the_functions_need() -> None:
    before, _, _ = paired_callables.MAIN.partition("serve(sys")
    done = subprocess.run(
        [sys.executable, "-c", f"{before}print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not {"torch", "pandas", "numpy", "scipy"} & loaded
    assert "attnbench.measure.callables" in loaded


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"fn_b": 3}, "fn_b = 3; allowed: a function"),
        ({"threshold": "5"}, r"threshold = '5'; allowed: a percentage"),
        ({"threshold": 0}, "threshold = "),
        ({"threshold": True}, "threshold = true"),
        ({"budget": 10}, "budget = 10; allowed: a duration"),
        ({"processes": 1}, "processes = 1; allowed: a whole number from 2"),
        ({"pairs": 301}, "pairs = 301"),
        ({"pairs": 2, "processes": 2}, "Give one of the two"),
        ({"tolerance": -1.0}, "tolerance = -1.0"),
        ({"tolerance": "5%"}, "tolerance = '5%'; allowed: a number"),
    ],
)
def test_bad_input_is_told_before_anything_is_called(words: dict[str, Any], named: str) -> None:
    def never(steps: int) -> None:
        pytest.fail("it was called")

    with pytest.raises(attnbench.BadInput, match=named):
        compare(**{"fn_a": never, "fn_b": never, "inputs": 3, **words})


def test_what_a_function_raises_is_its_own() -> None:
    with pytest.raises(ZeroDivisionError):
        compare(lambda x: 1 / x, lambda x: 1 / x, 0)


@pytest.mark.parametrize("at", [1, 9])
def test_a_call_that_ends_the_program_does_not_end_a_guard_as_if_it_had_passed(at: int) -> None:
    calls: list[int] = []

    def leaving(steps: int) -> float:
        calls.append(steps)
        if len(calls) == at:
            sys.exit(0)
        return old(steps)

    with pytest.raises(
        attnbench.BadInput, match=r"leaving ends the program \(SystemExit: 0\), so that nothing is comp"
    ):
        compare(old, leaving, 3)


def test_a_notebook_shows_it_and_no_markup_of_a_name() -> None:
    def named(steps: int) -> float:
        return old(steps)

    named.__qualname__ = "<b>bold</b>"
    shown = compare(old, named, 100, pairs=2)._repr_html_()
    assert "&lt;b&gt;bold&lt;/b&gt; takes" in shown
    assert "<b>bold" not in shown
    assert "this process" in shown
    assert "α 1%" in shown


def test_numbers_of_torch_are_compared_and_timed() -> None:
    import torch

    q = torch.randn(1, 2, 64, 16, generator=torch.Generator().manual_seed(0))

    def eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax(q @ k.mT / 4, -1) @ v

    result = compare(eager, torch.nn.functional.scaled_dot_product_attention, (q, q, q), pairs=2)
    assert "twice the first one's own error" in str(result.outputs)
    with pytest.raises(attnbench.BadInput, match="do not give the same"):
        compare(eager, lambda q, k, v: torch.softmax(q @ k.mT / 4.001, -1) @ v, (q, q, q))
