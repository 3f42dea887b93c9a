"""Latents by FlashMLA and FlashInfer, and expanded by FlashAttention, behind stand-ins with their signatures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.kernels.library import flash_attention, flash_infer, flash_mla
from attnbench.operator import Impl
from attnbench.problem import Params, Problem
from attnbench.registry import operators, resolve
from tests.kernels.stand_ins import require_same_signature, stand_in
from tests.kernels.test_flash_attention import Calls, of_version_3, of_version_4
from tests.operators.small import Small, close, small

PROBLEM = Problem(128, 12, 3, 2, causal=True, query_len=1)
SHORT_PAGES = replace(PROBLEM, seq_len=13)
"""For FlashInfer, of which a page may have any number of tokens."""

LIBRARIES = {"cuda:flash_mla": PROBLEM, "cuda:flashinfer": SHORT_PAGES}


@dataclass
class FlashMLASchedMeta:
    have_initialized: bool = False
    config: tuple[Any, ...] | None = None


def get_mla_metadata(*args, **kwargs):
    return FlashMLASchedMeta(), None


def flash_mla_with_kvcache(
    q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata, num_splits=None, softmax_scale=None,
    causal=False, is_fp8_kvcache=False, indices=None, attn_sink=None, extra_k_cache=None,
    extra_indices_in_kvcache=None, topk_length=None, extra_topk_length=None,
):  # fmt: skip
    plan = tile_scheduler_metadata
    assert isinstance(plan, FlashMLASchedMeta)
    assert num_splits is None
    config = (*q.shape[:3], *k_cache.shape[1:3], causal, cache_seqlens.tolist())
    assert not plan.have_initialized or plan.config == config
    plan.have_initialized, plan.config = True, config
    assert q.is_contiguous()  # the launcher takes a view of it
    assert k_cache.shape[1:3] == (64, 1)
    assert block_table.dtype == cache_seqlens.dtype == torch.int32
    y = []
    for queries, pages, length in zip(q, block_table, cache_seqlens, strict=True):
        keys = k_cache[pages.long()].flatten(0, 1)[: int(length), 0]
        y.append(last_rows(queries, keys, keys[:, :head_dim_v], softmax_scale, causal))
    return torch.stack(y), None


def flash_mla_sparse_fwd(q, kv, indices, sm_scale, d_v=512, attn_sink=None, topk_length=None):
    assert indices.dtype == torch.int32
    assert all(x.stride(-1) == 1 for x in (q, kv, indices))
    assert kv.shape[1] == indices.shape[1] == 1
    assert indices.shape[2] % 128 == 0
    y = []
    for query, row in zip(q, indices[:, 0], strict=True):
        keys = kv[row[(row >= 0) & (row < len(kv))].long(), 0]
        y.append(last_rows(query.unsqueeze(0), keys, keys[:, :d_v], sm_scale, False)[0])
    return torch.stack(y), None, None


class BatchMLAPagedAttentionWrapper:
    plans = 0

    def __init__(
        self, float_workspace_buffer, use_cuda_graph=False, qo_indptr=None, kv_indptr=None, kv_indices=None,
        kv_len_arr=None, backend="auto",
    ):  # fmt: skip
        pass

    def plan(
        self, qo_indptr, kv_indptr, kv_indices, kv_len_arr, num_heads, head_dim_ckv, head_dim_kpe, page_size, causal,
        sm_scale, q_data_type, kv_data_type, use_profiler=False,
    ):  # fmt: skip
        type(self).plans += 1
        assert {x.dtype for x in (qo_indptr, kv_indptr, kv_indices, kv_len_arr)} == {torch.int32}
        assert (kv_indptr.diff() == 1).all()
        assert (kv_len_arr <= page_size).all()
        self.rows = qo_indptr.tolist()
        self.pages = [(int(kv_indices[page]), int(n)) for page, n in zip(kv_indptr[:-1], kv_len_arr, strict=True)]
        self.shapes = ((num_heads, head_dim_ckv), (num_heads, head_dim_kpe), page_size)
        self.causal, self.scale, self.dtypes = causal, sm_scale, (q_data_type, kv_data_type)

    def run(
        self, q_nope, q_pe, ckv_cache, kpe_cache, out=None, lse=None, return_lse=False, profiler_buffer=None,
        kv_len=None, page_table=None, return_lse_base_on_e=False, o_scale=None, *, ckv_scale=None, ckv_scale_arr=None,
        kpe_scale=None,
    ):  # fmt: skip
        assert (q_nope.shape[1:], q_pe.shape[1:], ckv_cache.shape[1]) == self.shapes
        assert (q_nope.dtype, ckv_cache.dtype) == self.dtypes
        assert ckv_cache.stride(-1) == kpe_cache.stride(-1) == q_nope.stride(-1) == q_pe.stride(-1) == 1
        y = []
        for start, stop, (page, n) in zip(self.rows, self.rows[1:], self.pages, strict=False):
            queries = torch.cat((q_nope[start:stop], q_pe[start:stop]), dim=-1)
            keys = torch.cat((ckv_cache[page, :n], kpe_cache[page, :n]), dim=-1)
            y.append(last_rows(queries, keys, ckv_cache[page, :n], self.scale, self.causal))
        return torch.cat(y)


def last_rows(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """[Q, H, K], [N, K], [N, V] → [Q, H, V]: row r of Q is token N − Q + r."""
    logits = torch.einsum("qhk,nk->hqn", q, k) * scale
    if causal:
        logits = logits.masked_fill(torch.ones_like(logits[0], dtype=torch.bool).triu(1 + len(k) - len(q)), -torch.inf)
    return torch.einsum("hqn,nv->qhv", logits.softmax(dim=-1), v)


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for planned in (flash_mla._planned, flash_infer._planned_latents):
        planned.cache_clear()
    monkeypatch.setattr(flash_infer, "WORKSPACE_BYTES", 8)
    monkeypatch.setattr(BatchMLAPagedAttentionWrapper, "plans", 0)
    stand_in(
        monkeypatch,
        "flash_mla.flash_mla_interface",
        get_mla_metadata=get_mla_metadata,
        flash_mla_with_kvcache=flash_mla_with_kvcache,
        flash_mla_sparse_fwd=flash_mla_sparse_fwd,
    )
    stand_in(monkeypatch, "flashinfer.mla", BatchMLAPagedAttentionWrapper=BatchMLAPagedAttentionWrapper)


def case_of(name: str, query_len: int = 1, batch: int = 2, **params: Any) -> Small:
    return small("mla", replace(LIBRARIES[name], query_len=query_len, batch=batch), form="absorbed", **params)


each_library = pytest.mark.parametrize("name", LIBRARIES)


def test_the_stand_ins_have_the_signatures_of_the_libraries() -> None:
    require_same_signature("flash_mla.flash_mla_interface", flash_mla_with_kvcache)
    require_same_signature("flash_mla.flash_mla_interface", flash_mla_sparse_fwd)
    require_same_signature("flashinfer.mla", BatchMLAPagedAttentionWrapper)


@each_library
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("query_len", [1, 3])
def test_a_step_is_the_same_map(name: str, query_len: int, batch: int, libraries: None) -> None:
    case = case_of(name, query_len, batch)
    for _ in range(2):  # the second by the plan of the first
        assert close(case.impl(name), case.output())
    assert BatchMLAPagedAttentionWrapper.plans == (name == "cuda:flashinfer")


@each_library
def test_the_layer_takes_the_same_step(name: str, libraries: None) -> None:
    case = small("mla", LIBRARIES[name], "layer", form="absorbed")
    assert close(case.impl(name), case.output())


@each_library
def test_a_scale_of_the_absorbed_width_and_a_mask_from_the_first_token_are_noticed(
    name: str, libraries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, right = case_of(name, 3), last_rows

    def scaled(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
        return right(q, k, v, k.shape[-1] ** -0.5, causal)

    def upper_left(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
        return right(q, k[: len(q)], v[: len(q)], scale, causal)

    for wrong in (scaled, upper_left):
        monkeypatch.setitem(globals(), "last_rows", wrong)
        assert not close(case.impl(name), case.output()), wrong
    monkeypatch.setitem(globals(), "last_rows", right)
    assert close(case.impl(name), case.output())


@pytest.mark.parametrize("problem", [replace(SHORT_PAGES, query_len=q) for q in (1, 3, 13)], ids=str)
@pytest.mark.parametrize(
    ("name", "module", "version"),
    [("cuda:fa3", "flash_attn_interface", of_version_3), ("cuda:fa4", "flash_attn.cute", of_version_4)],
)
def test_flash_attention_attends_to_expanded_keys(
    name: str, module: str, version: Any, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    calls: Calls = []
    stand_in(monkeypatch, module, flash_attn_func=version(calls))
    case = small("mla", problem)
    assert close(case.impl(name), case.output())
    assert [shape for shape, _ in calls] == [(2, problem.query_len, 3, 4 + 2)]
    case = small("mla", problem, form="absorbed")
    assert not close(case.impl(name), case.output()), "its scale is that of the keys' own width"


DEEPSEEK = Problem(4096, 128 * 16, 16, causal=True, query_len=1, dtype="bfloat16")


@pytest.mark.parametrize(
    ("name", "changes", "params", "there", "words"),
    [
        ("cuda:flash_mla", {}, {}, True, None),
        ("cuda:flash_mla", {"query_len": 2}, {}, True, None),
        ("cuda:flash_mla", {}, {}, False, "pip install"),
        ("cuda:flash_mla", {}, {"form": "expanded"}, True, "form absorbed"),
        ("cuda:flash_mla", {"seq_len": 4095}, {}, True, "do not divide seq_len 4095"),
        ("cuda:flash_mla", {"query_len": 4096}, {}, True, "query_len < seq_len"),
        ("cuda:flash_mla", {"channels": 64 * 16}, {}, True, "not bfloat16 of 256 + 32"),
        ("cuda:flash_mla", {"dtype": "float32"}, {}, True, "not float32"),
        ("cuda:fa3", {"query_len": 4096}, {"form": "expanded"}, True, None),
        ("cuda:fa4", {"query_len": 4096}, {"form": "expanded"}, True, None),
        ("cuda:fa3", {}, {"form": "expanded"}, False, "pip install"),
        ("cuda:fa3", {}, {}, True, "not absorbed"),
        ("cuda:fa4", {"channels": 64 * 16}, {"form": "expanded"}, True, "not expanded with 96 and 64"),
        ("cuda:flashinfer", {}, {}, True, None),
        ("cuda:flashinfer", {"seq_len": 4095}, {}, True, None),
        ("cuda:flashinfer", {}, {}, False, "pip install flashinfer-python"),
        ("cuda:flashinfer", {}, {"form": "expanded"}, True, "form absorbed"),
        ("cuda:flashinfer", {"query_len": 4096}, {}, True, "query_len < seq_len"),
        ("cuda:flashinfer", {}, {"rope_dim": 32}, True, "not bfloat16 of 512 + 32"),
    ],
)
def test_reasons(
    name: str,
    changes: dict[str, Any],
    params: Params,
    there: bool,
    words: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for module in (flash_mla, flash_infer, flash_attention):
        monkeypatch.setattr(module, "installed", lambda module: there)
    operator = operators()["mla"].load()
    impl: Impl = operator.forms["core"].impls[name]
    given = resolve(operator, {"form": "absorbed", **params})
    reason = impl.why_not(replace(DEEPSEEK, **changes), given, "cuda")
    assert reason is None if words is None else words in str(reason)
    assert (impl.why_not_backward(DEEPSEEK, given, "cuda") is None) == name.startswith("cuda:fa")


def kept_of(query_len: int, scope: Any = "core", top_k: int = 6, **params: Any) -> Small:
    problem = Problem(35, 12, 3, 2, causal=True, query_len=query_len)
    return small("dsa", problem, scope, over="mla", top_k=top_k, **params)


@pytest.mark.parametrize("selection", ["inside", "given"])
@pytest.mark.parametrize("top_k", [6, 34, 200])
@pytest.mark.parametrize("query_len", [1, 3, 33, 35])
def test_kept_tokens_are_the_same_map(query_len: int, top_k: int, selection: str, libraries: None) -> None:
    case = kept_of(query_len, top_k=top_k, selection=selection)
    assert close(case.impl("cuda"), case.output())


@pytest.mark.parametrize("query_len", [1, 35])
def test_the_layer_attends_to_the_same_kept_tokens(query_len: int, libraries: None) -> None:
    case = kept_of(query_len, "layer")
    assert close(case.impl("cuda"), case.output())


def test_a_token_of_another_sample_or_one_that_is_not_kept_is_noticed(
    libraries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, right = kept_of(35), flash_mla_sparse_fwd

    def other_sample(q, kv, indices, *others):
        return right(q, kv, torch.where(indices < 0, -1, indices % 35).int(), *others)

    def empty_slots(q, kv, indices, *others):
        return right(q, kv, indices.clamp(min=0), *others)

    for wrong in (other_sample, empty_slots):
        stand_in(monkeypatch, "flash_mla.flash_mla_interface", flash_mla_sparse_fwd=wrong)
        assert not close(case.impl("cuda"), case.output()), wrong


@pytest.mark.parametrize(
    ("changes", "params", "there", "words"),
    [
        ({}, {}, True, None),
        ({"query_len": 1}, {}, True, None),
        ({"heads": 128, "channels": 128 * 128}, {"selection": "given"}, True, None),
        ({}, {}, False, "pip install"),
        ({}, {"over": "heads"}, True, "over: mla"),
        ({"heads": 32, "channels": 32 * 128}, {}, True, "64 or 128 heads, not bfloat16 of 512 + 64 and 32"),
        ({"dtype": "float16"}, {}, True, "not float16"),
        ({}, {"latent_dim": 256}, True, "256 + 64"),
    ],
)
def test_reasons_of_the_sparse_kernel(
    changes: dict[str, Any], params: Params, there: bool, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(flash_mla, "installed", lambda module: there)
    operator = operators()["dsa"].load()
    impl = operator.forms["core"].impls["cuda"]
    problem = replace(Problem(4096, 64 * 128, 64, causal=True, dtype="bfloat16"), **changes)
    problem = replace(problem, kv_heads=problem.heads)
    given = resolve(operator, {"over": "mla", **params})
    reason = impl.why_not(problem, given, "cuda")
    assert reason is None if words is None else words in str(reason)
    assert "no backward" in str(impl.why_not_backward(problem, given, "cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert reason is not None or "Hopper" in str(impl.why_not(problem, given, "cuda"))
