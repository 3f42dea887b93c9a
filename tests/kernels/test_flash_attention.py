"""The packages of FlashAttention behind stand-ins with their signatures: layout, causality, limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.kernels.library.fast_exact import fast_exact
from attnbench.kernels.library.flash_attention import PACKAGES
from attnbench.problem import DTYPES, Problem
from attnbench.registry import operators
from tests.kernels.stand_ins import require_same_signature, stand_in
from tests.operators.small import close, small

Calls = list[tuple[tuple[int, ...], int]]
Window = tuple[Any, Any]

CASES = [
    Problem(11, 16, 2, batch=3),
    Problem(11, 16, 2, batch=3, causal=True),
    Problem(11, 32, 4, kv_heads=2, causal=True),
    Problem(11, 32, 4, kv_heads=2, causal=True, query_len=3),
    Problem(11, 32, 4, kv_heads=1, causal=True, query_len=1),
]


def attended(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: Window = (-1, -1)) -> Tensor:
    """[B, N, H, D]; the causal form is that of the last rows."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = allowed(q.shape[2], k.shape[2], causal, window)
    return scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(1, 2)


def allowed(queries: int, keys: int, causal: bool, window: Window) -> Tensor:
    """Keys from `window[0]` before a query on, and to `window[1]` after it, or to itself; −1 and None: to the end."""
    back = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    before, after = (keys if side in (-1, None) else side for side in window)
    return (back <= before) & (back >= (0 if causal else -after))


def logsumexp(q: Tensor, k: Tensor, causal: bool, window: Window) -> Tensor:
    """[B, H, N], without a gradient, as two of the packages leave it."""
    keys = k.repeat_interleave(q.shape[2] // k.shape[2], 2).transpose(1, 2)
    scores = q.transpose(1, 2) @ keys.mT * q.shape[-1] ** -0.5
    outside = ~allowed(q.shape[1], k.shape[1], causal, window)
    return scores.masked_fill(outside, float("-inf")).logsumexp(-1).detach()


def of_version_2(calls: Calls) -> Callable[..., Any]:
    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
        deterministic=False, return_attn_probs=False,
    ):  # fmt: skip
        calls.append((tuple(q.shape), 0))
        y = attended(q, k, v, causal, window_size)
        return (y, logsumexp(q, k, causal, window_size), None) if return_attn_probs else y

    return flash_attn_func


def of_version_3(calls: Calls, pair: bool = False) -> Callable[..., Any]:
    def flash_attn_func(
        q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False,
    ):  # fmt: skip
        calls.append((tuple(q.shape), num_splits))
        y = attended(q, k, v, causal, window_size)
        return (y, logsumexp(q, k, causal, window_size)) if pair or return_attn_probs else y

    return flash_attn_func


def of_version_4(calls: Calls) -> Callable[..., Any]:
    def flash_attn_func(
        q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, window_size=(None, None),
        learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, score_mod=None,
        score_mod_bwd=None, mask_mod=None, aux_tensors=None, aux_scalars=None, block_sparse_tensors=None,
        block_sparse_tensors_bwd=None, return_lse=False, gather_bwd_recompute_p=False, gather_bwd_token_chunk=None,
    ):  # fmt: skip
        calls.append((tuple(q.shape), num_splits))
        if learnable_sink is None:
            return attended(q, k, v, causal, window_size), None
        zero = torch.zeros_like(k[:, :1])  # a key whose logit is the sink, with a value of 0
        bias = torch.zeros(q.shape[2], q.shape[1], k.shape[1] + 1, dtype=q.dtype)
        bias[..., 1:].masked_fill_(~allowed(q.shape[1], k.shape[1], causal, window_size), float("-inf"))
        bias = torch.cat((learnable_sink.view(-1, 1, 1).expand(-1, q.shape[1], 1), bias[..., 1:]), -1)
        q, k, v = (x.transpose(1, 2) for x in (q, torch.cat((zero, k), 1), torch.cat((zero, v), 1)))
        return scaled_dot_product_attention(q, k, v, bias, enable_gqa=True).transpose(1, 2), None

    return flash_attn_func


def stepped(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, past: int, causal: bool, window: Window
) -> tuple[Tensor, Tensor]:
    """[B, N, H, D] and [B, H, N]; the new keys and values are written after the first `past` of the caches."""
    for cache, new in ((k_cache, k), (v_cache, v)):
        cache[:, past : past + new.shape[1]] = new
    return attended(q, k_cache, v_cache, causal, window), logsumexp(q, k_cache, causal, window)


def step_of_version_2(calls: Calls) -> Callable[..., Any]:
    def flash_attn_with_kvcache(
        q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
        cache_batch_idx=None, cache_leftpad=None, block_table=None, softmax_scale=None, causal=False,
        window_size=(-1, -1), softcap=0.0, rotary_interleaved=True, alibi_slopes=None, num_splits=0,
        return_softmax_lse=False,
    ):  # fmt: skip
        calls.append((tuple(q.shape), num_splits))
        y, lse = stepped(q, k_cache, v_cache, k, v, cache_seqlens, causal, window_size)
        return (y, lse) if return_softmax_lse else y

    return flash_attn_with_kvcache


