"""What an operator returns, compared with its cell: the tensors of its `Inputs`, and the output of a call.

Each function gives a sentence that names the tensor and what was expected, or None where everything fits.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from attnbench.inputs import torch_dtype
from attnbench.operator import Inputs
from attnbench.problem import Problem

PLAIN = (Tensor, torch.nn.Parameter)
"""The types whose values are there when a call returns: any other subclass may leave work to whoever looks at it."""

DRAW = "make_inputs draws on generator.device, in torch_dtype(problem) of attnbench.inputs, as its helpers do"


def misfit_of_inputs(inputs: object, problem: Problem, device: str) -> str | None:
    """Why inputs are not those of a problem on a device. Types, dtypes, devices and sizes; not values."""
    if not isinstance(inputs, Inputs):
        return f"make_inputs returns {type(inputs).__name__}; expected attnbench.operator.Inputs"
    if not inputs.data:
        return "make_inputs returns no data tensor; expected at least one"
    groups = {"data": inputs.data, "parameters": inputs.parameters, "choices": inputs.choices, "state": inputs.state}
    group_of: dict[str, str] = {}
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            if name in group_of:
                return f"make_inputs returns '{name}' in {group_of[name]} and in {group}; expected each name once"
            group_of[name] = group
            fault = _misfit_of_one(group, tensor, problem, device)
            if fault is not None:
                return f"make_inputs returns {group} '{name}' as {described(tensor)}; expected {fault}. {DRAW}"
    if not any(_of_size(tensor, problem) for tensor in inputs.data.values()):
        shapes = ", ".join(f"'{name}' {list(tensor.shape)}" for name, tensor in inputs.data.items())
        return (
            f"make_inputs returns data of another size: {shapes}; expected one at least with the dimensions "
            f"{_size(problem)} of the cell"
        )
    return None


def not_finite(inputs: Inputs) -> str | None:
    """Which tensor holds NaN or infinity."""
    for name, tensor in inputs.tensors().items():
        if not is_finite(tensor):
            return f"make_inputs returns '{name}' ({described(tensor)}) with values that are NaN or infinite"
    return None


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite: of floating-point numbers by the least and the largest, in one pass."""
    if not tensor.numel() or tensor.is_complex():
        return bool(tensor.isfinite().all())
    return all(math.isfinite(end) for end in tensor.aminmax())


def misfit_of_output(
    output: object, problem: Problem, device: str, *, differentiable: bool, name: str = "output"
) -> str | None:
    """Why the output of a call cannot be that of a problem on a device. Its shape is the check's business.

    Args:
        differentiable: the call was made for its gradients as well.
        name: what it is; a new state may be float32 whatever the problem's dtype is.
    """
    if type(output) not in PLAIN:
        return (
            f"the {name} is a {type(output).__module__}.{type(output).__name__}; expected a plain torch.Tensor, "
            "whose values are there when the call returns"
        )
    assert isinstance(output, Tensor)
    wanted = torch_dtype(problem)
    if output.dtype != wanted and not (name != "output" and output.dtype == torch.float32):
        return f"the {name} is {described(output)}; expected {wanted}"
    if output.device.type != device:
        return f"the {name} is {described(output)}; expected it on {device}"
    if output.layout is not torch.strided or output.is_conj() or output.is_neg() or output._is_zerotensor():
        return f"the {name} is {described(output)} and not stored as its values; expected a strided tensor"
    if differentiable and not output.requires_grad:
        return f"the output ({described(output)}) has no gradient; in fwd_bwd a call must be differentiable"
    return None


def described(tensor: object) -> str:
    """Dtype, shape and device of a tensor, and what of it would surprise; or the type of what is none."""
    if not isinstance(tensor, Tensor):
        return type(tensor).__name__
    kind = "" if type(tensor) in PLAIN else f"{type(tensor).__name__} "
    strided = tensor.layout is torch.strided
    layout = "" if strided else f", {tensor.layout}"
    if strided and not tensor.is_contiguous():
        layout = f", not contiguous (strides {list(tensor.stride())})"
    return f"{kind}{tensor.dtype} {list(tensor.shape)} on {tensor.device}{layout}"


def _misfit_of_one(group: str, tensor: object, problem: Problem, device: str) -> str | None:
    """What was expected of a tensor that does not fit. Choices may be whole numbers, booleans or float32 as well."""
    if type(tensor) not in PLAIN:
        return "a plain torch.Tensor"
    assert isinstance(tensor, Tensor)
    wanted = torch_dtype(problem)
    if group == "state" and tensor.dtype not in (wanted, torch.float32):
        return f"{wanted}, the cell's dtype, or float32"
    if group in ("data", "parameters") and tensor.dtype != wanted:
        return f"{wanted}, the cell's dtype"
    if group == "choices" and (tensor.is_floating_point() or tensor.is_complex()):
        allowed = (wanted, torch.float32)
        if tensor.dtype not in allowed:
            return f"{' or '.join(sorted({str(dtype) for dtype in allowed}))}, or whole numbers"
    if tensor.device.type != device:
        return f"it on {device}"
    if tensor.layout is not torch.strided or not tensor.is_contiguous():
        return "a contiguous one"
    if tensor.requires_grad:
        return "one without requires_grad: attnbench asks for the gradients itself"
    return None


def _of_size(tensor: Tensor, problem: Problem) -> bool:
    """Whether a tensor has a problem's batch and tokens among its dimensions, apart, or multiplied as one."""
    shape = list(tensor.shape)
    tokens = problem.query_len in shape or (problem.height, problem.width) in list(pairwise(shape))
    return (problem.batch in shape and tokens) or problem.batch * problem.query_len in shape


def _size(problem: Problem) -> str:
    image = f" (or {problem.height} × {problem.width})" if problem.domain == "image" else ""
    return f"{problem.batch} (batch) and {problem.query_len} ({'new ' if problem.past else ''}tokens){image}"
