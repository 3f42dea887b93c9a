"""What operations give on meta tensors, by rules for those that are frequent.

Torch's own rules are in Python as well. The first that is asked imports torch's compiler, which takes as long as torch
itself, and each takes several times as long as one of these. What has no rule here is left to torch, so that it is the
same tensors, later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, reduce
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import compute_elementwise_output_strides

from attnbench.measure.device import HOST

_ATEN = torch.ops.aten

_SINGLE = (torch.float32, torch.float64)
"""Types in which statistics of a norm have the type of its input on every device."""


def result_on_meta(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an operation of ATen gives: on meta tensors those of its sizes, strides and dtype."""
    rule = _rule(func)
    known = rule(func, *args, **kwargs) if rule is not None else NotImplemented
    return func(*args, **kwargs) if known is NotImplemented else known


@lru_cache(1024)
def _rule(func: Any) -> Callable[..., Any] | None:
    """(operation, its arguments) → its result, or NotImplemented; None: there is none for this operation."""
    is_computed = torch.Tag.pointwise in func.tags and "memory_format" not in {a.name for a in func._schema.arguments}
    return _RULES.get(func, _elementwise if is_computed else None)


def _new(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _elementwise(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Of the shape that the arguments broadcast to, with the strides that torch's iterators choose."""
    tensors = [each for each in args if isinstance(each, Tensor)]
    if not tensors or not all(each.is_meta for each in tensors) or any(isinstance(x, Tensor) for x in kwargs.values()):
        return NotImplemented
    dtype = _dtype(func, tuple(kwargs), *map(_sample, args), *kwargs.values())
    alike = tensors if len(tensors) == 1 else torch.broadcast_tensors(*tensors)
    if func._schema.is_mutable:
        return args[0] if alike[0].shape == args[0].shape else NotImplemented
    if all(each.is_contiguous() for each in tensors):
        return _new(alike[0].shape, dtype)
    if len({each.dtype for each in tensors}) > 1:  # torch copies what it converts, which has other strides then
        return NotImplemented
    strides = compute_elementwise_output_strides(*alike)
    return torch.empty_strided(alike[0].shape, strides, dtype=dtype, device="meta")


def _sample(argument: Any) -> Any:
    """What the dtype of a result depends on: of a tensor its dtype, and whether it has dimensions."""
    return (argument.dtype, argument.dim() > 0) if isinstance(argument, Tensor) else argument


@lru_cache(4096, typed=True)
def _dtype(func: Any, names: Sequence[str], *samples: Any) -> torch.dtype:
    """The dtype of a result: that of one element. samples: of the arguments, then the values of those with names."""
    values = [torch.ones((1,) * x[1], dtype=x[0], device=HOST) if isinstance(x, tuple) else x for x in samples]
    positional = len(values) - len(names)
    element: Tensor = func(*values[:positional], **dict(zip(names, values[positional:], strict=True)))
    return element.dtype


def _sum(func: Any, x: Tensor, dim: Any = None, keepdim: bool = False, dtype: torch.dtype | None = None) -> Any:
    if not x.is_floating_point() or dtype not in (None, x.dtype):
        return NotImplemented
    return _reduced(x, dim or range(x.dim()), keepdim, x.dtype)


def _norm(func: Any, x: Tensor, order: float = 2, *others: Any, **named: Any) -> Any:
    return _sum(func, x, *others, **named)


def _any(func: Any, x: Tensor, dim: int, keepdim: bool = False) -> Any:
    return _reduced(x, [dim], keepdim, torch.bool) if x.dtype == torch.bool else NotImplemented


def _reduced(x: Tensor, dims: Iterable[int], keepdim: bool, dtype: torch.dtype) -> Tensor:
    gone = {dim % x.dim() for dim in dims}
    return _new([1 if i in gone else size for i, size in enumerate(x.shape) if keepdim or i not in gone], dtype)


def _cumulated(func: Any, x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
    if dtype is None and not x.is_floating_point():
        return NotImplemented
    return _new(x.shape, dtype or x.dtype) if x.is_contiguous() else NotImplemented


def _product(func: Any, a: Tensor, b: Tensor) -> Any:
    if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2] or a.dtype != b.dtype:
        return NotImplemented
    return _new((*a.shape[:-1], b.shape[-1]), a.dtype)


def _joined(func: Any, tensors: Sequence[Tensor], dim: int = 0) -> Any:
    first = tensors[0]
    if any(each.dim() != first.dim() for each in tensors) or all(map(_has_channels_last, tensors)):
        return NotImplemented
    at = dim % first.dim()
    rest = {(*each.shape[:at], *each.shape[at + 1 :]) for each in tensors}
    if len(rest) > 1:
        return NotImplemented
    dtype = reduce(torch.promote_types, (each.dtype for each in tensors))
    return _new((*first.shape[:at], sum(each.shape[at] for each in tensors), *first.shape[at + 1 :]), dtype)


def _has_channels_last(x: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()])


def _elu_gradient(func: Any, gradient: Tensor, *given: Any) -> Any:
    *_, output = given
    return _elementwise(_ATEN.mul.Tensor, output, gradient)


def _softmax_gradient(func: Any, gradient: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Any:
    return _new(output.shape, dtype)


def _layer_norm(func: Any, x: Tensor, of: Sequence[int], weight: Any, bias: Any, epsilon: float) -> Any:
    if x.dtype not in _SINGLE:
        return NotImplemented
    statistics = (*x.shape[: -len(of)], *(1 for _ in of))
    return _new(x.shape, x.dtype), _new(statistics, x.dtype), _new(statistics, x.dtype)


def _layer_norm_gradients(
    func: Any, gradient: Tensor, x: Tensor, of: Any, mean: Any, rstd: Any, weight: Any, bias: Any, wanted: Any
) -> Any:
    if not (gradient.is_contiguous() and x.is_contiguous()):
        return NotImplemented
    return tuple(
        _new(each.shape, each.dtype) if each is not None and is_wanted else None
        for each, is_wanted in zip((x, weight, bias), wanted, strict=True)
    )


def _batch_norm(func: Any, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *rates: Any) -> Any:
    if not training or not x.is_contiguous() or x.dtype not in _SINGLE:
        return NotImplemented
    return _new(x.shape, x.dtype), *(_new(x.shape[1:2], x.dtype) for _ in range(2))


def _batch_norm_gradients(func: Any, gradient: Tensor, x: Tensor, weight: Any, *others: Any) -> Any:
    wanted = others[-1]
    if weight is None or not (gradient.is_contiguous() and x.is_contiguous()):
        return NotImplemented
    each = zip((x, weight, weight), wanted, strict=True)
    return tuple(_new(like.shape, like.dtype) if is_wanted else None for like, is_wanted in each)


def _identity(func: Any, n: int, dtype: torch.dtype | None = None, device: Any = None, **others: Any) -> Any:
    if device is None or torch.device(device).type != "meta":
        return NotImplemented
    return _new((n, n), dtype or torch.get_default_dtype())


_RULES: Mapping[Any, Callable[..., Any]] = {
    _ATEN.mm.default: _product,
    _ATEN.bmm.default: _product,
    _ATEN.cat.default: _joined,
    _ATEN.sum.dim_IntList: _sum,
    _ATEN.mean.default: _sum,
    _ATEN.mean.dim: _sum,
    _ATEN.any.dim: _any,
    _ATEN.amax.default: _sum,
    _ATEN.logsumexp.default: _sum,
    _ATEN.linalg_vector_norm.default: _norm,
    _ATEN.cumsum.default: _cumulated,
    _ATEN.eye.default: _identity,
    _ATEN.floor_divide.default: _elementwise,
    _ATEN.elu_backward.default: _elu_gradient,
    _ATEN._softmax_backward_data.default: _softmax_gradient,
    _ATEN.native_layer_norm.default: _layer_norm,
    _ATEN.native_layer_norm_backward.default: _layer_norm_gradients,
    _ATEN.native_batch_norm.default: _batch_norm,
    _ATEN.native_batch_norm_backward.default: _batch_norm_gradients,
}
