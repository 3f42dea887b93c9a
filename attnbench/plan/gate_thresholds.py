"""The thresholds that a gate decides by: those of the command line, of a suite, or the default."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.metric import DEFAULT_METRIC
from attnbench.plan.mistakes import Notes
from attnbench.thresholds import Gate
from attnbench.units import fraction, quoted, suggestion

DEFAULT = Gate({DEFAULT_METRIC: 0.05})
"""Of a suite that states none."""


def from_options(options: Sequence[str] | None) -> Gate | None:
    """The thresholds of `--fail-on`; None where it is not given.

    Args:
        options: `metric:5%` each, or several of these with commas.

    Raises: BadInput.
    """
    from attnbench.plan.schema import gated_names

    if not options:
        return None
    names = gated_names()
    notes = Notes("the command line")
    thresholds = {}
    for part in (part.strip() for text in options for part in text.split(",")):
        metric, _, limit = part.partition(":")
        if metric not in names:
            near = suggestion(metric, names)
            notes.add("--fail-on", f"{quoted(metric)} is no metric{near}; allowed: {', '.join(names)}")
            continue
        try:
            thresholds[metric] = fraction(0.0, 100.0)(limit)
        except ValueError as error:
            notes.add(f"--fail-on {metric}", str(error))
    notes.close()
    return Gate(thresholds)


def effective(gate: Gate) -> Gate:
    """A suite's thresholds, or the default where it states none."""
    return gate if gate.thresholds or gate.overrides else DEFAULT


def loosened(before: Gate, after: Gate) -> list[str]:
    """What a change does to the suite's own thresholds, as sentences."""
    texts = {
        name: tuple("none" if limit is None else f"{limit:.1%}" for limit in (a, b))
        for name in sorted({*before.thresholds, *after.thresholds})
        for a, b in [(before.thresholds.get(name), after.thresholds.get(name))]
    }
    sentences = [f"the suite's threshold of {name}: {a} → {b}" for name, (a, b) in texts.items() if a != b]
    return sentences + (["the suite's overrides of thresholds differ"] if before.overrides != after.overrides else [])
