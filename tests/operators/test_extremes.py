"""Every parameter at the ends of what it takes: an operator is right there, or says why it is not defined."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from attnbench.measure.device.cpu import DEVICE as CPU
from attnbench.measure.protocol import Forecast
from attnbench.measure.worker import checking, correctness
from attnbench.measure.worker.prepared_cell import Subject, subject_of
from attnbench.operator import Operator, Param
from attnbench.problem import DTYPES, MODES, Cell, Dtype, Params, Problem, canonical_params
from attnbench.registry import outside_definition, resolve, why_not
from tests.operators.flops import of_both_passes
from tests.variants import SCOPES, sources

LARGE, LARGE_TO_COUNT = 71, 17
"""Stand for a maximum where there is none: more than there are tokens, channels or blocks."""

OF_THEIR_OWN = {"intra_depth": 17}
"""The same for params that are compared with neither: such a number of equal layers, of which each takes as long."""

KINDS = ("kind", "gradient", "sharing", "heads", "sink")
"""Choices that make another map of an operator: every other parameter is taken to its ends within each."""


def ends(param: Param, large: int) -> list[Any]:
    """The choices, and the ends of the numbers it takes."""
    if isinstance(param.default, bool):
        return [False, True]
    bounds = () if isinstance(param.default, str) and param.minimum is None else (param.minimum, param.maximum)
    numbers = [other if bound is None else bound for bound, other in zip(bounds, (0, large), strict=False)]
    return [
        *param.choices,
        *(type(param.default)(n) if not isinstance(param.default, str) else int(n) for n in numbers),
    ]


def extremes(operator: Operator, large: int = LARGE) -> Iterator[Params]:
    """Params with one of them at an end, in every combination of kinds; each once."""
    kinds = [name for name in operator.params if name in KINDS]
    given: list[dict[str, Any]] = []
    for combination in itertools.product(*(operator.params[name].choices for name in kinds)):
        base = dict(zip(kinds, combination, strict=True))
        given.append(base)
        given += [
            {**base, name: end}
            for name, param in operator.params.items()
            if name not in kinds
            for end in ends(param, min(large, OF_THEIR_OWN.get(name, large)))
        ]
    yield from {canonical_params(params): params for params in (resolve(operator, each) for each in given)}.values()


def subjects(name: str) -> Iterator[Subject]:
    """The gradient of every impl that runs here and says no reason why not, in every dtype that can tell something."""
    source = sources()[name]
    operator = source.load()
    image = Problem.image(5, 7, 64, 4)
    plain = Problem(35, 64, 4)
    problems = [plain, replace(plain, causal=True)] if "sequence" in operator.domains else [image]
    for params, scope in itertools.product(extremes(operator), SCOPES):
        form = operator.forms[scope]
        for problem, impl in itertools.product(problems, ("reference", *form.impls)):
            cell = Cell(name, impl, scope, "fwd_bwd", problem, params)
            for dtype in telling(operator, cell):
                yield subject_of(replace(cell, problem=problem.with_dtype(dtype)), source, CPU, 2**32, Forecast())


def telling(operator: Operator, cell: Cell) -> list[Dtype]:
    """The dtypes that a cell is defined in; for time not all of them. A layer's roundings are largest in bfloat16. At
    an end a core is computed in float16, in bfloat16 by the layer; float64, in which the reference would be compared
    with itself, is the truth of both, and an impl's is part of its check in any dtype. float32 where there is no
    bfloat16, which has the narrower bound in roundings.
    """
    defined = [d for d in DTYPES if why_not(operator, replace(cell, problem=cell.problem.with_dtype(d)), "cpu") is None]
    if cell.scope == "layer":
        return [dtype for dtype in defined if dtype == "bfloat16"]
    if cell.params == resolve(operator, {}):
        return defined
    layer = replace(cell, scope="layer", problem=cell.problem.with_dtype("bfloat16"))
    left_out = {
        "float64": "float16" in defined or "bfloat16" in defined,
        "float32": "bfloat16" in defined,
        "bfloat16": "float16" in defined and why_not(operator, layer, "cpu") is None,
    }
    return [dtype for dtype in defined if not left_out.get(dtype)]


@pytest.mark.parametrize("name", sorted(sources()))
def test_every_end_is_right_or_has_its_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(checking, "TRIALS", ((math.inf, 1),))  # nobody asks which outputs follow a write
    tried = 0
    for subject in subjects(name):
        try:
            checking.check_impl(subject)
        except Exception as error:
            pytest.fail(f"{subject.cell.key} {dict(subject.cell.params)}: {type(error).__name__}: {error}")
        tried += 1
    assert tried


@pytest.mark.parametrize("name", sorted(sources()))
def test_what_the_reference_executes_is_what_torch_counts(name: str) -> None:
    operator = sources()[name].load()
    shapes = [(3, 5, 16, 4), (1, 5, 4, 4)]
    problems = [Problem.image(*shape) for shape in shapes]
    if "sequence" in operator.domains:
        problems = [Problem(h * w, c, heads) for h, w, c, heads in shapes]
    default = resolve(operator, {})
    for params, scope, problem in itertools.product(extremes(operator, LARGE_TO_COUNT), SCOPES, problems):
        form = operator.forms[scope]
        # A factor that is no size could turn a product off, and does so in either problem.
        once = any(isinstance(value, float) and value != default[name] for name, value in params.items())
        if not (once and problem == problems[1]) and outside_definition(operator, problem, params, scope) is None:
            inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
            flops = of_both_passes(form, problem, params, inputs)
            costs = [form.cost(problem, params, mode) for mode in MODES]
            stated = [cost.reference_flops - sum(cost.uncounted.values()) for cost in costs]
            assert flops == stated, (params, scope, problem)


def test_the_ends_are_those_that_are_allowed() -> None:
    """What lies beyond them is refused, so that a bound set wider than it is right is among what is tried."""
    for source in sources().values():
        operator = source.load()
        for name, param in operator.params.items():
            if param.minimum is not None and param.minimum > 0:
                assert any(params[name] == param.minimum for params in extremes(operator))
                with pytest.raises(ValueError, match=name):
                    resolve(operator, {name: type(param.minimum)(0)})


@pytest.mark.parametrize(
    ("name", "given", "problem", "by_bound"),
    [
        ("hamburger", {"kind": "cd", "rank": 100, "beta": 0.0}, Problem(35, 16, 4), True),
        ("sinkhorn", {"tau": 0.001}, Problem(63, 16, 4), True),
        ("sinkhorn", {"tau": 0.01, "block": 8}, Problem(63, 16, 4, causal=True), False),
        ("rfa", {}, Problem(63, 8, 4, dtype="float16"), False),
        ("rfa", {"m": 1}, Problem(63, 64, 4, dtype="float16"), False),
        ("performer", {"kind": "relu", "m": 1}, Problem(63, 64, 4), False),
    ],
)
def test_what_was_wider_than_the_sound_range_is_refused(
    name: str, given: dict[str, Any], problem: Problem, by_bound: bool
) -> None:
    """By a bound of the parameter, or by a sentence: and the check would not have passed it."""
    source = sources()[name]
    operator = source.load()
    if by_bound:
        with pytest.raises(ValueError, match="allowed"):
            resolve(operator, given)
    params: Params = {**resolve(operator, {}), **given}
    cell = Cell(name, "reference", "core", "fwd_bwd", problem, params)
    assert by_bound or why_not(operator, cell, "cpu")
    unsound = subject_of(cell, source, CPU, 2**32, Forecast())
    if name in ("hamburger", "performer") or problem.causal:
        with pytest.raises((correctness.Wrong, torch.linalg.LinAlgError)):
            checking.check_impl(unsound)
