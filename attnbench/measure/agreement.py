"""Whether two functions give the same on the same inputs: a rule for any two, as `worker.error_bound` has for an impl.

Floating-point numbers may differ. Where the first function can be called with its inputs in float64, what it gives then
is the truth, and the second's distance from it may be twice the first's own, or √STORED roundings where that is more,
plus one rounding of the largest value; never more than CEILING of the largest value. Where it cannot, the two may
differ by CEILING of it. All else has to be equal: shapes, dtypes, integers, texts; NaN and infinities are in the same
places.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from attnbench.errors import described, printable
from attnbench.measure.callables import Words
from attnbench.measure.tolerance import CEILING, STORED

if TYPE_CHECKING:
    from attnbench.problem import Dtype

Rule = Literal["equal", "derived", "ceiling", "given"]
"""Where a tolerance is from: nothing may differ; the first function's own error; CEILING; the caller."""

AFFORDABLE_S = 1.0
"""A function that takes longer is not called in float64 as well."""

EPS: dict[Dtype, float] = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}

_PRECISION: dict[str, Dtype] = {
    "float64": "float64", "float32": "float32", "bfloat16": "bfloat16", "float16": "float16",
    "complex64": "float32", "complex128": "float64",
}  # fmt: skip
"""By the name of a dtype, that of its real numbers."""


class Different(Exception):
    """Two functions do not give the same; the text says where, and by how much."""


class Incomparable(Different):
    """What they give cannot be compared; the text says what, and why."""


class Unfit(Exception):
    """Calls of a function do not say what it takes; the text says why, and what to do.

    Args:
        place: 0 for the first of the two functions, 1 for the second.
        why: without a subject.
    """

    def __init__(self, place: int, why: str) -> None:
        super().__init__(why)
        self.place = place


@dataclass(frozen=True)
class Agreement:
    """The worst array of an output, over its largest value.

    Args:
        difference: of the second function from the truth (`derived`), or from the first one.
        tolerance: what was allowed.
        rule: where that is from.
    """

    difference: float
    tolerance: float
    rule: Rule

    @property
    def allowed(self) -> str:
        """The tolerance and its rule in words."""
        why = {"derived": "twice the first one's own error", "ceiling": "the most for its dtype", "given": "as given"}
        return f"allowed {self.tolerance:.1e}, {why.get(self.rule, '')}"

    @property
    def share(self) -> float:
        """The difference over what was allowed."""
        return self.difference / self.tolerance if self.tolerance else 0.0

    def __str__(self) -> str:
        if self.difference == 0:
            return "outputs are equal"
        return f"outputs agree within {self.difference:.1e} of the largest value ({self.allowed})"


EQUAL = Agreement(0.0, 0.0, "equal")


@dataclass(frozen=True)
class _Array:
    """Numbers of any library as float64, or as they are where they have to be equal.

    Args:
        values: of complex ones both parts, [2, ...].
        name: dtype and shape.
        precision: of floating-point ones; None: they have to be equal.
    """

    values: npt.NDArray[Any]
    name: str
    precision: Dtype | None


def agreement(first: object, second: object, truth: object = None, tolerance: float | None = None) -> Agreement:
    """Compares what two functions gave.

    Args:
        first, second: arrays, numbers, texts; sequences, mappings and dataclasses of them.
        truth: what the first one gives in float64; None: not known.
        tolerance: of the largest value, in place of the rule.

    Returns: the array that is nearest to its tolerance.
    Raises: Different, also where they cannot be compared.
    """
    try:
        return _nearest(first, second, truth, tolerance)
    except Different:
        raise
    except Exception as error:  # it holds itself, lies too deep, is of a class that can raise anything
        raise Incomparable(f"the outputs cannot be compared: {described(error)}") from None


