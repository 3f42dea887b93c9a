"""What operations give on meta tensors by our rules, against torch's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.measure.worker import meta_results
from attnbench.measure.worker.meta_results import result_on_meta

ATEN = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


X, ROW, COLUMN = meta(2, 3, 5), meta(5), meta(2, 3, 1)
TURNED = meta(2, 5, 3).transpose(1, 2)
REPEATED = meta(2, 1, 5).expand(2, 3, 5)
WHOLE, HALF, TRUTH = meta(2, 3, 5, dtype=torch.int64), meta(2, 3, 5, dtype=torch.bfloat16), meta(5, dtype=torch.bool)
IMAGE = meta(2, 3, 5, 7)

CASES: Sequence[tuple[Any, Sequence[Any], Mapping[str, Any]]] = [
    (ATEN.exp.default, (TURNED,), {}),
    (ATEN.exp_.default, (TURNED,), {}),
    (ATEN.exp.default, (WHOLE,), {}),
    (ATEN.neg.default, (REPEATED,), {}),
    (ATEN.add.Tensor, (X, ROW), {"alpha": 2}),
    (ATEN.add.Tensor, (WHOLE, COLUMN), {}),
    (ATEN.add.Tensor, (HALF, X), {}),
    (ATEN.mul.Tensor, (HALF, meta()), {}),
    (ATEN.mul.Tensor, (TURNED, X), {}),
    (ATEN.mul.Tensor, (REPEATED, TURNED), {}),
    (ATEN.mul.Tensor, (meta(3, 5, 2).permute(2, 0, 1), ROW), {}),
    (ATEN.div.Tensor, (WHOLE, 2), {}),
    (ATEN.pow.Tensor_Scalar, (WHOLE, 2), {}),
    (ATEN.pow.Tensor_Scalar, (WHOLE, 2.0), {}),
    (ATEN.lt.Scalar, (TURNED, 0.5), {}),
    (ATEN.where.self, (TRUTH, X, COLUMN), {}),
    (ATEN.gelu.default, (HALF,), {"approximate": "tanh"}),
    (ATEN.floor_divide.default, (WHOLE, 2), {}),
    (ATEN.elu_backward.default, (TURNED, 1.0, 1, 1, False, X), {}),
    (ATEN.sum.dim_IntList, (TURNED, [-1], True), {}),
    (ATEN.mean.dim, (X, [0, 2]), {}),
    (ATEN.mean.default, (X,), {}),
    (ATEN.amax.default, (X, [1]), {}),
    (ATEN.logsumexp.default, (X, [1], True), {}),
    (ATEN.linalg_vector_norm.default, (X, 2, [-1], True), {}),
    (ATEN.any.dim, (meta(3, 0, dtype=torch.bool), -1), {}),
    (ATEN.cumsum.default, (X, 1), {"dtype": torch.float64}),
    (ATEN.mm.default, (meta(2, 3), meta(5, 3).t()), {}),
    (ATEN.bmm.default, (X, meta(2, 5, 4)), {}),
    (ATEN.cat.default, ([X, TURNED, WHOLE], 1), {}),
    (ATEN.cat.default, ([IMAGE, IMAGE.to(memory_format=torch.channels_last)], -2), {}),
    (ATEN._softmax_backward_data.default, (TURNED, X, -1, torch.float32), {}),
    (ATEN.native_layer_norm.default, (TURNED, [5], ROW, None, 1e-5), {}),
    (
        ATEN.native_layer_norm_backward.default,
        (X, X, [5], COLUMN, COLUMN, ROW, None, [True, True, False]),
        {},
    ),
    (ATEN.native_batch_norm.default, (IMAGE, meta(3), meta(3), None, None, True, 0.1, 1e-5), {}),
    (
        ATEN.native_batch_norm_backward.default,
        (IMAGE, IMAGE, meta(3), None, None, meta(3), meta(3), True, 1e-5, [True, True, True]),
        {},
    ),
    (ATEN.eye.default, (3,), {"device": torch.device("meta")}),
]

LEFT: Sequence[tuple[Any, Sequence[Any], Mapping[str, Any]]] = [
    (ATEN.add.Tensor, (WHOLE.transpose(1, 2), TURNED.transpose(1, 2)), {}),
    (ATEN.clone.default, (TURNED,), {"memory_format": torch.contiguous_format}),
    (ATEN.cat.default, ([IMAGE.to(memory_format=torch.channels_last)] * 2, 1), {}),
    (ATEN.native_layer_norm.default, (HALF, [5], None, None, 1e-5), {}),
    (ATEN.sum.dim_IntList, (WHOLE, [1]), {}),
]
"""What the rules know that they do not know."""


def layouts(result: Any) -> list[Any]:
    """The sizes, strides and dtype of each tensor; the stride of a single element says nothing."""
    every = result if isinstance(result, (list, tuple)) else [result]
    return [layout(each) if isinstance(each, Tensor) else each for each in every]


def layout(x: Tensor) -> tuple[Any, ...]:
    return x.dtype, x.shape, [step for step, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def differing() -> list[str]:
    return [
        f"{func} {[*map(layouts, args)]}"
        for func, args, kwargs in [*CASES, *LEFT]
        if layouts(result_on_meta(func, args, kwargs)) != layouts(func(*args, **kwargs))
    ]


def test_results_are_torch_s() -> None:
    assert differing() == []


def test_strides_that_were_forgotten_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_results, "compute_elementwise_output_strides", lambda *of: meta(*of[0].shape).stride())
    assert len(differing()) > 3


def test_torch_is_asked_where_no_rule_knows() -> None:
    def is_left(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        rule = meta_results._rule(func)
        return rule is None or rule(func, *args, **kwargs) is NotImplemented

    assert [str(case[0]) for case in CASES if is_left(*case)] == []
    assert [str(case[0]) for case in LEFT if not is_left(*case)] == []


def test_memory_is_predicted_without_torch_s_compiler() -> None:
    """Its import takes as long as torch's own."""
    code = """
import sys
import torch
from attnbench.measure.worker.forecast import footprint
from attnbench.problem import Problem
from attnbench.registry import operators, resolve

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name == "torch._dynamo":
            raise ImportError(name)

sys.meta_path.insert(0, Refused())
for name in ("softmax", "performer"):
    operator = operators()[name].load()
    assert footprint(operator.forms["block"], Problem(64, 32, 4), resolve(operator, {}), "fwd_bwd")
try:
    torch.empty(2, device="meta") + 1
except ImportError as error:
    print(error)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (answer.stdout, answer.stderr) == ("torch._dynamo\n", ""), "torch's own rule needs it"
