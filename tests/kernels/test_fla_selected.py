"""NSA and MoBA by flash-linear-attention, with dense stand-ins of its own signatures, on blocks chosen by attnbench."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.kernels.flex import windows
from attnbench.kernels.library.fla_selected import chosen_before
from attnbench.problem import Problem, Scope
from attnbench.registry import operators, resolve
from tests.kernels.agreement import disagreements
from tests.kernels.stand_ins import arguments, require_same_signature, stand_in
from tests.operators.sparse.test_cuda_paths import by_tiles

N = 29
MOBA = {"block": 4, "top_k": 3}
SAME = ("length", "step", "select")
NSA: dict[str, Any] = {"length": 4, "step": 4, "select": 4, "blocks": 5, "window": 7}


def softmax_over(scores: Tensor, allowed: Tensor, values: Tensor) -> Tensor:
    """[..., queries, channels]; 0 where nothing is allowed."""
    p = scores.masked_fill(~allowed, -1e30).softmax(dim=-1)
    return (p * allowed.any(dim=-1, keepdim=True)) @ values


def parallel_nsa(  # type: ignore[no-untyped-def]
    q, k, v, g_cmp=None, g_slc=None, g_swa=None, block_indices=None, block_counts=16, block_size=64, window_size=0,
    scale=None, cu_seqlens=None,
):  # fmt: skip
    """As its kernels: slots below 0 and of later blocks are skipped; backward takes a power of two of slots."""
    assert window_size == 0, "its window needs flash-attn"
    assert block_indices.dtype in (torch.int32, torch.int64)
    slots = block_indices.shape[-1]
    assert slots & (slots - 1) == 0
    assert block_counts <= slots
    warnings.warn("`block_indices` is provided, overriding the selection computed from compression", stacklevel=1)
    n, group = q.shape[1], q.shape[2] // k.shape[2]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    token, blocks = torch.arange(n), n // block_size

    def of_heads(x: Tensor) -> Tensor:
        return x.repeat_interleave(group, dim=1)

    means = (x[:, :, : blocks * block_size].unflatten(2, (blocks, block_size)).mean(dim=3) for x in (k, v))
    k_cmp, v_cmp = map(of_heads, means)
    ended = (torch.arange(blocks) + 1) * block_size <= token[:, None] + 1
    o_cmp = softmax_over(scale * q @ k_cmp.mT, ended, v_cmp).transpose(1, 2)
    block_of = token // block_size
    indices = of_heads(block_indices[..., :block_counts].transpose(1, 2))  # [B, HQ, T, S]
    allowed = (indices.unsqueeze(-1) == block_of).any(dim=-2) & (token <= token[:, None])
    o_slc = softmax_over(scale * q @ of_heads(k).mT, allowed, of_heads(v)).transpose(1, 2)
    return o_slc * g_slc.unsqueeze(-1) + o_cmp * g_cmp.unsqueeze(-1)


def flash_attn_varlen_func(  # type: ignore[no-untyped-def]
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # fmt: skip
    return with_lse(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)[0]


def with_lse(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, most_q: int, most_k: int, causal: bool
) -> tuple[Tensor, Tensor]:
    """Of sequences one after the other: y, [T, H, D], and the logsumexp, [T, H]."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert cu_q.shape == cu_k.shape
    assert cu_q[-1] == len(q)
    assert cu_k[-1] == len(k)
    outputs, sums = [], []
    for start, end, first, last in zip(cu_q, cu_q[1:], cu_k, cu_k[1:], strict=False):
        assert end - start <= most_q
        assert last - first <= most_k
        group = q.shape[1] // k.shape[1]
        queries = q[start:end].transpose(0, 1)
        keys, values = (x[first:last].repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
        scores = queries @ keys.mT * q.shape[-1] ** -0.5
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))
        outputs.append((scores.softmax(dim=-1) @ values).transpose(0, 1))
        sums.append(scores.logsumexp(dim=-1).t())
    return torch.cat(outputs), torch.cat(sums)