def _nearest(first: object, second: object, truth: object, tolerance: float | None) -> Agreement:
    ours, theirs = dict(_leaves(first)), dict(_leaves(second))
    truths = dict(_leaves(truth)) if tolerance is None else {}
    alone = next((place for place in (*ours, *theirs) if place not in ours or place not in theirs), None)
    if alone is not None:
        raise Different(f"only one of them gives {alone}")
    each = [_compared(place, value, theirs[place], truths.get(place), tolerance) for place, value in ours.items()]
    return max((found for found in each if found.rule != "equal"), key=lambda found: found.share, default=EQUAL)


def _leaves(value: Any, place: str = "the output") -> Iterator[tuple[str, Any]]:
    """What an output holds, by its place."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        yield f"the keys of {place}", sorted(map(repr, value))
        for key, each in value.items():
            yield from _leaves(each, f"{place}[{printable(repr(key), 40)}]")
    elif isinstance(value, (list, tuple)) and not all(type(each) in (int, float) for each in value):
        yield f"the length of {place}", len(value)
        for number, each in enumerate(value):
            yield from _leaves(each, f"{place}[{number}]")
    else:
        yield place, list(value) if isinstance(value, tuple) else value


def _compared(place: str, first: Any, second: Any, truth: Any, tolerance: float | None) -> Agreement:
    ours, theirs = _array(first), _array(second)
    if ours is None or theirs is None:
        return _equal(place, first, second)
    if ours.name != theirs.name:
        raise Different(f"{place} is {ours.name} of one, {theirs.name} of the other")
    if ours.precision is None:
        if not np.array_equal(ours.values, theirs.values):
            raise Different(f"{place} differs in {np.sum(ours.values != theirs.values)} of {ours.values.size} values")
        return EQUAL
    for special in (np.isnan, np.isposinf, np.isneginf):
        if not np.array_equal(special(ours.values), special(theirs.values)):
            raise Different(f"{place} has NaN or infinities in other places")
    exact = _array(truth)
    if exact is None or exact.precision != "float64" or exact.values.shape != ours.values.shape:
        exact = None
    return _within(place, ours, theirs, exact if ours.precision != "float64" else None, tolerance)


def _within(place: str, ours: _Array, theirs: _Array, exact: _Array | None, tolerance: float | None) -> Agreement:
    known = exact or ours
    finite = np.isfinite(ours.values) & np.isfinite(known.values)
    scale, error = _largest(known.values[finite]), _largest(theirs.values[finite] - known.values[finite])
    bound, rule = CEILING[ours.precision or "float64"] * scale, "ceiling"
    if tolerance is not None:
        bound, rule = tolerance * scale, "given"
    elif exact is not None:
        eps, own_error = EPS[ours.precision or "float64"], _largest(ours.values[finite] - exact.values[finite])
        bound, rule = min(max(2 * own_error, math.sqrt(STORED) * eps * scale) + eps * scale, bound), "derived"
    found = Agreement(error / (scale or 1.0), bound / (scale or 1.0), rule)  # type: ignore[arg-type]
    if not error <= bound:
        raise Different(f"{place} differs by {found.difference:.1e} of its largest value ({found.allowed})")
    return found


def _largest(values: npt.NDArray[Any]) -> float:
    return float(np.abs(values).max()) if values.size else 0.0


def _equal(place: str, first: Any, second: Any) -> Agreement:
    """Of values that are no arrays of numbers."""
    try:
        equal = first == second
        equal = bool(equal.all()) if hasattr(equal, "all") else bool(equal)
    except Exception as error:
        raise Incomparable(
            f"{place} ({printable(type(first).__name__)}) cannot be compared: {described(error)}"
        ) from None
    if equal:
        return EQUAL
    if type(first) is type(second) and getattr(type(first), "__eq__", None) is getattr(object, "__eq__", None):
        raise Incomparable(f"{place} ({printable(type(first).__name__)}) cannot be compared")
    raise Different(f"{place} is {printable(repr(first), 60)} of one, {printable(repr(second), 60)} of the other")


def _array(value: Any) -> _Array | None:
    """A tensor, an array, or real or complex numbers; None of anything else."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _of_tensor(torch, value)
    if isinstance(value, (float, complex)) and not hasattr(value, "dtype"):
        return _real(np.asarray(value), "a number", "float64")
    if isinstance(value, list) and any(type(each) is float for each in value):
        return _real(np.asarray(value, dtype=np.float64), f"{len(value)} numbers", "float64")
    if not hasattr(value, "dtype") or not hasattr(value, "__array__"):
        return None
    array, dtype = np.asarray(value), str(value.dtype)
    floating = dtype in _PRECISION or array.dtype.kind in "fc"
    if not floating and array.dtype.kind not in "iub":
        return None
    return _real(array, f"{dtype} {list(array.shape)}", _PRECISION.get(dtype, "float64") if floating else None)


