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


@pytest.fixture(autouse=True)
def patched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter patches all of triton.language at every launch and every call of a device function, which takes
    as long as the kernels do. Here, where nothing else uses triton.language, what is patched stays so."""
    plain = interpreter._patch_lang

    def patch_lang(fn: Any) -> Any:
        modules = frozenset(value.__name__ for value in fn.__globals__.values() if value in (tl, tl.core))
        if modules not in PATCHED:
            plain(fn)
            PATCHED.add(modules)
        return interpreter._LangPatchScope()

    monkeypatch.setattr(interpreter, "_patch_lang", patch_lang)


BLOCK_TYPES: dict[tuple[int, ...], tl.core.block_type] = {}
"""By the id of the element's type, and the shape. A block's type holds its element's, whose id nobody else takes."""

TENSORS: dict[int, tuple[Any, ...]] = {}
"""By the id of a type in BLOCK_TYPES: shape, numel and dtype of a tensor of that type."""


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
            self.shape, self.numel, self.dtype = TENSORS[id(type)]
            return
        init_tensor(self, handle, type)
        if isinstance(type, block):
            TENSORS[id(type)] = self.shape, self.numel, self.dtype

    def np_dtype(type: Any) -> np.dtype[Any]:
        element = type.element_ty if isinstance(type, block) else type
        return np.dtype(np.uint64) if isinstance(element, tl.pointer_type) else scalar(element)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "__new__", same_block)
        patch.setattr(block, "__init__", lambda self, element_ty, shape: None)
        patch.setattr(tensor, "__init__", tensor_of)
        patch.setattr(interpreter, "_get_np_dtype", np_dtype)
        yield


@pytest.fixture(autouse=True, scope="session")
def what_is_the_same_is_not_made_alike() -> Iterator[None]:
    """Operands of one type need no other type and no other shape. And the interpreter computes whether an integer
    overflows, in 64 bits, for an assertion that it leaves out where it does not debug, which it never does.
    """
    semantic, dtype = TritonSemantic, tl.core.dtype
    broadcast, common, equal = semantic.broadcast_impl_value, semantic.computation_type_impl, dtype.__eq__
    assert not interpreter.interpreter_builder.options.debug

    def broadcast_impl_value(self: Any, a: Any, b: Any) -> Any:
        return (a, b) if a.type is b.type else broadcast(self, a, b)

    def computation_type(self: Any, a: Any, a_is_scalar: bool, b: Any, b_is_scalar: bool, divided: bool) -> Any:
        return a if a is b and not divided else common(self, a, a_is_scalar, b, b_is_scalar, divided)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic, "broadcast_impl_value", broadcast_impl_value)
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
