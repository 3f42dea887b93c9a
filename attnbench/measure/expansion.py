"""A suite as one revision reads it: a worker expands it, so that each side of a gate has its own operators."""

from __future__ import annotations

from pathlib import Path

from attnbench.errors import BadInput
from attnbench.measure.protocol import Expansion, ExpansionAnswer, ExpansionRequest
from attnbench.plan import suite as suites
from attnbench.plan.cells import cells
from attnbench.plan.operator_facts import definitions
from attnbench.registry import operators
from attnbench.units import separated


def expand(request: ExpansionRequest) -> ExpansionAnswer:
    """A suite's settings and cells, and what its operators say of themselves; or why it is refused."""
    places = request.operators_from
    try:
        suite = suites.from_text(request.text, request.where, Path(request.directory), request.name, places)
        names = separated(request.operators)
        known = operators(places)
        chosen = [name for name in names if name in known] if request.lenient else names
        nothing = bool(names) and not chosen
        suite = suites.override(suite, operators=chosen, impls=request.impls)
        expanded = () if nothing else tuple(cells(suite))
        facts = definitions(expanded, places)
    except BadInput as error:
        return ExpansionAnswer(refused=str(error))
    return ExpansionAnswer(
        Expansion(
            name=suite.name,
            text=suite.text,
            impls=tuple(suite.impls),
            measure=suite.measure,
            limits=suite.limits,
            gate=suite.gate,
            cells=expanded,
            definitions=facts,
        )
    )
