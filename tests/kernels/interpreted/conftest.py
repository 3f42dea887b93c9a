"""The files here run in a process of their own, started by test_interpreted.py with TRITON_INTERPRET=1."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def _poison(x: torch.Tensor) -> torch.Tensor:
    return x.fill_(float("nan")) if x.is_floating_point() else x.fill_(2 ** min(30, 8 * x.itemsize - 2))


@pytest.fixture(autouse=True)
def bfloat16_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bfloat16 as 16-bit integers. It multiplies those: widen them first, which is exact.

    And it cuts float32 off where a GPU rounds to the nearest.
    """
    plain, cut = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        if (source.dtype.scalar, to.scalar) == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(np.array(source.data)).bfloat16().view(torch.uint16).numpy()
            return TensorHandle(rounded, tl.bfloat16)
        if (source.dtype.scalar, to.scalar) == (tl.bfloat16, tl.float32):
            return TensorHandle((source.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
        return cut(self, source, to)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return plain(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_impl)


@pytest.fixture(autouse=True)
def indices_of_one_element(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6's interpreter makes an index of an array of one element in a way that NumPy 2.4 refuses."""
    plain = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, *scope: Any) -> None:
        plain(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_lang_tensor)


PATCHED: set[frozenset[str]] = set()
"""Which of Triton's modules have been patched, as the names that kernels so far know them by."""

KNOWN: set[Any] = set()
"""Functions of kernels whose modules have been."""


@pytest.fixture(autouse=True)
def patched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter patches all of triton.language at every launch and every call of a device function, which takes
    as long as the kernels do. Here, where nothing else uses triton.language, what is patched stays so, and is called
    without a check that it is called from a kernel."""
    plain = interpreter._patch_lang

    def patch_lang(fn: Any) -> Any:
        if fn not in KNOWN:
            modules = frozenset(value.__name__ for value in fn.__globals__.values() if value in (tl, tl.core))
            if modules not in PATCHED:
                plain(fn)
                PATCHED.add(modules)
            KNOWN.add(fn)
        return interpreter._LangPatchScope()

    def patch_attr(owner: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        inner = getattr(member, "__wrapped__", member)

        def call(*args: Any, **kwargs: Any) -> Any:
            kwargs["_semantic"] = interpreter.interpreter_semantic
            return inner(*args, **kwargs)

        scope.set_attr(owner, name, call)

    monkeypatch.setattr(interpreter, "_patch_lang", patch_lang)
    monkeypatch.setattr(interpreter, "_patch_attr", patch_attr)


BLOCK_TYPES: dict[tuple[int, ...], tl.core.block_type] = {}
"""By the id of the element's type, and the shape. A block's type holds its element's, whose id nobody else takes."""

TENSORS: dict[int, tuple[Any, ...]] = {}
"""By the id of a type in BLOCK_TYPES: shape, numel and dtype of a tensor of that type, and its shape for NumPy."""


@pytest.fixture(autouse=True, scope="session")
def types_made_once() -> Iterator[None]:
    """The interpreter makes the type of every intermediate tensor anew, which takes as long as its arithmetic."""
    block, tensor = tl.core.block_type, tl.core.tensor
    init_block, init_tensor = block.__init__, tensor.__init__
    scalar = cache(interpreter._get_np_dtype)

    def same_block(cls: Any, element_ty: Any, shape: Any) -> Any:
        key = (id(element_ty), *(n.value if isinstance(n, tl.constexpr) else n for n in shape))
        if key not in BLOCK_TYPES:
            first = object.__new__(cls)
            init_block(first, element_ty, shape)
            BLOCK_TYPES[key] = first
        return BLOCK_TYPES[key]

    def tensor_of(self: Any, handle: Any, type: Any) -> None:
        if id(type) in TENSORS:
            self.handle, self.type = handle, type
            self.shape, self.numel, self.dtype, _ = TENSORS[id(type)]
            return
        init_tensor(self, handle, type)
        if isinstance(type, block):
            TENSORS[id(type)] = self.shape, self.numel, self.dtype, tuple(n.value for n in self.shape)

    def np_dtype(type: Any) -> np.dtype[Any]:
        element = type.element_ty if isinstance(type, block) else type
        return np.dtype(np.uint64) if isinstance(element, tl.pointer_type) else scalar(element)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "__new__", same_block)
        patch.setattr(block, "__init__", lambda self, element_ty, shape: None)
        patch.setattr(tensor, "__init__", tensor_of)
        patch.setattr(interpreter, "_get_np_dtype", np_dtype)
        yield


STRETCHED: dict[tuple[int, int], tuple[Any, ...]] = {}
"""By the ids of the types of two operands: these types, which keeps the ids theirs, and those that both come to."""

EXPANDED: dict[tuple[int, int], Any] = {}
"""By the id of a type in BLOCK_TYPES, and an axis: the type with one more."""

CONSTANTS: dict[tuple[Any, ...], tuple[Any, ...]] = {}
"""By the id of an operand's type and a number on its right: this type, which keeps the id its, and the number as a
tensor like it. No operation writes to its operands."""

NUMBERS = {tl.int1, tl.int8, tl.int16, tl.int32, tl.int64, tl.uint8, tl.uint16, tl.uint32, tl.uint64}
NUMBERS |= {tl.float16, tl.bfloat16, tl.float32, tl.float64}


@pytest.fixture(autouse=True, scope="session")
def what_is_the_same_is_not_made_alike() -> Iterator[None]:
    """Operands of one type need no other type and no other shape, and what two types or an axis come to is found once.
    And the interpreter computes whether an integer overflows, in 64 bits, for an assertion that it leaves out where it
    does not debug, which it never does.
    """
    semantic, dtype, tensor = TritonSemantic, tl.core.dtype, tl.core.tensor
    broadcast, common, equal = semantic.broadcast_impl_value, semantic.computation_type_impl, dtype.__eq__
    checked, expand = semantic.binary_op_type_checking_impl, semantic.expand_dims
    numbers = {id(number) for number in NUMBERS}
    assert not interpreter.interpreter_builder.options.debug

    def stretched(x: Any, type: Any) -> Any:
        if x.type is type:
            return x
        data = np.empty(TENSORS[id(type)][3], interpreter._get_np_dtype(type))
        data[...] = x.handle.data
        return tensor(TensorHandle(data, x.handle.dtype.scalar), type)

    def broadcast_impl_value(self: Any, a: Any, b: Any) -> Any:
        if a.type is b.type:
            return a, b
        key = id(a.type), id(b.type)
        if key not in STRETCHED:
            results = broadcast(self, a, b)
            STRETCHED[key] = a.type, b.type, *(x.type for x in results)
            return results
        return stretched(a, STRETCHED[key][2]), stretched(b, STRETCHED[key][3])

    def expand_dims(self: Any, x: Any, axis: int) -> Any:
        key = id(x.type), axis
        if key not in EXPANDED:
            result = expand(self, x, axis)
            if id(x.type) in TENSORS:
                EXPANDED[key] = result.type
            return result
        type = EXPANDED[key]
        return tensor(TensorHandle(x.handle.data.reshape(TENSORS[id(type)][3]), x.handle.dtype.scalar), type)

    def binary_op_type_checking(
        self: Any, a: Any, b: Any, ptr_a: bool = False, ptr_b: bool = False, both: bool = True, div_or_mod: bool = False
    ) -> Any:
        if type(a) is tensor is type(b) and a.dtype is b.dtype and id(a.dtype) in numbers and not div_or_mod:
            return broadcast_impl_value(self, a, b)
        if type(a) is not tensor or type(b) not in (int, float):
            return checked(self, a, b, ptr_a, ptr_b, both, div_or_mod)
        key = id(a.type), str(b), both, div_or_mod
        if key in CONSTANTS:
            return a, CONSTANTS[key][1]
        like, number = checked(self, a, b, ptr_a, ptr_b, both, div_or_mod)
        if like is a:
            CONSTANTS[key] = a.type, number
        return like, number

    def computation_type(self: Any, a: Any, a_is_scalar: bool, b: Any, b_is_scalar: bool, divided: bool) -> Any:
        return a if a is b and not divided else common(self, a, a_is_scalar, b, b_is_scalar, divided)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic, "broadcast_impl_value", broadcast_impl_value)
        patch.setattr(semantic, "expand_dims", expand_dims)
        patch.setattr(semantic, "binary_op_type_checking_impl", binary_op_type_checking)
        patch.setattr(semantic, "computation_type_impl", computation_type)
        patch.setattr(semantic, "binary_op_sanitize_overflow_impl", lambda self, a, b, operation: None)
        patch.setattr(dtype, "__eq__", lambda self, other: self is other or equal(self, other))
        yield


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a kernel leaves unwritten is NaN, or an index far outside."""
    for name in ("empty", "empty_like", "empty_strided"):
        plain = getattr(torch, name)

        def empty(*args: Any, plain: Any = plain, **kwargs: Any) -> torch.Tensor:
            return _poison(plain(*args, **kwargs))

        monkeypatch.setattr(torch, name, empty)
