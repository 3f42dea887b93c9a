"""What a command line asks to fit into a memory: the problem without its tokens, or without its batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from attnbench.axes import AXES
from attnbench.errors import BadInput, refusing
from attnbench.naming import option
from attnbench.plan import problem_request
from attnbench.plan.problem_request import ProblemRequest
from attnbench.problem import MODES, MODES_SHORT
from attnbench.units import not_among, whole_number
from attnbench.yaml_file import scalar

if TYPE_CHECKING:
    from attnbench.operator import Operator
    from attnbench.problem import Cell

DECODE = "decode"

MOST_LAYERS = 10_000

MODE_NAMES: dict[str, str] = {mode: short for short, mode in MODES_SHORT.items()} | {each: each for each in MODES_SHORT}
"""By what a mode may be called, what it is called here."""


@dataclass(frozen=True)
class FitRequest:
    """What is searched.

    Args:
        cells: every operator with its problem, of the largest size on the axis.
        axis: the name of what is searched.
        mode: "train", "infer" or "decode".
        layers: of the operator.
    """

    cells: Sequence[tuple[Operator, Cell]]
    axis: str
    mode: str
    layers: int


def fit_request(problem: ProblemRequest, layers: str, image: bool) -> FitRequest:
    """What a command line asks for.

    Args:
        problem: without a number of tokens, which is then searched, or without a batch. Its mode may be "decode", which
            is a causal step of one token where no query_len is given.
        layers: of the operator, a whole number.
        image: whether the tokens that are searched are those of an image.

    Raises: BadInput with all mistakes.
    """
    names = (*MODES_SHORT, DECODE)
    if problem.mode not in (*names, *MODES):
        raise BadInput(f"{option('mode')} {not_among(problem.mode, names)}. Give one.")
    with refusing(f"{option('layers')}: ", ". Give such a number."):
        depth = whole_number(1, MOST_LAYERS)(scalar(layers))
    decodes = problem.mode == DECODE
    axis = _axis(problem.sizes, image)
    sizes = {**problem.sizes, axis: [str(AXES[axis].most)]}
    if decodes:
        sizes["query_len"] = problem.sizes.get("query_len") or ["1"]
    asked = replace(problem, sizes=sizes, causal=problem.causal or decodes, mode="infer" if decodes else problem.mode)
    cells = problem_request.cells(asked)
    return FitRequest(cells, axis, DECODE if decodes else MODE_NAMES[problem.mode], depth)


def _axis(sizes: Mapping[str, Sequence[str]], image: bool) -> str:
    """The axis that is searched. Raises BadInput where nothing is left to search."""
    tokens = [name for name in ("seq_len", "image_size") if sizes.get(name)]
    if not tokens:
        return "image_size" if image else "seq_len"
    if image and tokens == ["seq_len"]:
        raise BadInput(
            f"{option('image')} and {option('seq_len')}: an image has sides. Give {option('image_size')} 64, or "
            "leave one out."
        )
    if sizes.get("batch"):
        raise BadInput(
            f"{option(tokens[0])} and {option('batch')}: nothing is left to search. Leave {option('batch')} out for "
            "the largest batch, or the tokens for the longest sequence."
        )
    return "batch"
