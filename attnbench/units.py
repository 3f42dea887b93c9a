"""How numbers are shown to people and read from them (2%, 500ms, 8GiB); stored data stays in base units.

Readers raise ValueError with what is allowed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

STEPS = {
    "s": (1000.0, ((-4, "ps"), (-3, "ns"), (-2, "µs"), (-1, "ms"), (0, "s"))),
    "bytes": (1024.0, ((0, "B"), (1, "KiB"), (2, "MiB"), (3, "GiB"), (4, "TiB"))),
    "flop": (1000.0, ((0, ""), (1, "k"), (2, "M"), (3, "G"), (4, "T"), (5, "P"), (6, "E"))),
    "j": (1000.0, ((-3, "nJ"), (-2, "µJ"), (-1, "mJ"), (0, "J"), (1, "kJ"))),
    "": (1000.0, ((0, ""),)),
}


def shown(value: float | None, unit: str) -> str:
    """Three significant digits with a prefix; empty where there is no value. unit: a metric's."""
    return _prefixed(value, unit, _three)


def brief(value: float | None, unit: str) -> str:
    """The same with two significant digits: `2.0MiB`, `520KiB`."""
    return _prefixed(value, unit, _two)


def _prefixed(value: float | None, unit: str, written: Callable[[float], str]) -> str:
    if value is None or math.isnan(value):
        return ""
    if value == 0:
        return "0"
    base, steps = STEPS[unit]
    for power, name in steps:
        scaled = value / base**power
        if max(scaled, digits(scaled)) < base or power == steps[-1][0]:
            return f"{written(scaled)}{name}"
    raise AssertionError(unit)


def digits(value: float) -> float:
    """A number rounded to three significant digits."""
    return float(f"{value:.3g}")


def _three(value: float) -> str:
    if value != 0 and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.2e}"
    if digits(abs(value)) >= 100:
        return f"{digits(value) if abs(value) < 1000 else value:.0f}"
    return f"{value:.2f}" if digits(abs(value)) < 10 else f"{value:.1f}"


def _two(value: float) -> str:
    rounded = float(f"{value:.2g}")
    return f"{rounded:.0f}" if rounded >= 10 else f"{rounded:.1f}" if rounded >= 1 else f"{rounded:g}"


