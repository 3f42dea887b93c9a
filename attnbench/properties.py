"""What an operator can do, by name: what a user asks for, and what tables say that it lacks. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

from attnbench.errors import printable
from attnbench.operator import Operator, Pairs
from attnbench.problem import Followed, Params, Problem
from attnbench.registry import outside_definition


@dataclass(frozen=True)
class Property:
    """Something that an operator has or lacks, by its definition and whatever the impl.

    Attributes:
        meaning: of what has it, in a line.
        lack: what a table says of an operator without it.
    """

    meaning: str
    lack: str


PROPERTIES: Mapping[str, Property] = {
    "exact": Property("Softmax attention itself: the same numbers, apart from rounding.", "not exact"),
    "drop_in": Property("From q, k and v alone: softmax attention, or as near as a parameter sets it.", "no drop-in"),
    "all_pairs": Property("An output can depend on every token that it may see, wherever it stands.", "not all pairs"),
    "causal": Property("It has a form in which a token sees only itself and those before it.", "not causal"),
    "decode": Property("New tokens are computed alone, from what is kept of those before.", "no decoding"),
    "data_dependent": Property(
        "What tokens contain decides how much each counts, not positions alone.", "fixed weights"
    ),
    "any_length": Property("No learned parameter grows with the number of tokens.", "weights grow with N"),
}
"""By name, in the order in which tables have them."""

FORMS: Mapping[bool, str] = {False: "full", True: "causal"}
"""The names of an operator's forms, by whether it is the causal one."""


def properties(operator: Operator, params: Params, causal: bool, at: Problem | None = None) -> dict[str, bool]:
    """Which of PROPERTIES an operator has with some params, from what it states.

    Args:
        params: with every default resolved.
        causal: of which form; only on which tokens an output depends differs between the two.
        at: the size at which its definition is asked whether params exclude a form; None: one of about a thousand
            tokens. A definition that excludes the size itself has the forms that the operator states.

    Raises: TypeError where it states what is not allowed; what its own functions raise.
    """
    can_be_causal = _is_defined(operator, params, at, causal=True)
    exact = _truth(operator.exact(params), "exact")
    found = {
        "exact": exact,
        "drop_in": _parameter(operator, params) is not None or exact,
        "all_pairs": _pairs(operator, params, causal) != "fixed",
        "causal": can_be_causal,
        "decode": can_be_causal and _continues(operator, params, at),
        "data_dependent": _truth(operator.data_dependent(params), "data_dependent"),
        "any_length": _truth(operator.any_length(params), "any_length"),
    }
    return {name: found[name] for name in PROPERTIES}


def by_form(operator: Operator, params: Params, at: Problem | None = None) -> dict[str, dict[str, bool]]:
    """`properties` of each form that there is with these params, by its name in FORMS."""
    return {name: properties(operator, params, name == FORMS[True], at) for name in forms(operator, params, at)}


def forms(operator: Operator, params: Params, at: Problem | None = None) -> list[str]:
    """The names of the forms that there are with some params. at: as of `properties`."""
    return [name for causal, name in FORMS.items() if _is_defined(operator, params, at, causal=causal)]


def _is_defined(operator: Operator, params: Params, at: Problem | None, *, causal: bool) -> bool:
    """Whether there is such a form. What excludes the other one as well excludes the size."""
    if (operator.causal if causal else operator.full) is not True:
        return False
    if (operator.full if causal else operator.causal) is not True or _admits(operator, params, at, causal=causal):
        return True
    return not _admits(operator, params, at, causal=not causal)


def _continues(operator: Operator, params: Params, at: Problem | None) -> bool:
    """Whether the causal form takes one new token. What excludes all tokens at once as well excludes the size."""
    if operator.continues is not True or _admits(operator, params, at, causal=True, query_len=1):
        return operator.continues is True
    return not _admits(operator, params, at, causal=True)


def _admits(operator: Operator, params: Params, at: Problem | None, causal: bool, query_len: int | None = None) -> bool:
    """Whether a form is within the definition at a size."""
    dtype = operator.dtypes[0]
    if at is None and "sequence" in operator.domains:
        at = Problem(1024, 512, 8, dtype=dtype)
    problem = at or Problem.image(32, 32, 512, 8, dtype=dtype)
    asked = replace(problem, causal=causal, query_len=Followed() if query_len is None else query_len)
    return outside_definition(operator, asked, params, "core" if "core" in operator.forms else "layer") is None


def _truth(stated: object, name: str) -> bool:
    if not isinstance(stated, bool):
        raise TypeError(f"{name} gives {printable(repr(stated), 60)}; allowed: True or False")
    return stated


def _pairs(operator: Operator, params: Params, causal: bool) -> Pairs:
    stated = operator.pairs(params, causal)
    if stated not in get_args(Pairs):
        raise TypeError(f"pairs gives {printable(repr(stated), 60)}; allowed: {', '.join(get_args(Pairs))}")
    return stated


def _parameter(operator: Operator, params: Params) -> str | None:
    stated = operator.approaches(params)
    if stated is not None and stated not in operator.params:
        raise TypeError(
            f"approaches gives {printable(repr(stated), 60)}; allowed: None, {', '.join(operator.params) or 'no name'}"
        )
    return stated
