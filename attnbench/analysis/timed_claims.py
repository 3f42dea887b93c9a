"""Claims of time: ratios within one stored run beside what a paper prints, and the rules that decide by the interval.

Every rule is a range that ours must lie in. An interval inside of it reproduces the number, one outside of it differs,
and one that crosses an end decides nothing. The intervals of a claim hold together with the confidence of one (Šidák).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace

from attnbench.analysis.claims import Claim, Interval, Number, Timed, Timing, Verdict
from attnbench.analysis.crossover import Pair, crossover
from attnbench.analysis.interval import Estimate, half_width

Value = Callable[[Mapping[str, float]], float]
"""By name the logs of times → what an expression of them is."""


NOT_MEASURED = "not measured"
"""Why there is no figure where there is no run."""


def limits(number: Number) -> tuple[float, float]:
    """The range that a number of time must lie in, in base units: its bound, its range, its tolerance; without any of
    these, the side of 1 that it is on, faster or slower as the paper says."""
    value = float(number.value)
    if number.at_least or number.at_most:
        return (value, math.inf) if number.at_least else (-math.inf, value)
    if number.up_to:
        return value, float(number.up_to) * float(number.scale)
    if number.factor is not None:
        return value / float(number.factor), value * float(number.factor)
    if number.points is not None:
        return value - float(number.points * number.scale), value + float(number.points * number.scale)
    return (1.0, math.inf) if value > 1 else (0.0, 1.0)


def decision(interval: Interval, number: Number) -> Verdict:
    """By the rule of a number: inside its range, outside of it, or across an end, which decides nothing."""
    least, most = limits(number)
    if least <= interval.low and interval.high <= most:
        return "reproduced"
    return "differs" if interval.high < least or interval.low > most else "not decided"


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """Of several: differs where one does, else not decided where one is not, or there is none."""
    every = set(verdicts)
    if "differs" in every:
        return "differs"
    return "reproduced" if every == {"reproduced"} else "not decided"


def is_decided_by_time(claim: Claim) -> bool:
    """Whether what is measured decides a claim, and is not an indication alone."""
    return claim.kind == "measured" and not claim.indication


def undecided(timed: Timed, claim: Claim) -> Timed:
    """A number of a claim that is not decided by it."""
    verdict = verdict_where_undecided(claim)
    exact = timed.exact and replace(timed.exact, verdict=verdict)
    return replace(timed, ours=replace(timed.ours, verdict=verdict), exact=exact)


def verdict_where_undecided(claim: Claim) -> Verdict:
    """Of a claim that no time decides."""
    return "not decided" if claim.kind == "measured" else "not testable here"


def verdict_of_timing(claim: Claim, timing: Timing) -> Verdict:
    """Of a claim of time."""
    if not is_decided_by_time(claim):
        return verdict_where_undecided(claim)
    return together([*(each.verdict for each in timing.numbers), *(each.verdict for each in timing.orders)])


_STEP = 1e-4
"""Of a log, by which slopes are taken."""


def interval(value: Value, levels: Mapping[str, Estimate], blocks: Mapping[str, Hashable], share: int) -> Interval:
    """An expression of times with its interval, in logs where it is positive.

    Its logs are taken as linear in those of the times, as they are in a product of powers. What a block has in common
    cancels where as much of it is multiplied as divided; what does not adds its own variance.

    Args:
        levels: of each cell in it.
        blocks: of each cell, the block that it was measured in.
        share: so many intervals hold together.
    """
    logs = {name: level.level for name, level in levels.items()}
    centre = value(logs)

    def curve(name: str, step: float) -> float:
        moved = value({**logs, name: logs[name] + step})
        return math.log(moved) if centre > 0 else moved

    slopes = {name: (curve(name, _STEP) - curve(name, -_STEP)) / (2 * _STEP) for name in logs}
    shared = {name: replace(each, confidence=each.confidence ** (1 / share)) for name, each in levels.items()}
    squares = [(slopes[name] * each.own_half_width) ** 2 for name, each in shared.items()]
    for block in set(blocks.values()):
        members = [name for name in logs if blocks[name] == block]
        left = sum(slopes[name] for name in members)
        if abs(left) > _STEP:
            common = (shared[name] for name in members)
            squares.append(max((left * _common_half_width(each)) ** 2 for each in common))
    half = math.sqrt(sum(squares))
    if centre > 0:
        return Interval(centre, centre * math.exp(-half), centre * math.exp(half))
    return Interval(centre, centre - half, centre + half)


def _common_half_width(level: Estimate) -> float:
    return half_width(level.confidence, (level.shared, level.shared_freedom))


def crossing(pairs: Sequence[Pair]) -> Interval:
    """The size from which on a series is cheaper, with its interval; where it always is, or never, all sizes below the
    smallest, or above the largest; where that is not told, or it is so more than once, all sizes."""
    found = crossover(pairs)
    sizes = [pair.size for pair in pairs]
    if found.kind == "always":
        return Interval(math.nan, 0.0, sizes[0])
    if found.kind == "never":
        return Interval(math.nan, sizes[-1], math.inf)
    if found.kind == "crossing" and len(found.crossings) == 1 and found.crossings[0].direction == "above":
        at = found.crossings[0]
        ends = (math.nan if end is None else end for end in (at.at, at.low, at.high))
        return Interval(*ends)
    return Interval(math.nan, 0.0, math.inf)