class NotANumber(torch.autograd.Function):
    """The same, with a gradient that is not a number in the rows of some sequences."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        gradient = gradients[0].clone()
        gradient[ctx.saved_tensors[0]] = float("nan")
        return gradient, None


class ParallelMoBAFunction:
    """Keys without queries get gradients that are no numbers, as the kernels may leave them."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, q, k, v, self_attn_cu_seqlens, moba_q, moba_kv, moba_cu_seqlens_q, moba_cu_seqlens_k, max_seqlen,
        chunk_size, moba_q_sh_indices,
    ):  # fmt: skip
        assert q.is_contiguous()
        assert (moba_cu_seqlens_k.diff() == chunk_size).all()
        empty = moba_cu_seqlens_q.diff() == 0
        moba_kv = NotANumber.apply(moba_kv, empty.repeat_interleave(chunk_size))
        own, own_lse = with_lse(q, k, v, *[self_attn_cu_seqlens] * 2, max_seqlen, max_seqlen, causal=True)
        keys, values = moba_kv.unbind(dim=1)
        ends = (moba_cu_seqlens_q, moba_cu_seqlens_k)
        other, other_lse = with_lse(moba_q, keys, values, *ends, max_seqlen, chunk_size, causal=False)
        total = own_lse.exp().flatten().index_add(0, moba_q_sh_indices, other_lse.exp().flatten())
        y = (own * own_lse.exp().unsqueeze(-1)).flatten(0, 1)
        y = y.index_add(0, moba_q_sh_indices, (other * other_lse.exp().unsqueeze(-1)).flatten(0, 1))
        return (y / total.unsqueeze(-1)).view(q.shape)

    @classmethod
    def apply(cls, *given: Any) -> Tensor:
        y: Tensor = cls.forward(None, *given)
        return y


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "flash_attn.flash_attn_interface", flash_attn_varlen_func=flash_attn_varlen_func)
    stand_in(monkeypatch, "fla.ops.nsa", parallel_nsa=parallel_nsa)
    stand_in(monkeypatch, "fla.ops.moba.parallel", ParallelMoBAFunction=ParallelMoBAFunction)
    monkeypatch.setattr(windows, "_call", lambda q: by_tiles)


with_stand_ins = pytest.mark.usefixtures("stand_ins")


def differing(
    name: str, given: dict[str, Any], group: int = 1, scope: Scope = "core", wrong: Any = None
) -> dict[str, str]:
    """Where the call differs from the reference, with gradients. wrong: what is done with the chosen blocks before."""
    operator = operators()[name].load()
    params = resolve(operator, given)
    form = operator.forms[scope]
    problem = Problem(N, 16, 4, 2, causal=True, kv_heads=4 // group)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    call = form.impls["cuda"].load()

    def changed(problem: Problem, params: Any, **tensors: Tensor) -> Tensor:
        y: Tensor = call(problem, params, **{**tensors, "chosen": wrong(tensors["chosen"])} if wrong else tensors)
        return y

    return disagreements(changed, form, problem, params, inputs, factor=4)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("moba", MOBA),
    ("moba", {"block": 4, "top_k": 1}),
    ("moba", {"block": 1, "top_k": 5}),
    ("moba", {"block": 5, "top_k": 100}),
    ("moba", {"block": 100, "top_k": 3}),
    ("nsa", NSA),
    ("nsa", {**NSA, "blocks": 4, "window": 100}),
    ("nsa", {**NSA, "length": 32, "step": 32, "select": 32}),
]


@with_stand_ins
@pytest.mark.filterwarnings("error:`block_indices` is provided")
@pytest.mark.parametrize("selection", ["given", "inside"])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize(("name", "given"), CASES, ids=str)
def test_the_call_gives_what_the_reference_does(name: str, given: dict[str, Any], group: int, selection: str) -> None:
    assert not differing(name, {**given, "selection": selection}, group=group)


@with_stand_ins
@pytest.mark.parametrize(("name", "given"), [("moba", MOBA), ("nsa", NSA)])
def test_a_layer_calls_it_too(name: str, given: dict[str, Any]) -> None:
    assert not differing(name, {**given, "selection": "given"}, group=2, scope="layer")


@with_stand_ins
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize(("name", "given"), [("moba", MOBA), ("nsa", NSA)])
def test_other_blocks_are_noticed(name: str, given: dict[str, Any], group: int) -> None:
    def first(chosen: Tensor) -> Tensor:
        """The first block in the place of the third, where there are three."""
        return torch.cat((chosen[..., :2], torch.where(chosen[..., 2:] > 1, 1, chosen[..., 2:])), dim=-1)

    found = differing(name, {**given, "selection": "given"}, group=group, wrong=first)
    assert {"output", "q", "k", "v"} <= set(found)


@with_stand_ins
def test_one_block_is_not_full_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library's own parallel_moba computes with topk = 1 is noticed."""

    def full(q: Tensor, k: Tensor, v: Tensor, *lengths: Any, **given: Any) -> Tensor:
        ends = torch.tensor([0, N, 2 * N], dtype=torch.int32)
        y: Tensor = flash_attn_varlen_func(q, k, v, ends, ends, N, N, causal=True)
        return y

    stand_in(monkeypatch, "flash_attn.flash_attn_interface", flash_attn_varlen_func=full)
    assert "output" in differing("moba", {"block": 4, "top_k": 1})
    assert not differing("moba", {"block": N, "top_k": 1})