def times(value: float | None) -> str:
    """A ratio: `2.31×`, `0.0047×`."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.2g}×" if 1e-3 <= value < 0.1 else f"{_three(value)}×"


def percent(value: float) -> str:
    """A relative width: `2.1%`, `18%`; what is wider than tenfold says only that: `>999%`."""
    return ">999%" if value > 9.99 else f"{value:.0%}" if value >= 0.0995 else f"{value:.1%}"


def duration(seconds: float) -> str:
    """`0.5 s`, `42 s`, `3 min 10 s`, `2 h 05 min`."""
    rounded = round(seconds)
    if seconds < 1:
        return f"{seconds:.1g} s"
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def count(number: int, what: str) -> str:
    """So many of a countable thing: `1 cell`, `2 cells`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def listed(texts: Sequence[str], most: int) -> str:
    """`a, b and 3 more`."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def first_few(texts: Sequence[str], most: int) -> list[str]:
    """The first texts, and where there are more, at the end `and 3 more`."""
    return [*texts[:most], *([f"and {len(texts) - most} more"] if len(texts) > most else [])]


def separated(values: Iterable[str]) -> list[str]:
    """The names of an option that may be repeated, each time with several names between commas."""
    names = (name.strip() for several in values for name in several.split(","))
    return list(dict.fromkeys(filter(None, names)))


T = TypeVar("T")

_SECONDS = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_NUMBER = r"(\d{1,12}(?:\.\d{1,12})?)"

LONGEST_DURATION_S = 7 * 24 * 3600.0


def quoted(value: object) -> str:
    """A value as a message repeats it: one line, at most 60 characters."""
    try:
        text = repr(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        text = "a number of thousands of digits"
    text = "nothing" if value is None else text
    return text if len(text) <= 60 else text[:57] + "…"


def suggestion(name: object, allowed: Collection[str]) -> str:
    """` (did you mean 'sweep'?)` where a valid name is near, else an empty text."""
    near = nearest(name, allowed)
    return f" (did you mean '{near}'?)" if near else ""


def not_among(value: object, words: Collection[str]) -> str:
    """`'swep' (did you mean 'sweep'?); allowed: sweep, single`."""
    return f"{quoted(value)}{suggestion(value, words)}; allowed: {', '.join(words)}"


def nearest(name: object, allowed: Collection[str]) -> str | None:
    """The valid name that is nearest to one that is not, whatever its case and dashes; None where none is near."""
    import difflib

    plain = {word.lower().replace("-", "_"): word for word in allowed}
    near = difflib.get_close_matches(str(name)[:100].lower().replace("-", "_"), list(plain), n=1, cutoff=0.6)
    return plain[near[0]] if near else None


def seconds(value: Any) -> float:
    """`500ms`, `1s`, `5m`, `1h` → seconds."""
    match = re.fullmatch(_NUMBER + r"\s*(ms|s|sec|m|min|h)", value.strip()) if isinstance(value, str) else None
    result = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0 < result <= LONGEST_DURATION_S:
        raise ValueError(f"{quoted(value)}; allowed: a duration above zero, up to a week, such as 500ms, 1s, 5m or 1h")
    return result


def fraction(low: float, high: float) -> Callable[[Any], float]:
    """Reads `2%` → 0.02, bounded by low and high (fractions, both inclusive)."""

    def read(value: Any) -> float:
        match = re.fullmatch(_NUMBER + r"\s*%", value.strip()) if isinstance(value, str) else None
        result = float(match[1]) / 100 if match else math.nan
        if not low <= result <= high:
            raise ValueError(
                f"{quoted(value)}; allowed: a percentage from {100 * low:g}% to {100 * high:g}%, such as 5%"
            )
        return result

    return read


def memory(value: Any) -> tuple[float, int | None]:
    """`80%` of the device → (0.8, None); `8GiB`, `8G` → (1.0, bytes); `8GB` is 8 · 1000³."""
    if isinstance(value, str):
        text = value.strip()
        if text.endswith("%"):
            return fraction(0.01, 1.0)(value), None
        match = re.fullmatch(_NUMBER + r"\s*([KMGT])(i?B)?", text, re.IGNORECASE)
        step = 1000 if match and match[3] in ("B", "b") else 1024
        size = int(float(match[1]) * step ** ("KMGT".index(match[2].upper()) + 1)) if match else 0
        if 0 < size <= 2**50:
            return 1.0, size
    raise ValueError(f"{quoted(value)}; allowed: a share of the device's memory such as 80%, or a size such as 8GiB")


_INCHES = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72}
MOST_INCHES = 60.0


def picture_size(value: str) -> tuple[float, float | None]:
    """`3.5in`, `89mm` → a width in inches and no height; `3.5x2.5in`, `3.5inx60mm` → both."""
    units = "|".join(_INCHES)
    match = re.fullmatch(rf"{_NUMBER}\s*({units})?(?:\s*[x×]\s*{_NUMBER}\s*({units}))?", value.strip())
    sides: list[float] = []
    if match and (match[2] or match[4]):
        sides = [float(match[1]) * _INCHES[match[2] or match[4]]]
        sides += [float(match[3]) * _INCHES[match[4]]] if match[4] else []
    if not sides or not all(0 < side <= MOST_INCHES for side in sides):
        raise ValueError(
            f"{quoted(value)}; allowed: a width with its unit ({', '.join(_INCHES)}), such as 3.5in or 89mm, or width "
            f"and height, such as 3.5x2.5in; each up to {MOST_INCHES:g}in"
        )
    return sides[0], sides[1] if len(sides) > 1 else None


def whole_number(low: int, high: int) -> Callable[[Any], int]:
    """Reads a whole number from low to high, both inclusive."""

    def read(value: Any) -> int:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high and value % 1 == 0:
            return int(value)
        raise ValueError(f"{quoted(value)}; allowed: a whole number from {low} to {high}")

    return read


_TIMES = {"K": 2**10, "M": 2**20}


def whole_size(low: int, high: int) -> Callable[[Any], int]:
    """Reads a whole number as `whole_number`, also with K or M: `32K` → 32768."""
    number = whole_number(low, high)

    def read(value: Any) -> int:
        match = re.fullmatch(_NUMBER + r"\s*([KkMm])", value.strip()) if isinstance(value, str) else None
        try:
            return number(float(match[1]) * _TIMES[match[2].upper()] if match else value)
        except ValueError:
            also = ", such as 32K (K: 1024)" if high >= _TIMES["K"] else ""
            raise ValueError(f"{quoted(value)}; allowed: a whole number from {low} to {high}{also}") from None

    return read


def short_size(value: int) -> str:
    """A size as people type it: `32K` where it is a multiple of 1024."""
    return str(value) if value % _TIMES["K"] else f"{value // _TIMES['K']}K"


def flag(value: Any) -> bool:
    """Reads true or false."""
    if isinstance(value, bool):
        return value
    raise ValueError(f"{quoted(value)}; allowed: true, false")


def choice(allowed: Sequence[T], short: Mapping[str, T] | None = None) -> Callable[[Any], T]:
    """Reads one of the names in `allowed`. short: other words for some of them; then capitals do not matter."""

    def read(value: Any) -> T:
        word = value.lower() if isinstance(value, str) and short else value
        if isinstance(word, str) and short and word in short:
            return short[word]
        for candidate in allowed:
            if word == candidate and type(word) is type(candidate):
                return candidate
        words = [str(a) for a in (*allowed, *(short or ()))]
        raise ValueError(not_among(value, words))

    return read


def text(pattern: str, meaning: str) -> Callable[[Any], str]:
    """Reads a text that matches a regular expression; `meaning` says in words what is allowed."""

    def read(value: Any) -> str:
        if isinstance(value, str) and re.fullmatch(pattern, value):
            return value
        raise ValueError(f"{quoted(value)}; allowed: {meaning}")

    return read
