"""Any two functions compared by the gate's test of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from attnbench.api import html
from attnbench.errors import BadInput, printable, refusing
from attnbench.outputs._run_tables import interval_text
from attnbench.units import choice, count, fraction, percent, quoted, seconds, shown, whole_number

if TYPE_CHECKING:
    from attnbench.analysis.compare.findings import Verdict
    from attnbench.analysis.compare.tier1_paired import Change
    from attnbench.measure.agreement import Agreement
    from attnbench.measure.paired_callables import Paired

HERE = "this process"
"""Where a comparison is made that starts no process."""


@dataclass(frozen=True, repr=False)
class CallablesComparison:
    """What the pairs say of the second function beside the first.

    Args:
        names: of both.
        verdict: "faster", "slower", "same" or "undecided": the second one's.
        ratio: of the second one's time to the first one's.
        low, high: its interval; None where there are too few pairs.
        threshold: the change that was to be found, a fraction.
        alpha: in how many comparisons, at most, a function is called slower that is not by half the threshold; the same
            of "faster". The error of the interval's lower end, over all looks. beta: of its upper end: in how many, at
            most, one that is slower by the threshold is called the same.
        seconds: of a call of each: its fastest sample of a pair, the geometric mean over the pairs.
        pairs: how many decided it.
        where: "this process", or in how many fresh ones.
        device: that was waited for: "cpu", or "cuda".
        outputs: how far they agree; None: they were not compared.
        detectable: the smallest slow-down that these pairs would have shown, a fraction; None: not known.
        ended: whether the budget was over before a verdict.
        change: the ratio in logs, as the test has it.
    """

    names: tuple[str, str]
    verdict: Verdict
    ratio: float
    low: float | None
    high: float | None
    threshold: float
    alpha: float
    beta: float
    seconds: tuple[float, float]
    pairs: int
    where: str
    device: str
    outputs: Agreement | None
    detectable: float | None
    ended: bool
    change: Change

    def check(
        self, max_slowdown: str | float | None = None, undecided: Literal["fail", "pass"] = "fail"
    ) -> CallablesComparison:
        """Returns itself where the second function is not slower.

        Args:
            max_slowdown: as `threshold`; None: that. A slow-down of it is found; one of less than half of it never
                fails.
            undecided: whether what cannot be told fails too.

        Raises: AssertionError, with the comparison in words; BadInput.
        """
        __tracebackhide__ = True
        failing = _read(choice(("fail", "pass")), undecided, "undecided") == "fail"
        limit = self.threshold if max_slowdown is None else read_share(max_slowdown, "max_slowdown")
        verdict = self.change.verdict(limit)
        if verdict == "slower":
            raise AssertionError(f"slower than max_slowdown={100 * limit:g}% allows\n{self}")
        if verdict == "undecided" and failing:
            todo = "Allow more time (budget), or pass what cannot be told: undecided='pass'."
            if limit < self.threshold:
                todo = f"It was decided for a threshold of {100 * self.threshold:g}%: compare with a smaller one."
            raise AssertionError(f"not decided for max_slowdown={100 * limit:g}%. {todo}\n{self}")
        return self

    @property
    def sentence(self) -> str:
        """The verdict."""
        first, second = self.names
        ratio = interval_text(self.ratio, self.low, self.high)
        return f"{second} takes {ratio} the time of {first}: {self.verdict}"

    @property
    def facts(self) -> dict[str, str]:
        """What else there is to know, by what it is about."""
        seen = "" if self.detectable is None else f"; {percent(self.detectable)} would have been seen"
        first, second = (shown(each, "s") for each in self.seconds)
        return {
            "threshold": f"{100 * self.threshold:g}%{seen}",
            "errors": f"α {self.alpha:.0%}, β {self.beta:.0%} over all looks",
            "measured": f"{count(self.pairs, 'pair')} in {self.where} ({self.device})"
            + ("; the budget was over before a verdict" if self.ended else ""),
            "a call": f"{first} and {second}",
            "outputs": "not compared" if self.outputs is None else str(self.outputs),
        }

    def __repr__(self) -> str:
        return f"<{self.sentence}>"

    def __str__(self) -> str:
        facts = self.facts
        return (
            f"{self.sentence}\n  {facts['measured']}; threshold {facts['threshold']}; {facts['errors']}"
            f"\n  a call: {facts['a call']}; {facts['outputs']}"
        )

    def _repr_html_(self) -> str:
        return f"<p><b>{html.text(self.sentence)}</b></p>{html.table(('', ''), self.facts.items())}"


def compare_callables(
    fn_a: Callable[..., object],
    fn_b: Callable[..., object],
    inputs: Any = (),
    *,
    threshold: str | float = "5%",
    processes: int | None = None,
    pairs: int | None = None,
    budget: str = "1m",
    check_outputs: bool = True,
    tolerance: float | None = None,
) -> CallablesComparison:
    """Whether `fn_b` is slower than `fn_a`, by the test of `attnbench gate`: pairs, until it can be told.

    First both are called once and their outputs compared. Then they take turns, warm, and pairs of their fastest
    samples are added until the interval of the ratio decides, with the looks fixed beforehand and α = 1 % over all of
    them. A GPU that torch has started is waited for.

    Args:
        fn_a, fn_b: any two functions; of torch or not.
        inputs: a tuple of arguments, a dict of arguments by name, or any other value as the only argument, the same
            for every call; what can be called itself, such as a module, stands in a tuple. For functions that change
            their inputs, a function that returns one of these: it is called before each call, outside of what is timed.
        threshold: the change that is to be found, such as "5%" or 0.05. "slower", "faster": by more than half of it
            for certain; "same": by less than it for certain, either way.
        processes: at most so many fresh processes, in each of which both are imported and give one pair; what
            they have to be for that: at the top of a module, with inputs that pickle can store. None: in this process,
            whose pairs have its luck in common: where things lie in memory, what is cached, how the allocator stands.
        pairs: at most so many, in this process; None: as many as the budget allows, up to 300.
        budget: time for the pairs, such as "30s"; what is undecided then stays so.
        check_outputs: False: they may differ.
        tolerance: by how much of its largest value an array may differ. None: with inputs in half or single precision
            by twice the error of `fn_a` itself, which is then also called in float64, and by 1e-3 (float32), 5e-2
            (float16), 1e-1 (bfloat16) at most; 1e-9 for float64.

    Returns: the verdict, the ratio with its interval, and how they were found.
    Raises: BadInput where the outputs differ, or something given cannot be used, such as a function that changes its
        inputs or torch's settings, gives something else at every call, or does nothing yet (`async def`, `yield`); what
        a function itself raises.
    """
    __tracebackhide__ = True
    from attnbench.measure.agreement import Different, Unfit
    from attnbench.measure.callables import device_in_use, sides_of
    from attnbench.measure.paired_callables import agree, apart, here

    for name, function in (("fn_a", fn_a), ("fn_b", fn_b)):
        if not callable(function):
            raise BadInput(f"{name} = {quoted(function)}; allowed: a function, or what can be called like one.")
    if processes is not None and pairs is not None:
        raise BadInput("processes and pairs: each process gives one pair. Give one of the two.")
    share, budget_s = read_share(threshold, "threshold"), _read(seconds, budget, "budget")
    most = None if pairs is None else _read(whole_number(2, 300), pairs, "pairs")
    fresh = None if processes is None else _read(whole_number(2, 300), processes, "processes")
    is_number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
    if tolerance is not None and not (is_number and 0 <= tolerance < 1):
        raise BadInput(
            f"tolerance = {quoted(tolerance)}; allowed: a number from 0 to below 1, a share of the largest value."
        )
    names, sides = _names(fn_a, fn_b), sides_of(fn_a, fn_b, inputs)
    try:
        outputs = agree(sides, check_outputs, tolerance)
        if fresh is None:
            paired, where = here(sides, share, budget_s, most), HERE
        else:
            paired = apart(sides, inputs, share, budget_s, fresh)
            where = f"{paired.pairs} fresh process{'' if paired.pairs == 1 else 'es'}"
    except Different as different:
        raise BadInput(
            f"{names[0]} and {names[1]} do not give the same: {different}. Where that is meant, allow it: tolerance=… "
            "(a share of the largest value), or check_outputs=False."
        ) from None
    except Unfit as unfit:
        raise BadInput(f"{names[unfit.place]} {unfit}") from None
    except SystemExit as ended:  # else a script that guards something would end here, maybe with 0
        raise BadInput(
            f"a call of {names[0]} or {names[1]} ends the program (SystemExit: {quoted(ended.code)}), so that nothing "
            "is compared. Give functions that return."
        ) from None
    return _compared(names, paired, share, where, device_in_use(), outputs)


def read_share(value: str | float, name: str) -> float:
    """A slow-down such as "5%" or 0.05, as a fraction. name: of the argument, for BadInput."""
    share = fraction(0.001, 10.0)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _read(share, f"{100 * value:.10f}%", name)
    return _read(share, value, name)


T = TypeVar("T")


def _read(read: Callable[[Any], T], value: object, name: str) -> T:
    with refusing(f"{name} = "):
        return read(value)


def _names(*functions: Callable[..., object]) -> tuple[str, str]:
    """What results call the two functions."""
    first, second = (
        printable(getattr(each, "__qualname__", type(each).__qualname__).rpartition("<locals>.")[2], 60)
        for each in functions
    )
    return (first, second) if first != second else (f"{first} (a)", f"{second} (b)")


def _compared(
    names: tuple[str, str], paired: Paired, share: float, where: str, device: str, outputs: Agreement | None
) -> CallablesComparison:
    from attnbench.analysis.compare.tier1_paired import ALPHA, BETA

    change, first, second = paired.decided.change, *paired.fastest
    known = math.isfinite(change.high)
    return CallablesComparison(
        names=names,
        verdict=paired.decided.verdict,
        ratio=math.exp(change.level) if known else second / first,
        low=math.exp(change.low) if known else None,
        high=math.exp(change.high) if known else None,
        threshold=share,
        alpha=ALPHA,
        beta=BETA,
        seconds=paired.fastest,
        pairs=paired.pairs,
        where=where,
        device=device,
        outputs=outputs,
        detectable=paired.decided.detectable if known else None,
        ended=paired.ended,
        change=change,
    )