def _of_tensor(torch: Any, tensor: Any) -> _Array:
    dtype, floating = str(tensor.dtype).removeprefix("torch."), tensor.is_floating_point() or tensor.is_complex()
    precision = _PRECISION.get(dtype, "bfloat16") if floating else None
    if precision == "float32" and _has_tf32(tensor.device.type):
        precision = "float16"  # the bits of its products
    plain = tensor.detach().cpu()
    plain = plain if plain.layout == torch.strided else plain.to_dense()
    wide = plain.to(torch.complex128 if plain.is_complex() else torch.float64) if floating else plain
    return _real(wide.resolve_conj().resolve_neg().numpy(), f"{dtype} {list(tensor.shape)}", precision)


def _real(array: npt.NDArray[Any], name: str, precision: Dtype | None) -> _Array:
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag])
    return _Array(array if precision is None else array.astype(np.float64), name, precision)


def _has_tf32(device: str) -> bool:
    """Whether products of float32 may be TF32's on a device of torch's."""
    from attnbench.measure.device import device_names, device_of

    return device in device_names() and device_of(device).tf32()


def truth_of(function: Callable[..., Any], words: Words, call_s: float) -> Any:
    """What a function gives with its arrays in float64; None where that is not known. call_s: seconds of a call."""
    try:
        (positional, named), lower = in_double(words)
    except RecursionError:  # inputs that hold themselves
        return None
    if not lower or call_s > AFFORDABLE_S:
        return None
    # What torch has compiled would be compiled once more, and the look at its guards then takes longer.
    plain = getattr(function, "_torchdynamo_orig_callable", getattr(function, "_orig_mod", function))
    try:
        return plain(*positional, **named)
    except Exception:  # a kernel of half precision, weights in float32, a dtype that is checked
        return None


def in_double(value: Any) -> tuple[Any, bool]:
    """Inputs with their floating-point arrays in float64, and whether any has had a lower precision."""
    torch = sys.modules.get("torch")
    if isinstance(value, dict):
        pairs = {key: in_double(each) for key, each in value.items()}
        return {key: each for key, (each, _) in pairs.items()}, any(lower for _, lower in pairs.values())
    if type(value) in (list, tuple):
        both = [in_double(each) for each in value]
        return type(value)(each for each, _ in both), any(lower for _, lower in both)
    if torch is not None and isinstance(value, torch.Tensor):
        lower = value.is_floating_point() and value.dtype != torch.float64
        return (value.detach().double().requires_grad_(value.requires_grad), True) if lower else (value, False)
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.dtype.itemsize < 8:
        return value.astype(np.float64), True
    return value, False


def copied(words: Words) -> Words | None:
    """A copy of inputs by which a change is seen; None where one cannot be copied, or not be compared."""
    try:
        twin = copy.deepcopy(words)
        agreement(twin, words, tolerance=0.0)
    except Exception:
        return None
    return twin


def changed(words: Words, before: Words | None) -> bool:
    """Whether inputs are no longer what they were. before: as of `copied`."""
    try:
        return before is not None and not agreement(before, words, tolerance=0.0)
    except Different:
        return True