def step_of_version_3(calls: Calls) -> Callable[..., Any]:
    def flash_attn_with_kvcache(
        q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
        cache_batch_idx=None, cache_leftpad=None, page_table=None, cu_seqlens_q=None, cu_seqlens_k_new=None,
        max_seqlen_q=None, rotary_seqlens=None, q_descale=None, k_descale=None, v_descale=None, softmax_scale=None,
        causal=False, window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True,
        scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0, return_softmax_lse=False,
    ):  # fmt: skip
        calls.append((tuple(q.shape), num_splits))
        y, lse = stepped(q, k_cache, v_cache, k, v, cache_seqlens, causal, window_size)
        return (y, lse) if return_softmax_lse else y

    return flash_attn_with_kvcache


STAND_INS = {
    "flash_attn": ("flash_attn.flash_attn_interface", (of_version_2, step_of_version_2)),
    "fa3": ("flash_attn_interface", (of_version_3, step_of_version_3)),
    "fa4": ("flash_attn.cute", (of_version_4,)),
}


def installed_as(name: str, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    module, functions = STAND_INS[name]
    stand_in(monkeypatch, module, **{(function := each(calls)).__name__: function for each in functions})


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


def test_softmax_lists_every_package() -> None:
    assert STAND_INS.keys() == PACKAGES.keys()
    for scope in ("core", "layer"):
        assert {f"cuda:{name}" for name in PACKAGES} < set(operators()["softmax"].load().forms[scope].impls)


@pytest.mark.parametrize("name", STAND_INS)
def test_a_stand_in_has_the_signature_of_its_package(name: str) -> None:
    module, functions = STAND_INS[name]
    for each in functions:
        require_same_signature(module, each([]))


@pytest.mark.parametrize("problem", CASES, ids=str)
@pytest.mark.parametrize("name", STAND_INS)
def test_a_package_is_called_with_tokens_before_heads(
    name: str, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Calls = []
    installed_as(name, calls, monkeypatch)
    case = small("softmax", problem)
    assert close(case.impl(f"cuda:{name}"), case.output())
    assert [shape for shape, _ in calls] == [(problem.batch, problem.query_len, problem.heads, problem.head_dim)]


def test_another_causality_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(q: Tensor, k: Tensor, v: Tensor, causal: bool, num_splits: int) -> Any:
        return attended(q, k, v, False), None

    stand_in(monkeypatch, "flash_attn.cute", flash_attn_func=full)
    case = small("softmax", CASES[1])
    assert not close(case.impl("cuda:fa4"), case.output())


def test_gradients_go_through_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "flash_attn.cute", flash_attn_func=of_version_4([]))
    case = small("softmax", CASES[2])
    own, expected = case.gradients(lambda each: each.impl("cuda:fa4")), case.gradients()
    assert all(close(own[name], expected[name]) for name in expected)


def test_the_first_releases_of_version_3_give_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "flash_attn_interface", flash_attn_func=of_version_3([], pair=True))
    case = small("softmax", CASES[1])
    assert close(case.impl("cuda:fa3"), case.output())


@pytest.mark.parametrize("name", ["flash_attn", "fa3"])
def test_new_tokens_are_written_to_the_cache_by_the_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_as(name, [], monkeypatch)
    case = small("softmax", CASES[3])
    expected = case.output()
    for cache, new in (("k_cache", "k"), ("v_cache", "v")):
        case.inputs.state[cache][:, :, -3:] = float("nan")
        assert case.inputs.data[new].isfinite().all()
    assert close(case.impl(f"cuda:{name}"), expected)


