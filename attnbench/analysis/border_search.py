"""The search for a border: where a series passes its baseline on one axis, at each of several values of a second one.

One search for each value. The first, of the middle value, goes up from the smallest size as a search alone does. The
others follow from there outward, and each begins just below the place where the crossings so far let its own be
expected: on a straight line in log-log, near values weighing most. From the ratio measured there, and how fast it
changes with the size, it takes the second size, such that both lie as far apart as the precision allows, with the
crossing in the middle between them.

That the border is smooth is a guess of where to look, no more. A crossing counts where measured sizes on both sides
show it. Where they do not, the search goes outward in growing steps up to the end of the range; where even that lies on
the same side, one call is made at the other end: if the two ends differ, the crossing is searched between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from attnbench.analysis.crossover import Pair
from attnbench.analysis.crossover_search import (
    LEAST_ROUNDS,
    MOST_SIZES,
    STEP,
    Search,
    centre,
    half_width,
    repeat,
    side,
)
from attnbench.analysis.interval import ratio_half_width

INSIDE = 0.75
"""Up to which share of a bracket, in logs, its crossing may be expected: at an end the ratio is hardly told from 1."""

LIKELY = 0.8
"""The share of half an interval that the log ratio must be away from 0 for further rounds to be likely to tell it."""

FLATTEST = 0.1
"""The least slope of the log ratio over the log size by which a distance is reckoned."""


@dataclass(frozen=True)
class Border:
    """The searches of one series.

    Args:
        searches: by position on the second axis, in the order in which they begin.
    """

    searches: Mapping[int, Search]

    def navigate(self) -> None:
        """The first round of every search."""
        for value, each in self.searches.items():
            place = self.expected(value)
            if place is None:
                each.navigate()
            else:
                follow(each, place, self.slope())

    def expected(self, value: int) -> float | None:
        """Where the crossing of a value is expected; None where nothing is known of another value."""
        slope = self.slope()
        places = {other: _place(each, slope) for other, each in self.searches.items() if other != value}
        known = {math.log(other): math.log(place) for other, place in places.items() if place is not None}
        if not known:
            return None
        x, y = np.array(list(known)) - math.log(value), np.array(list(known.values()))
        weight = 1 / np.abs(x) ** 3
        x_mean, y_mean = np.average(x, weights=weight), np.average(y, weights=weight)
        tilt = float(weight @ ((x - x_mean) * (y - y_mean)) / (weight @ (x - x_mean) ** 2)) if len(known) > 1 else 0.0
        return math.exp(y_mean - tilt * x_mean)

    def slope(self) -> float:
        """How fast the log ratio changes with the log size near the crossings, all searches together."""
        products = squares = 0.0
        for each in self.searches.values():
            crossing = each.crossing() if each.rounds else None
            if crossing is not None:
                near = [p for p in _finite(each) if abs(math.log(p.size / centre(crossing))) <= math.log(STEP)]
                x = np.log([p.size for p in near])
                products += float((x - x.mean()) @ [side(p) for p in near]) if near else 0.0
                squares += float((x - x.mean()) @ (x - x.mean())) if near else 0.0
        slope = products / squares if squares else -1.0
        return math.copysign(max(abs(slope), FLATTEST), slope)


def search_borders(borders: Sequence[Border], next_round: Callable[[int], None]) -> None:
    """Runs all searches of borders together, as `crossover_search.search` does."""
    next_round(1)
    for border in borders:
        border.navigate()
    owners = {id(each): border for border in borders for each in border.searches.values()}

    def again(active: Sequence[Search], round: int) -> None:
        sizes = [missing(each, owners[id(each)].slope()) if round > LEAST_ROUNDS else None for each in active]
        for each, size in zip(active, sizes, strict=True):
            each.rounds = round
            if size is not None and size not in each.sizes and len(each.sizes) < MOST_SIZES:
                each.visit(size)
                each.repeat_around(size)
            for repeated in each.around:
                each.prober.measure(each.series, repeated, round)

    repeat([each for border in borders for each in border.searches.values()], next_round, again)


def from_the_middle(values: Sequence[int]) -> list[int]:
    """Values in the order in which their searches begin: the middle one, then its neighbours outward."""
    ordered = sorted(values)
    middle = (len(ordered) - 1) // 2
    return sorted(ordered, key=lambda value: (abs(ordered.index(value) - middle), value))


def follow(each: Search, place: float, slope: float) -> None:
    """The first round of a search that follows others.

    Args:
        each: the search.
        place: where its crossing is expected.
        slope: how fast the log ratio is expected to change with the log size.
    """
    each.rounds = 1
    size: int | None = _within(each, place / each.width**0.5)
    while size is not None and size not in each.sizes and len(each.sizes) < MOST_SIZES:
        each.visit(size)
        bracket = _bracket(each, place)
        size = _outward(each, place, slope) if bracket is None else _inward(each, *bracket)
    bracket = _bracket(each, place)
    each.repeat_around(math.sqrt(bracket[0] * bracket[1]) if bracket else each.end or each.sizes[-1])


def missing(each: Search, slope: float) -> int | None:
    """The size without which the rounds that are left will not locate the crossing; None where these suffice."""
    near = each.crossing()
    if near is not None:
        if not each.precision < half_width(near) < math.inf:
            return None
        middle = math.sqrt((near.low or 1) * (near.high or 1))
        below = max((size for size in each.sizes if size <= middle), default=each.low)
        above = min((size for size in each.sizes if size > middle), default=each.high)
        return each.allowed(middle) if above > below * each.width else None
    pairs = [p for p in _finite(each) if p.size in each.around]
    gaps = np.array([side(p) for p in pairs])
    halves = np.array([_half_at_the_end(p, each) for p in pairs])
    if not np.isfinite(halves).any():
        return None
    signs = {*np.sign(gaps[~(np.abs(gaps) <= LIKELY * halves)])}
    signs |= {math.copysign(1, gap) for gap in each.gaps.values() if math.isinf(gap)}
    place = float(np.mean(np.log([p.size for p in pairs])) - np.mean(gaps) / slope)
    reach = max(math.log(each.width) / 2, 1.2 * float(np.nanmax(halves)) / abs(slope))
    for up, end in ((False, min(each.around)), (True, max(each.around))):
        if math.copysign(1, slope if up else -slope) not in signs and (end < each.high if up else end > each.low):
            sizes = each.allowed(math.exp(place + (reach if up else -reach))), _farthest(each, end, up)
            return _within(each, max(sizes) if up else min(sizes))
    return None


def _half_at_the_end(pair: Pair, each: Search) -> float:
    """Half the interval of the log ratio after the rounds that are left."""
    series, baseline = pair.levels
    rounds = series.rounds
    left = each.most_rounds - each.rounds
    return ratio_half_width(series, baseline, together=len(each.sizes)) * math.sqrt(rounds / (rounds + left))


def _outward(each: Search, place: float, slope: float) -> int | None:
    """The next size where all so far lie on one side; None at the end of the range."""
    gaps = each.gaps
    if not gaps:
        if each.sizes[0] > each.low:
            return _within(each, each.sizes[0] / STEP)
        each.ended = "not comparable at the smallest size"
        return None
    up = (min(gaps.values()) < 0) == (slope > 0)
    last = max(gaps) if up else min(gaps)
    if last == (each.high if up else each.low):
        return _other_end(each, last)
    width, distance = math.log(each.width), abs(gaps[last] / slope)
    expected = math.log(place / last) * (1 if up else -1)
    if 0 < expected < width and abs(distance - expected) < width:
        distance = (distance + expected) / 2
    step = max(width if distance <= INSIDE * width else distance + width / 2, width * 2 ** (len(gaps) - 1))
    step = min(step, math.log(STEP**2))
    size = _within(each, last * math.exp(step if up else -step))
    size = _farthest(each, last, up) if step == width or size == last else size
    beyond = min((size for size in each.sizes if size > last), default=math.inf)
    if size < beyond:
        return size
    if beyond > last * 2:
        return _within(each, math.sqrt(last * beyond))
    each.ended = f"no crossing up to {each.place(last)}; at {each.place(beyond)} it cannot be called"
    return None


def _other_end(each: Search, end: int) -> int | None:
    """The other end of the range, if one call there lies on the other side of 1 than all so far; else None."""
    other = each.low if end == each.high else each.high
    gap = each.gaps.get(end)
    each.beyond = each.prober.once(each.series, other)
    across = side(each.beyond)
    if gap is not None and across is not None and (gap < 0) != (across < 0):
        return other
    each.end = end
    return None


def _inward(each: Search, a: int, b: int) -> int | None:
    """The next size between two that the crossing lies between; None where they are as close as the precision asks.

    Where the crossing is expected near one of them, so that it lies in the middle between that one and the next; else
    halfway.
    """
    width, span = math.log(each.width), math.log(b / a)
    if span <= width + 1e-9:
        return None
    inside = span * each.share(a, b)
    if inside <= INSIDE * width:
        size = _farthest(each, a, up=True)
    elif span - inside <= INSIDE * width:
        size = _farthest(each, b, up=False)
    else:
        size = each.allowed(math.sqrt(a * b))
    return size if a < size < b else None


def _farthest(each: Search, size: int, up: bool) -> int:
    """The farthest size that is as close to another as the precision asks; the nearest one where none is."""
    factors = [each.width ** (share / 8) for share in (8, 7, 6, 5, 4)] + [each.width ** (2**n) for n in range(6)]
    others = [_within(each, size * factor if up else size / factor) for factor in factors]
    close = (other for other in others[:5] if other != size and max(size, other) / min(size, other) <= each.width)
    return next(close, next((other for other in others[5:] if other != size), size))


def _within(each: Search, place: float) -> int:
    """The allowed size nearest to a place within the range."""
    return min(max(each.allowed(place), each.low), each.high)


def _bracket(each: Search, place: float) -> tuple[int, int] | None:
    """The two neighbouring sizes on different sides of 1 that lie nearest to a place."""
    changes = [(a, b) for (a, before), (b, after) in pairwise(each.gaps.items()) if (before < 0) != (after < 0)]
    return min(changes, key=lambda ends: abs(math.log(ends[0] * ends[1] / place**2)), default=None)


def _finite(each: Search) -> list[Pair]:
    """The sizes at which both have a level."""
    return [p for p in each.prober.pairs(each.series) if p.series and p.baseline]


def _place(each: Search, slope: float) -> float | None:
    """Where a search has its crossing; beyond an end of its range where it has none; None where nothing is known."""
    if not each.sizes:
        return None
    crossing = each.crossing()
    if crossing is not None:
        return centre(crossing)
    gaps = [*each.gaps.values()]
    if not gaps:
        return None
    return each.high * each.width if (gaps[-1] < 0) == (slope > 0) else each.low / each.width
