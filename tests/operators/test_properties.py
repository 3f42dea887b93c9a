"""What each operator states that it can do, found by computing: every kind, in both forms; wrong statements fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.inputs import normal
from attnbench.measure.metrics.softmax_error import attention, error
from attnbench.operator import Inputs
from attnbench.problem import Params, Problem
from attnbench.properties import PROPERTIES, properties
from tests.operators.by_operator import by_operator
from tests.operators.test_continuing import of, part, state_of, step
from tests.operators.test_pairs import INSIDE, by_token, cases, observed
from tests.operators.test_pairs import problem_of as pairs_problem
from tests.variants import Variant, sources

SIDE = 16
TOKENS = SIDE**2
VALUES = (1, 15, 16, 64, 255, 256, 4096)
"""What a parameter is set to along a curve of errors, where its operator allows it: up to all tokens, or beyond."""
DRAWS = 3
"""Of an operator's choices, such as random features, over which an error is taken."""
SCALE = 0.5
"""Standard deviation of the logits."""
CLOSE = 0.25
"""Of the largest error of a curve: the smallest of one that comes to softmax attention."""


def problem_of(variant: Variant, causal: bool, side: int = SIDE) -> Problem:
    return variant.problem((side, side), batch=1, heads=2, channels=16, dtype="float64", causal=causal)


