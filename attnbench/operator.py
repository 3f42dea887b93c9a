"""The types an operator file fills in: Operator, Form, Impl, Inputs, Param, Cost. Types, no logic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from attnbench.problem import Domain, Dtype, Mode, Params, ParamValue, Problem, Scope

if TYPE_CHECKING:
    from torch import Tensor

Pairs = Literal["all", "chosen", "fixed"]
"""On which of the tokens that a query may see its output depends: on all of them, on those that their contents choose,
or on those at some positions."""

Growth = Literal["0", "1", "log n", "n^0.5", "n", "n log n", "n^1.5", "n^2", "n^3"]


@dataclass(frozen=True)
class Paper:
    """Where the definition comes from.

    Attributes:
        where: the equation, section or figure that is implemented.
    """

    author: str
    year: int
    title: str
    url: str
    where: str


@dataclass(frozen=True)
class Param:
    """One parameter of an operator, as YAML and `--param` give it.

    Attributes:
        default: the paper's value. A size that follows the problem is a string that the operator understands, such as
            "sqrt(n)": it stays that string in `params`, so that a series keeps one set of params.
        meaning: shown by `attnbench list operators`.
        choices: the allowed values where they can be listed; strings beside a number are allowed as well.
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

    Attributes:
        data: activations of the Q new tokens, differentiated, counted as input_bytes: q of [B, H, Q, D]; k, v of
            [B, Hk, Q, D]; x of [B, Q, C]; images [B, C, h, w].
        parameters: learned weights, differentiated, counted as parameter_bytes.
        choices: random or discrete choices that all impls share; never differentiated.
        state: what is there of the N − Q tokens before, where Q < N; never differentiated, float32 or the working
            dtype. A cache has room for the Q new tokens at its end, which every call fills with the same ones.
    """

    data: dict[str, Tensor]
    parameters: dict[str, Tensor] = field(default_factory=dict)
    choices: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, as the keywords of a call."""
        return {**self.data, **self.parameters, **self.choices, **self.state}

    def differentiated(self) -> dict[str, Tensor]:
        """The tensors that `fwd_bwd` takes gradients of: data, then parameters."""
        return {**self.data, **self.parameters}


@dataclass(frozen=True)
class Cost:
    """The analytic cost of one call in one mode. A multiply-add is 2 FLOPs.

    Attributes:
        flops: the products of the paper's formula as written, exact (causal: the allowed pairs only). Terms that an
            exact rewriting, such as another order of sums, would save are counted: a function of pairs for every pair,
            a product that occurs twice, twice. An open order of a chain of products is that of the authors' code.
        reference_flops: the products that the reference executes: more where it pads or masks, fewer where it is
            rewritten. An impl that computes a cheaper exact form has its own count, `Impl.flops`.
        elementwise: exponentials, divisions, comparisons … of the definition; an estimate to the leading term.
        bytes_required: every input and parameter read once and every output written once, in the working dtype;
            fwd_bwd: also the inputs read again, the cotangent read and the gradients written.
        bytes_again: what no fusion can keep from being moved once more, tensor by tensor: one that is used before and
            after a sum over all tokens is complete, and what must be kept between the two. The chip holds such sums,
            weights whose size does not follow N, and a number per token and head, but no tensor of all tokens. Negative
            where a backward does without inputs that bytes_required reads again.
        uncounted: the part of reference_flops that torch's FlopCounterMode cannot count, by operation ({"fft": …}).
        state_bytes: of what is kept of all N tokens to continue from, in a causal form that can; None: it cannot.
    """

    flops: int
    reference_flops: int
    elementwise: int
    bytes_required: int
    bytes_again: int = 0
    uncounted: Mapping[str, int] = field(default_factory=dict)
    state_bytes: int | None = None

    @property
    def bytes_moved(self) -> int:
        """The least that any implementation moves to and from memory."""
        return self.bytes_required + self.bytes_again


Call = Callable[..., Any]
"""(problem, params, **tensors) → y, of the data's shape; where a state of fixed size is read and written, a tuple of y
and the new state, in the order of `Inputs.state`."""


@dataclass(frozen=True)
class Impl:
    """One way to compute a form. Called as `load()(problem, params, **inputs.tensors())`.

    Attributes:
        load: imports lazily and returns the callable, so that listing impls imports no kernel.
        kernel: the name stored in the `kernel` column where the worker cannot observe what runs.
        why_not: (problem, params, torch's type of the device, such as "cpu") -> the reason it cannot run here, or None.
        synchronises: True where it waits for the device inside (then launches are not queued ahead).
        flops: (problem, params, mode) -> the products it executes, where it computes a cheaper exact form than the
            formula as written; None: it computes that.
        grouped: whether it takes kv_heads < heads.
        continues: whether it takes query_len < seq_len.
        why_not_backward: as why_not, of its gradients; asked in `fwd_bwd` beside that.
        outermost: of a call that must not be within another, (around) → this impl of what `around` makes of the impl
            that it runs; None: `around` is applied to this one.
    """

    load: Callable[[], Call]
    kernel: str
    why_not: Callable[[Problem, Params, str], str | None]
    synchronises: bool = False
    flops: Callable[[Problem, Params, Mode], int] | None = None
    grouped: bool = False
    continues: bool = False
    why_not_backward: Callable[[Problem, Params, str], str | None] = lambda problem, params, device: None
    outermost: Callable[[Callable[[Impl], Impl]], Impl] | None = None


