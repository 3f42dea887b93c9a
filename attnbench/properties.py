"""What an operator can do, by name: what a user asks for, and what tables say that it lacks. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from attnbench.errors import printable
from attnbench.operator import Operator, Pairs
from attnbench.problem import Params, Problem
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


def properties(operator: Operator, params: Params, causal: bool) -> dict[str, bool]:
    """Which of PROPERTIES an operator has with some params, from what it states.

    Args:
        params: with every default resolved.
        causal: of which form; only on which tokens an output depends differs between the two.

    Raises: TypeError where it states what is not allowed; what its own functions raise.
    """
    can_be_causal = _is_defined(operator, params, causal=True)
    exact = _truth(operator.exact(params), "exact")
    found = {
        "exact": exact,
        "drop_in": _parameter(operator, params) is not None or exact,
        "all_pairs": _pairs(operator, params, causal) != "fixed",
        "causal": can_be_causal,
        "decode": can_be_causal and _is_defined(operator, params, causal=True, query_len=1),
        "data_dependent": _truth(operator.data_dependent(params), "data_dependent"),
        "any_length": _truth(operator.any_length(params), "any_length"),
    }
    return {name: found[name] for name in PROPERTIES}


def by_form(operator: Operator, params: Params) -> dict[str, dict[str, bool]]:
    """`properties` of each form that there is with these params, by its name in FORMS."""
    return {name: properties(operator, params, name == FORMS[True]) for name in forms(operator, params)}


def forms(operator: Operator, params: Params) -> list[str]:
    """The names of the forms that there are with some params."""
    return [name for causal, name in FORMS.items() if _is_defined(operator, params, causal=causal)]


TOKENS, SIDE = 1024, 32
"""The size at which a definition is asked for its forms: of a sequence, and of an image's side."""


def _is_defined(operator: Operator, params: Params, *, causal: bool, **shape: int) -> bool:
    """Whether there is such a form, as far as params decide: a definition that excludes the other form as well, or all
    new tokens, excludes the size."""
    stated = operator.causal if causal else operator.full
    if stated is not True or (shape and operator.continues is not True):
        return False
    if _reason(operator, params, causal=causal, **shape) is None:
        return True
    wider = {"causal": True} if shape else {"causal": not causal}
    other = operator.full if causal and not shape else operator.causal
    return other is not True or _reason(operator, params, **wider) is not None


def _reason(operator: Operator, params: Params, **shape: int) -> str | None:
    """Why a form is outside the definition at the size at which it is asked; or None."""
    given = {"channels": 512, "heads": 8, "dtype": operator.dtypes[0], **shape}
    sequence = "sequence" in operator.domains
    problem = Problem(TOKENS, **given) if sequence else Problem.image(SIDE, SIDE, **given)  # type: ignore[arg-type]
    return outside_definition(operator, problem, params, "core" if "core" in operator.forms else "layer")


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
