"""A Python module with one function, `choose`, for code that calls the operators: it imports nothing, Python 3.8 or
later runs it, and the same rules give the same text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from attnbench import __version__
from attnbench.analysis.distributions import CONFIDENCE
from attnbench.axes import AXES
from attnbench.errors import BadInput
from attnbench.outputs._rules import INSIDE, doubt, position_name, positions, regret_text, run_facts, threshold_text
from attnbench.problem import LATER
from attnbench.terminal import escaped

if TYPE_CHECKING:
    from attnbench.analysis.contest import Range
    from attnbench.analysis.dispatch import Dispatch, Rules

_CHOOSE = '''

def choose(
    {parameters},
):
    """What to call at a size.

    {size}: {meaning}.
    Below the smallest and above the largest measured size, where nothing is known, the answer is that of the nearest.

    The other arguments name a measured problem; those that were measured with several values have no default. A number
    between two measured ones is taken for the nearer one, by their ratio; all else has to be as measured, or a KeyError
    says what there is. None: it follows another number, as heads of keys those of queries, and the query the sequence.
    """
    panels = _PANELS
    for name, value in (
        {arguments},
    ):
        known = []
        for key, _, _ in panels:
            if key[name] not in known:
                known.append(key[name])
        if value not in known:
            numbers = sorted(x for x in known if isinstance(x, int) and not isinstance(x, bool))
            if not numbers or not isinstance(value, int) or not numbers[0] < value < numbers[-1]:
                raise KeyError("%s=%r: measured with %s" % (name, value, ", ".join(map(repr, known))))
            value = min(numbers, key=lambda number: max(number / value, value / number))
        panels = [panel for panel in panels if panel[0][name] == value]
    _, starts, arms = panels[0]
    arm = arms[0]
    for start, name in zip(starts, arms):
        if {size} >= start:
            arm = name
    return arm
'''


def rules(dispatch: Dispatch) -> str:
    """The module's text.

    Raises: BadInput where the panels lie along several axes: a function takes one.
    """
    axes = list(dict.fromkeys(each.panel.axis for each in dispatch.panels))
    if len(axes) > 1:
        raise BadInput(
            f"--format python: a function takes a size on one axis, and these runs vary {', '.join(axes)}. "
            f"Choose one of them: --axis {axes[0]}."
        )
    values = _values(dispatch.panels)
    size = position_name(dispatch.panels[0])
    meaning = AXES[axes[0]].meaning if size in AXES else "of an image: height · width"
    defaults = [name if len(of) > 1 else f"{name}={of[0]!r}" for name, of in values.items()]
    text = _CHOOSE.format(
        parameters=",\n    ".join([size, "*", *sorted(defaults, key=lambda each: "=" in each)]),
        arguments=",\n        ".join(f'("{name}", {name})' for name in values),
        size=size,
        meaning=meaning,
    )
    comments = "".join(f"# {escaped(line)}".rstrip() + "\n" for line in _header(dispatch))
    return f"{comments}\n_PANELS = (\n{''.join(_panel(each, values) for each in dispatch.panels)}){text}"


def _values(panels: Sequence[Rules]) -> dict[str, list[Any]]:
    """The arguments by name, each with the values that the panels have; the device's name where there are several."""
    names = dict.fromkeys([*(name for rules in panels for name in rules.key), *LATER])
    values = {name: list(dict.fromkeys(rules.key.get(name) for rules in panels)) for name in names}
    axis = AXES[panels[0].panel.axis]
    return {k: v for k, v in values.items() if k not in axis.columns and (k != "device_name" or len(v) > 1)}


def _panel(rules: Rules, names: Iterable[str]) -> str:
    """Its key, where its parts start, and what each takes."""
    parts: list[Range] = []
    for each in rules.ranges:
        if not parts or parts[-1].take != each.take:
            parts.append(each)
    key = {name: rules.key.get(name) for name in names}
    starts, arms = tuple(each.low for each in parts), tuple(each.take for each in parts)
    return f"    ({key!r}, {starts!r}, {arms!r}),\n"


def _header(dispatch: Dispatch) -> Iterator[str]:
    yield f"Which operator to call at which size, by {dispatch.metric}. Written by attnbench {__version__} dispatch."
    yield ""
    for rules_run in dispatch.runs:
        facts = run_facts(rules_run)
        yield "measured: " + ", ".join(f"{name} {value}" for name, value in facts.items())
    yield f"undecided: the {CONFIDENCE:.0%} intervals do not tell these arms apart; {INSIDE[dispatch.inside]}."
    for rules in dispatch.panels:
        exact = {arm.name: arm.exact for arm in rules.arms}
        yield ""
        yield f"{rules.panel.title} ({rules.key['device_name']})"
        for each in rules.ranges:
            unsure = f"; undecided: {doubt(each)}" if each.undecided else ""
            other = "" if exact[each.take] else " (not exact softmax)"
            yield f"  {positions([each])}: {each.take}{other}{unsure}"
        yield from (f"  {threshold_text(each)}" for each in rules.thresholds)
        yield f"  {regret_text(rules.regret)}"
