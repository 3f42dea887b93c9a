"""The types an operator file fills in: Operator, Form, Impl, Inputs, Param, Cost. Types, no logic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from attnbench.problem import Domain, Dtype, Mode, Params, ParamValue, Problem, Scope

if TYPE_CHECKING:
    from torch import Tensor

Growth = Literal["0", "1", "log n", "n", "n log n", "n^1.5", "n^2", "n^3"]


@dataclass(frozen=True)
class Paper:
    """Where the definition comes from. `where`: the equation, section or figure that is implemented."""

    author: str
    year: int
    title: str
    url: str
    where: str


@dataclass(frozen=True)
class Param:
    """One parameter of an operator, as YAML and `--param` give it.

    default: the paper's value. A size that follows the problem is a string the operator understands,
    such as "sqrt(n)": it stays that string in `params`, so that a series keeps one set of params.
    choices: the allowed values where they can be listed (strings beside a number: allowed as well).
    minimum, maximum: bounds of a number, both inclusive; None: no bound.
    """

    default: ParamValue
    meaning: str
    choices: tuple[ParamValue, ...] = ()
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class Inputs:
    """The tensors of one call, by the keyword under which the reference takes them.

    data: activations, differentiated, counted as input_bytes (q, k, v of [B, H, N, D]; x of [B, N, C];
    images [B, C, h, w]). parameters: learned weights, differentiated, counted as parameter_bytes.
    choices: random or discrete choices made once so that all impls share them; never differentiated.
    """

    data: dict[str, Tensor]
    parameters: dict[str, Tensor] = field(default_factory=dict)
    choices: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All of them, as the keywords of a call."""
        return {**self.data, **self.parameters, **self.choices}

    def differentiated(self) -> dict[str, Tensor]:
        """What `fwd_bwd` takes gradients of: data, then parameters."""
        return {**self.data, **self.parameters}


@dataclass(frozen=True)
class Cost:
    """The analytic cost of one call (mode included). A multiply-add is 2 FLOPs.

    flops: the products of the paper's formula as it is written, exact (causal: the allowed pairs only). Terms that the
    formula has are counted even where an exact rewriting, as another order of sums, would spare them: what pairs are
    compared by is counted for every pair, a product that stands twice is counted twice. Where the formula leaves the
    order of a chain of products open, it is the order of the authors' code.
    reference_flops: the products the reference executes: more where it fills up or masks, fewer where it is rewritten.
    An impl that computes a cheaper exact form has its own count, `Impl.flops`.
    elementwise: exponentials, divisions, comparisons … of the definition, apart; an estimate to the leading term.
    bytes_required: every input and parameter read once and every output written once (fwd_bwd: those, the
    cotangent read and the gradients written), in the working dtype.
    passes: sequential sweeps over the tokens that no fusion can remove.
    uncounted: what torch's FlopCounterMode cannot count in the reference, with its FLOPs ({"fft": …});
    these are part of reference_flops.
    """

    flops: int
    reference_flops: int
    elementwise: int
    bytes_required: int
    passes: int
    uncounted: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Impl:
    """One way to compute a form. Called as `load()(problem, params, **inputs.tensors()) -> Tensor`.

    load: imports lazily and returns the callable, so that listing impls imports no kernel.
    kernel: what runs, as stored in the `kernel` column where the worker cannot observe it.
    why_not: (problem, params, torch's type of the device, such as "cpu") -> the reason it cannot run here, or None.
    synchronises: True where it waits for the device inside (then launches are not queued ahead).
    flops: (problem, params, mode) -> the products it executes, where it computes a cheaper exact form than the formula
    as written; None: it computes that.
    """

    load: Callable[[], Callable[..., Tensor]]
    kernel: str
    why_not: Callable[[Problem, Params, str], str | None]
    synchronises: bool = False
    flops: Callable[[Problem, Params, Mode], int] | None = None


@dataclass(frozen=True)
class Form:
    """An operator in one scope.

    reference: (problem, params, **tensors) -> Tensor; the definition, in plain torch, with the paper's complexity.
    make_inputs: (problem, params, generator) -> Inputs, on the generator's device, in problem.dtype.
    cost: (problem, params, mode) -> Cost.
    impls: beside `reference` and `compiled`, which every form has; by name ("sdpa", "cuda", "cuda:flash").
    """

    reference: Callable[..., Tensor]
    make_inputs: Callable[..., Inputs]
    cost: Callable[..., Cost]
    impls: Mapping[str, Impl] = field(default_factory=dict)


@dataclass(frozen=True)
class Complexity:
    """How the definition grows with N for given params: products in time, extra memory of the reference in memory."""

    time: Growth
    memory: Growth


@dataclass(frozen=True)
class Estimated:
    """The exact map that an operator is an estimate of.

    name: as tables and environment.json name it. map: called like the operator's reference, which tends to it; None:
    softmax attention of q, k and v.
    """

    name: str
    map: Callable[..., Tensor] | None = None


SOFTMAX = Estimated("softmax attention")


@dataclass(frozen=True)
class Operator:
    """A mathematical map, as one file of `attnbench/operators/<family>/` defines it under the name OPERATOR.

    forms: by scope. params: by name.
    complexity: (params) -> Complexity. domains: what it is defined on; a sequence operator that lists "image"
    is given the flattened map.
    causal: True where the operator has a causal form; else the reason it has none.
    exact: (params) -> whether it computes softmax attention itself, not another function.
    dtypes: the working dtypes that make sense. why_not: (problem, params, scope) -> the reason this problem is
    outside the definition, or None; what domains, causal and dtypes already say is not repeated there.
    tolerance: a stated exception to the check's bound: (factor on the derived bound, reason).
    estimates: (params) -> the exact map this operator is an estimate of; None where it is a function of its own.
    notes: one line for `attnbench list operators`. no_kernel: the reason it has no impl `cuda`; empty where it has one,
    or nobody has looked.
    """

    paper: Paper
    forms: Mapping[Scope, Form]
    complexity: Callable[[Params], Complexity]
    params: Mapping[str, Param] = field(default_factory=dict)
    domains: tuple[Domain, ...] = ("sequence", "image")
    causal: Literal[True] | str = True
    exact: Callable[[Params], bool] = lambda params: False
    dtypes: tuple[Dtype, ...] = ("float64", "float32", "bfloat16", "float16")
    why_not: Callable[[Problem, Params, Scope], str | None] = lambda problem, params, scope: None
    tolerance: tuple[float, str] | None = None
    notes: str = ""
    no_kernel: str = ""
    estimates: Callable[[Params], Estimated | None] = lambda params: None