@pytest.mark.parametrize("sink", ["none", "logit"])
@pytest.mark.parametrize(("window", "query_len"), [(4, 11), (30, 11), (4, 3), (4, 1), (30, 3)])
@pytest.mark.parametrize("name", STAND_INS)
def test_a_window_and_a_sink_logit_are_what_the_reference_has(
    name: str, window: int, query_len: int, sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_as(name, [], monkeypatch)
    problem = Problem(11, 32, 4, kv_heads=2, causal=True, query_len=query_len)
    case = small("sliding_window", problem, window=window, sink=sink)
    expected = case.output()
    assert close(case.impl(f"cuda:{name}"), expected)
    if sink == "logit":
        other = replace(case.inputs, parameters={"sink_logit": case.tensors["sink_logit"] + 1})
        assert not close(replace(case, inputs=other).impl(f"cuda:{name}"), expected)
    if (window, query_len) in ((4, 11), (4, 3)):
        narrower = replace(case, params={**case.params, "window": window - 1})
        assert not close(narrower.impl(f"cuda:{name}"), expected)


def test_version_4_alone_has_the_gradient_of_a_sink_logit(monkeypatch: pytest.MonkeyPatch) -> None:
    impls = operators()["sliding_window"].load().forms["core"].impls
    case = small("sliding_window", CASES[2], window=4, sink="logit")
    expected = case.gradients()
    for name in STAND_INS:
        installed_as(name, [], monkeypatch)
        ours = case.gradients(lambda each, name=name: each.impl(f"cuda:{name}"))
        same = close(ours["q"], expected["q"])
        reason = impls[f"cuda:{name}"].why_not_backward(case.problem, case.params, "cuda")
        assert same is (reason is None) is (name == "fa4")
        assert impls[f"cuda:{name}"].why_not_backward(case.problem, {"sink": "none"}, "cuda") is None
    assert close(ours["sink_logit"], expected["sink_logit"])


def test_sink_tokens_beside_a_window_are_no_pattern_of_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnbench.kernels.library.flash_attention.installed", lambda module: True)
    impl = operators()["sliding_window"].load().forms["core"].impls["cuda:fa3"]
    params = {"window": 4, "sink": "tokens", "sink_tokens": 2}
    for seq_len, query_len, able in ((11, 11, False), (6, 6, True), (11, 1, True), (11, 2, False)):
        problem = Problem(seq_len, 32, 4, causal=True, query_len=query_len, dtype="bfloat16")
        reason = impl.why_not(problem, params, "cuda")
        assert reason is None if able else "has no window of 4 tokens beside sink tokens" in str(reason)


@pytest.mark.parametrize(
    ("capability", "head_dim", "able"),
    [((9, 0), 256, True), ((10, 0), 128, True), ((10, 0), 256, False), ((12, 0), 64, False)],
)
def test_where_version_4_takes_a_sink_logit(
    capability: tuple[int, int], head_dim: int, able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    problem = Problem(8, head_dim, dtype="float16")
    assert PACKAGES["fa4"].unfit(problem) is None
    assert (PACKAGES["fa4"].unfit(problem, sink_logit=True) is None) is able


@pytest.mark.parametrize(("capability", "splits"), [((9, 0), 1), ((10, 0), 0)])
def test_version_4_splits_the_keys_of_a_decoding_step_where_it_can(
    capability: tuple[int, int], splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Calls = []
    stand_in(monkeypatch, "flash_attn.cute", flash_attn_func=of_version_4(calls))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    small("softmax", CASES[4]).impl("cuda:fa4")
    small("softmax", CASES[1]).impl("cuda:fa4")
    assert [number for _, number in calls] == [splits, 1]


def test_packages_of_one_first_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    for name in ("__init__", "interface"):
        (tmp_path / "flash_attn" / "cute" / f"{name}.py").write_text("raise RuntimeError('imported')")
    assert PACKAGES["fa4"].absent() is None
    for name in ("flash_attn", "fa3"):
        assert f"is not installed: {PACKAGES[name].install}" in str(PACKAGES[name].absent())
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "flash_attn" / "flash_attn_interface.py").write_text("raise RuntimeError('imported')")
    assert PACKAGES["flash_attn"].absent() is None
    assert PACKAGES["fa4"].absent() is None


@pytest.mark.parametrize(
    ("capability", "names"), [(8, []), (9, ["fa3", "fa4", "cudnn"]), (10, ["fa4", "cudnn"]), (12, ["fa4", "cudnn"])]
)
def test_what_is_fast_on_a_gpu_is_known_with_what_installs_it(
    capability: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr("attnbench.kernels.library.flash_attention.installed", lambda module: False)
    absent = {name: f"{PACKAGES[name].name} is not installed: {PACKAGES[name].install}" for name in ("fa3", "fa4")}
    assert fast_exact(capability) == {f"cuda:{name}": absent.get(name, "") for name in names}
    assert set(fast_exact(9)) < set(operators()["softmax"].load().forms["core"].impls)


@pytest.mark.parametrize(
    ("name", "capability", "head_dim", "words"),
    [
        ("flash_attn", (8, 6), 256, None),
        ("flash_attn", (7, 5), 64, "8.0"),
        ("flash_attn", (9, 0), 264, "8 to 256"),
        ("fa3", (9, 0), 256, None),
        ("fa3", (10, 0), 64, "Hopper"),
        ("fa4", (9, 0), 192, None),
        ("fa4", (9, 0), 20, "multiples of 8"),
        ("fa4", (10, 0), 192, "8 to 128 or 256"),
        ("fa4", (10, 0), 256, None),
        ("fa4", (8, 0), 64, "Hopper and Blackwell"),
    ],
)
def test_what_a_package_takes_is_said(
    name: str, capability: tuple[int, int], head_dim: int, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    reason = PACKAGES[name].unfit(Problem(8, head_dim, dtype="float16"))
    assert reason is None if words is None else words in str(reason)


def test_half_precisions_are_what_packages_take() -> None:
    for package in PACKAGES.values():
        taken = [dtype for dtype in DTYPES if package.unfit(Problem(8, 64, dtype=dtype)) is None]
        assert set(taken) == {"bfloat16", "float16"}