@dataclass(frozen=True)
class Form:
    """An operator in one scope.

    Attributes:
        reference: the definition, in plain torch, with the paper's complexity.
        make_inputs: (problem, params, generator) → Inputs, on the generator's device, in problem.dtype.
        cost: (problem, params, mode) → Cost.
        impls: by name ("sdpa", "cuda", "cuda:flash"), in addition to `reference` and `compiled`, which every form has.
        state: (problem, params, **tensors of the causal form of the first N − Q tokens) → `Inputs.state` of a problem
            with Q < N, as the form itself leaves it after these; None: the form cannot continue.
    """

    reference: Call
    make_inputs: Callable[..., Inputs]
    cost: Callable[..., Cost]
    impls: Mapping[str, Impl] = field(default_factory=dict)
    state: Callable[..., dict[str, Tensor]] | None = None


@dataclass(frozen=True)
class Complexity:
    """How the definition grows with N for given params.

    Attributes:
        time: its products; its elementwise operations where it has none, "0" where it has neither.
        memory: extra memory of the reference.
    """

    time: Growth
    memory: Growth


@dataclass(frozen=True)
class Estimated:
    """The exact map that an operator estimates.

    Attributes:
        name: in tables and environment.json.
        map: called like the operator's reference, which converges to it; None: softmax attention of q, k and v.
    """

    name: str
    map: Callable[..., Tensor] | None = None


SOFTMAX = Estimated("softmax attention")


@dataclass(frozen=True)
class Operator:
    """A mathematical map, as one file of `attnbench/operators/<family>/` defines it under the name OPERATOR.

    Attributes:
        forms: by scope. `block` is made of `layer` (`block.py`), and given where the layer holds its MLP already.
        complexity: (params) → Complexity.
        params: by name.
        domains: what it is defined on; a sequence operator that lists "image" gets the flattened map.
        causal: True where the operator has a causal form; otherwise the reason it has none.
        full: True where it has a form in which every token sees all; otherwise the reason it has none.
        grouped: True where several query heads can read one head of keys and values (kv_heads < heads); otherwise the
            reason they cannot.
        continues: True where the causal form can continue from what is kept of earlier tokens (query_len < seq_len);
            otherwise the reason it cannot.
        exact: (params) → whether it computes softmax attention itself, not another function.
        pairs: (params, causal) → on which tokens an output depends.
        dtypes: the working dtypes that make sense.
        why_not: (problem, params, scope) → the reason why a problem is outside the definition, or None; it does not
            repeat what domains, causal, full and dtypes exclude. Of scope block it is asked for that of the layer, too.
        tolerance: an exception to the check's bound: (factor on the derived bound, reason).
        notes: one line for `attnbench list operators`.
        no_kernel: the reason it has no impl `cuda`; empty where it has one, or none has been considered.
        estimates: (params) → the exact map that it estimates; None where it is a function of its own.
        approaches: (params) → the parameter that brings it to softmax attention of the same q, k and v, which are all
            that it takes: a window that comes to hold all tokens, a number of features. None: none does.
        data_dependent: (params) → whether what tokens contain decides how much they count beside each other.
        any_length: (params) → whether its learned parameters (scope layer, where it has one) are as many whatever N.
    """

    paper: Paper
    forms: Mapping[Scope, Form]
    complexity: Callable[[Params], Complexity]
    params: Mapping[str, Param] = field(default_factory=dict)
    domains: tuple[Domain, ...] = ("sequence", "image")
    causal: Literal[True] | str = True
    full: Literal[True] | str = True
    grouped: Literal[True] | str = "every query head has keys and values of its own"
    continues: Literal[True] | str = "no form is defined that continues from what is kept of earlier tokens"
    exact: Callable[[Params], bool] = lambda params: False
    pairs: Callable[[Params, bool], Pairs] = lambda params, causal: "all"
    dtypes: tuple[Dtype, ...] = ("float64", "float32", "bfloat16", "float16")
    why_not: Callable[[Problem, Params, Scope], str | None] = lambda problem, params, scope: None
    tolerance: tuple[float, str] | None = None
    notes: str = ""
    no_kernel: str = ""
    estimates: Callable[[Params], Estimated | None] = lambda params: None
    approaches: Callable[[Params], str | None] = lambda params: None
    data_dependent: Callable[[Params], bool] = lambda params: True
    any_length: Callable[[Params], bool] = lambda params: True

    @property
    def impls(self) -> tuple[str, ...]:
        """The names of its impls in any form, each once; of the reference there is always one."""
        return tuple(dict.fromkeys(name for form in self.forms.values() for name in form.impls))