def output(variant: Variant, problem: Problem, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        found: Tensor = variant.form.reference(problem, variant.params, **inputs.tensors())
        return found


def of_q_k_v(inputs: Inputs, problem: Problem) -> bool:
    """Whether an operator is given queries, keys and values of heads, of one width, and nothing else that is learned or
    depends on the tokens."""
    heads = (problem.batch, problem.heads, problem.seq_len, problem.head_dim)
    others = [*inputs.parameters, *(name for name in inputs.choices if name.startswith("index_"))]
    return not others and {n: tuple(t.shape) for n, t in inputs.data.items()} == dict.fromkeys("qkv", heads)


def errors(variant: Variant, problem: Problem, values: tuple[int, ...], name: str) -> list[float]:
    """Against softmax attention of the same q, k, v, for each value of a parameter that the definition allows."""
    generator = torch.Generator().manual_seed(3)
    shape = (problem.batch, problem.heads, problem.seq_len, problem.head_dim)
    q, k, v = (normal(problem, generator, *shape) for _ in range(3))
    data = {"q": q * SCALE**0.5, "k": k * SCALE**0.5, "v": v}
    truth = attention(*data.values(), torch.arange(problem.seq_len), causal=problem.causal)
    found = []
    for value in values:
        other = replace(variant, params={**variant.params, **({name: value} if name else {})})
        if other.defined(problem):
            drawn = [other.inputs(problem, seed) for seed in range(DRAWS)]
            drawn = [inputs for inputs in drawn if of_q_k_v(inputs, problem)]
            outputs = [output(other, problem, replace(inputs, data=data)) for inputs in drawn]
            found += [(sum(error(each, truth) ** 2 for each in outputs) / len(outputs)) ** 0.5] if outputs else []
    return found


def is_exact(variant: Variant, causal: bool) -> bool:
    """Whether it equals softmax attention of its q, k and v, in float64; a value map is of the values."""
    problem = problem_of(variant, causal)
    inputs = variant.inputs(problem)
    q, k, v = (inputs.data.get(name) for name in "qkv")
    if q is None or k is None or v is None or q.shape != k.shape or q.shape[-2] != problem.seq_len:
        return False
    if "value_map" in inputs.parameters:
        merged = v.transpose(1, 2).flatten(2) @ inputs.parameters["value_map"]
        v = merged.unflatten(2, (problem.heads, -1)).transpose(1, 2)
    truth = attention(q, k, v, torch.arange(problem.seq_len), causal=causal)
    found = output(variant, problem, inputs)
    return found.shape == truth.shape and torch.allclose(found, truth, rtol=1e-10, atol=1e-12)


def comes_to_softmax(variant: Variant, causal: bool) -> bool:
    """Whether it is given just q, k and v, and its error shrinks along a parameter, or is 0."""
    problem = problem_of(variant, causal)
    if is_exact(variant, causal):
        return True
    if not of_q_k_v(variant.inputs(problem), problem):
        return False
    numbers = [name for name, param in variant.operator.params.items() if param.minimum is not None]
    return any(shrinks(errors(variant, problem, VALUES, name)) for name in numbers)


def shrinks(curve: list[float]) -> bool:
    """Whether one end of a curve of errors is close to 0, beside its largest and by itself."""
    return len(curve) > 1 and min(curve[0], curve[-1]) < CLOSE * min(1.0, max(curve))


def sees_all(variant: Variant, causal: bool) -> bool:
    return observed(variant, pairs_problem(variant, causal)) != "fixed"


def has_causal_form(variant: Variant, causal: bool) -> bool:
    """Whether a causal form is defined in which earlier outputs stay where later tokens change."""
    problem = problem_of(variant, causal=True)
    if not variant.defined(problem):
        return False
    inputs, others = variant.inputs(problem), variant.inputs(problem, seed=1)
    before = by_token(output(variant, problem, inputs), problem)[: TOKENS // 2]
    for name, tensor in inputs.data.items():
        later_tokens(tensor, problem, name).copy_(later_tokens(others.data[name], problem, name))
    after = by_token(output(variant, problem, inputs), problem)[: TOKENS // 2]
    return torch.allclose(before, after, rtol=1e-9, atol=1e-12)


def later_tokens(tensor: Tensor, problem: Problem, name: str) -> Tensor:
    """The second half of the tokens: a view."""
    if problem.height is not None and tensor.shape[-2:] == (problem.height, problem.width):
        return tensor.view(*tensor.shape[:-2], -1)[..., TOKENS // 2 :]
    return of(slice(TOKENS // 2, None), name, tensor)


def decodes(variant: Variant, causal: bool) -> bool:
    """Whether the last row of the causal form follows from the last token and what is kept of the others."""
    problem = problem_of(variant, causal=True)
    last = step(problem, 1)
    if not variant.defined(last) or variant.form.state is None:
        return False
    inputs = variant.inputs(problem)
    rows = output(variant, problem, inputs)
    tensors = {**part(inputs, slice(-1, None)), **state_of(variant, last, part(inputs, slice(0, last.past)))}
    found = variant.form.reference(last, variant.params, **tensors)
    found = found[0] if isinstance(found, tuple) else found
    return torch.allclose(found, rows[..., -1:, :], rtol=1e-9, atol=1e-11)


VALUES_OF = ("v", "g", "c", "x", "z")
"""By what name operators take what is mixed."""


def depends_on_data(variant: Variant, causal: bool) -> bool:
    """Whether the weights of an output's tokens, up to a factor, change with all that is not mixed.

    Where an operator takes one tensor, one of its channels stays, and the others are exchanged token by token within
    each half: what a normalisation over channels makes of a token stays as it is.
    """
    problem = problem_of(variant, causal)
    same = variant.inputs(problem)
    name = next(name for name in VALUES_OF if name in same.data)
    alone = len(same.data) == 1
    directions = []
    for seed in range(2):
        drawn = variant.inputs(problem, seed)
        values = exchanged(same.data[name], problem, seed) if alone else same.data[name].clone()
        values.requires_grad_()
        inputs = replace(same, data={**drawn.data, name: values})
        y = variant.form.reference(problem, variant.params, **inputs.tensors())
        (gradient,) = torch.autograd.grad(by_token(y, problem)[TOKENS - 1, 0], values)
        weights = by_token(gradient, problem)[:, :1] if alone else by_token(gradient, problem)
        directions.append(weights / weights.norm())
    return not torch.allclose(*directions, rtol=1e-6, atol=1e-9)


def exchanged(values: Tensor, problem: Problem, seed: int) -> Tensor:
    """The same numbers in other channels of each token, the first channel and halves of channels apart."""
    generator = torch.Generator().manual_seed(seed)
    axis = 1 if problem.height is not None and values.shape[-2:] == (problem.height, problem.width) else -1
    first, *halves = values.movedim(axis, -1).tensor_split([1, values.shape[axis] // 2], dim=-1)
    moved = [half.gather(-1, torch.rand(half.shape, generator=generator).argsort(-1)) for half in halves]
    return torch.cat([first, *moved], dim=-1).movedim(-1, axis).contiguous()


def fits_any_length(variant: Variant, causal: bool) -> bool:
    """Whether four times the tokens need no more parameters; of a layer, where there is one."""
    scope = "layer" if "layer" in variant.operator.forms else "core"
    params = {**variant.params, **{name: "given" for name in INSIDE if name in variant.params}}
    whole = replace(variant, scope=scope, params=params)  # type: ignore[arg-type]
    counts = {
        sum(tensor.numel() for tensor in whole.inputs(problem_of(variant, causal, side)).parameters.values())
        for side in (SIDE // 2, SIDE)
    }
    return len(counts) == 1


FOUND: dict[str, Callable[[Variant, bool], bool]] = {
    "exact": is_exact,
    "drop_in": comes_to_softmax,
    "all_pairs": sees_all,
    "causal": has_causal_form,
    "decode": decodes,
    "data_dependent": depends_on_data,
    "any_length": fits_any_length,
}


def stated(variant: Variant, causal: bool) -> dict[str, bool]:
    return properties(variant.operator, variant.params, causal)


def test_each_property_is_found_in_some_operators_and_missing_in_others() -> None:
    assert FOUND.keys() == PROPERTIES.keys()
    for name in PROPERTIES:
        assert {stated(*case)[name] for case in cases()} == {False, True}, name


@by_operator(cases())
def test_an_operator_has_what_it_states(variant: Variant, causal: bool) -> None:
    """all_pairs: `test_pairs.py`."""
    is_stated = stated(variant, causal)
    for name in FOUND.keys() - {"all_pairs"}:
        assert FOUND[name](variant, causal) == is_stated[name], name


def altered(name: str, in_causal: bool, form: dict[str, Any] | None = None, **stated: Any) -> tuple[Variant, bool]:
    """An operator's first kind with another form, or one that states something else, and which form to look at."""
    variant = next(variant for variant, _ in cases() if variant.name == name)
    forms = {"core": replace(variant.form, **(form or {}))}
    return replace(variant, operator=replace(variant.operator, forms=forms, **stated)), in_causal


def sharper(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax of logits that are a thousandth larger."""
    return sources()["softmax"].load().forms["core"].reference(problem, params, 1.001 * q, k, v)


def one_ahead(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax in which a token sees the next one."""
    n = problem.seq_len
    mask = torch.ones(n, n, dtype=torch.bool).tril(1)
    return scaled_dot_product_attention(q, k, v, mask)


def one_short(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax in which the last token does not see the first."""
    n = problem.seq_len
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    mask[-1, 0] = False
    return scaled_dot_product_attention(q, k, v, mask)


def forgetful(problem: Problem, params: Params, **tensors: Tensor) -> dict[str, Tensor]:
    """What softmax keeps, with one value too many: the first key is that of the second token."""
    kept = sources()["softmax"].load().forms["core"].state(problem, params, **tensors)
    kept["k_cache"][..., 0, :] = kept["k_cache"][..., 1, :]
    return kept


WRONG: dict[str, list[tuple[Variant, bool]]] = {
    "exact": [
        altered("softmax", False, {"reference": sharper}),
        altered("softmax", True, {"reference": one_short}),
        altered("softmax", False, exact=lambda params: False),
        altered("local", False, exact=lambda params: True),
    ],
    "drop_in": [
        altered("rfa", False, approaches=lambda params: "m"),
        altered("dsa", True, approaches=lambda params: "top_k"),
        altered("performer", False, approaches=lambda params: None),
        altered("linear_transformer", False, exact=lambda params: True),
    ],
    "all_pairs": [
        altered("softmax", True, {"reference": one_short}),
        altered("local", False, pairs=lambda params, causal: "all"),
        altered("softmax", False, pairs=lambda params, causal: "fixed"),
    ],
    "causal": [
        altered("softmax", True, {"reference": one_ahead}),
        *(altered(name, False, causal=True) for name, source in sources().items() if source.load().causal is not True),
    ],
    "decode": [
        altered("softmax", True, {"state": forgetful}),
        altered("softmax", True, {"state": None}),
    ],
    "data_dependent": [
        *(altered(name, False, data_dependent=lambda params: True) for name in ("fnet", "gmlp", "mlp_mixer", "pool")),
        altered("softmax", False, data_dependent=lambda params: False),
        altered("external_attention", False, data_dependent=lambda params: False),
    ],
    "any_length": [
        altered("linformer", False, any_length=lambda params: True),
        altered("softmax", False, any_length=lambda params: False),
    ],
}
"""By property, operators that state what is not so."""


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, some in WRONG.items() for case in some])
def test_a_wrong_statement_is_found(name: str, case: tuple[Variant, bool]) -> None:
    variant, causal = case
    assert FOUND[name](variant, causal) != stated(variant, causal)[name]
