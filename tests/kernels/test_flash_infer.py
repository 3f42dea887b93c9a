"""FlashInfer's decoding behind stand-ins with its signatures: one sample is a call, several are pages of a plan."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.kernels.library import flash_infer
from attnbench.problem import Problem
from tests.kernels.stand_ins import require_same_signature, stand_in
from tests.operators.small import close, small

ONE = Problem(11, 32, 4, kv_heads=2, causal=True, query_len=1)


def single_decode_with_kv_cache(
    q, k, v, kv_layout="NHD", pos_encoding_mode="NONE", use_tensor_cores=False, q_scale=None, k_scale=None,
    v_scale=None, window_left=-1, logits_soft_cap=None, sm_scale=None, rope_scale=None, rope_theta=None,
    return_lse=False,
):  # fmt: skip
    assert kv_layout == "HND"
    return scaled_dot_product_attention(q[:, None], k, v, enable_gqa=True)[:, 0]


class BatchDecodeWithPagedKVCacheWrapper:
    plans = 0

    def __init__(
        self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, use_tensor_cores=False,
        paged_kv_indptr_buffer=None, paged_kv_indices_buffer=None, paged_kv_last_page_len_buffer=None, backend="auto",
        jit_args=None,
    ):  # fmt: skip
        assert kv_layout == "HND"

    def plan(
        self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size,
        *deprecated_positional_args, **kwargs,
    ):  # fmt: skip
        assert not deprecated_positional_args
        type(self).plans += 1
        self.planned = [(int(indices[page]), int(n)) for page, n in zip(indptr[:-1], last_page_len, strict=True)]
        assert [page for page, _ in self.planned] == [*range(len(self.planned))]
        assert (indptr.diff() == 1).all()
        self.shape = (num_qo_heads, num_kv_heads, page_size, head_dim)

    def run(
        self, q, paged_kv_cache, *args, q_scale=None, k_scale=None, v_scale=None, out=None, lse=None,
        return_lse=False, enable_pdl=None, window_left=None, sinks=None, q_len_per_req=None,
        skip_softmax_threshold_scale_factor=None, kv_cache_sf=None,
    ):  # fmt: skip
        keys, values = paged_kv_cache
        assert (q.shape[1], *keys.shape[1:]) == self.shape
        samples = [
            single_decode_with_kv_cache(one, keys[page, :, :n], values[page, :, :n], kv_layout="HND")
            for one, (page, n) in zip(q, self.planned, strict=True)
        ]
        return torch.stack(samples)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    functions = {each.__name__: each for each in (single_decode_with_kv_cache, BatchDecodeWithPagedKVCacheWrapper)}
    flash_infer._planned.cache_clear()
    monkeypatch.setattr(flash_infer, "WORKSPACE_BYTES", 8)
    monkeypatch.setattr(BatchDecodeWithPagedKVCacheWrapper, "plans", 0)
    return stand_in(monkeypatch, "flashinfer.decode", **functions)


def test_the_stand_ins_have_the_signatures_of_the_library() -> None:
    require_same_signature("flashinfer.decode", single_decode_with_kv_cache)
    require_same_signature("flashinfer.decode", BatchDecodeWithPagedKVCacheWrapper)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_step_is_the_same_map(batch: int, kv_heads: int, library: ModuleType) -> None:
    case = small("softmax", replace(ONE, batch=batch, kv_heads=kv_heads))
    assert close(case.impl("cuda:flashinfer"), case.output())
    assert close(case.impl("cuda:flashinfer"), case.output())
    assert BatchDecodeWithPagedKVCacheWrapper.plans == (batch > 1)


def test_another_cache_is_noticed(library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        return single_decode_with_kv_cache(q, k[:, :-1], v[:, :-1], **more)

    monkeypatch.setattr(library, "single_decode_with_kv_cache", short)
    case = small("softmax", ONE)
    assert not close(case.impl("cuda:flashinfer"), case.output())


@pytest.mark.parametrize(
    ("changes", "there", "words"),
    [
        ({}, ("flashinfer.decode", "flashinfer_jit_cache"), None),
        ({}, ("flashinfer.decode",), "nvcc"),
        ({}, (), "pip install flashinfer-python"),
        ({"query_len": 2}, ("flashinfer.decode",), "query_len 1"),
        ({"query_len": 1024}, ("flashinfer.decode",), "query_len 1"),
        ({"channels": 128}, ("flashinfer.decode",), "head_dim 64, 128, 256"),
        ({"dtype": "float32"}, ("flashinfer.decode",), "float16 and bfloat16"),
    ],
)
def test_reasons(
    changes: dict[str, Any], there: tuple[str, ...], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(flash_infer, "installed", lambda name: name in there)
    monkeypatch.setattr("shutil.which", lambda name: None)
    problem = replace(Problem(1024, 512, 4, causal=True, query_len=1, dtype="bfloat16"), **changes)
    reason = flash_infer.why_not(problem)
    assert reason is None if words is None else words in str(reason)