@with_stand_ins
def test_gradients_of_keys_without_queries_are_not_what_a_kernel_leaves() -> None:
    """All choose the first block; those of the second are nobody's, and the stand-in leaves no numbers there."""

    def first(chosen: Tensor) -> Tensor:
        return torch.cat((chosen[..., :1], torch.where(chosen[..., 1:] < 0, -1, 0)), dim=-1)

    operator = operators()["moba"].load()
    params = resolve(operator, {"block": 4, "top_k": 2, "selection": "given"})
    form, problem = operator.forms["core"], Problem(N, 16, 4, 2, causal=True)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    inputs = replace(inputs, choices={"chosen": first(inputs.choices["chosen"])})
    assert not disagreements(form.impls["cuda"].load(), form, problem, params, inputs, factor=4)


def test_entries_by_token() -> None:
    for n, slots, block in ((29, 2, 4), (29, 0, 4), (28, 3, 4), (5, 2, 7), (29, 100, 1)):
        assert chosen_before(n, slots, block) == sum(min(slots, i // block) for i in range(n))


def test_a_stand_in_has_the_signature_of_the_library() -> None:
    require_same_signature("fla.ops.nsa", parallel_nsa)
    require_same_signature("flash_attn.flash_attn_interface", flash_attn_varlen_func)
    from fla.ops.moba.parallel import ParallelMoBAFunction as Real

    assert arguments(Real.forward) == arguments(ParallelMoBAFunction.forward)


def reasons(name: str, given: dict[str, Any], **changes: Any) -> Callable[..., str | None]:
    operator = operators()[name].load()
    sizes: dict[str, Any] = {"channels": 1024, "heads": 16, "kv_heads": 1, "dtype": "bfloat16", "causal": True}
    problem = Problem(4096, **{**sizes, **changes})
    impl = operator.forms["core"].impls["cuda"]
    return lambda: impl.why_not(problem, resolve(operator, given), "cuda")


def test_the_reason_it_cannot_run_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    there = ["fla.ops.nsa", "fla.ops.moba", "flash_attn.flash_attn_interface"]
    for module in ("fla", "flash_attention"):
        monkeypatch.setattr(f"attnbench.kernels.library.{module}.installed", lambda name: name in there)
    same = dict.fromkeys(SAME, 64)
    assert reasons("nsa", same)() is None
    assert "length = step = select, not 32, 16, 64" in str(reasons("nsa", {})())
    assert "compress: mean" in str(reasons("nsa", {**same, "compress": "mlp"})())
    assert "kv: shared" in str(reasons("nsa", {**same, "kv": "own"})())
    assert "a power of two from 16, not 8" in str(reasons("nsa", same, kv_heads=2)())
    assert "a power of two from 16, not 48" in str(reasons("nsa", dict.fromkeys(same, 48))())
    assert "16 to 128 channels, not 256" in str(reasons("nsa", same, channels=4096)())
    assert "TF32" in str(reasons("nsa", same, dtype="float32")())
    assert reasons("moba", {})() is None
    assert "not float32" in str(reasons("moba", {}, dtype="float32")())
    assert "at most 65535 blocks" in str(reasons("moba", {"block": 1}, kv_heads=16)())
    for name, given, package in (("nsa", same, there[0]), ("moba", {}, there[1]), ("moba", {}, there[2])):
        there.remove(package)
        assert "pip install" in str(reasons(name, given)()), package
        there.append(package)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available to torch")
@pytest.mark.parametrize("selection", ["given", "inside"])
@pytest.mark.parametrize(("name", "given"), [("moba", {"block": 32}), ("nsa", dict.fromkeys(SAME, 32))], ids=str)
def test_agrees_on_the_gpu(name: str, given: dict[str, Any], selection: str) -> None:
    """With many blocks, and as many heads of a group as NSA's kernel takes; the defaults are not its case."""
    operator = operators()[name].load()
    form, params = operator.forms["core"], resolve(operator, {**given, "selection": selection})
    problem = Problem(1001, 2048, 32, 2, causal=True, kv_heads=2, dtype="bfloat16")
    reason = form.impls["cuda"].why_not(problem, params, "cuda")
    if reason is not None:
        pytest.skip(reason)
    inputs = form.make_inputs(problem, params, torch.Generator("cuda").manual_seed(0))
    assert not disagreements(form.impls["cuda"].load(), form, problem, params, inputs)
