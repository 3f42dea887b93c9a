"""The fast GPU paths of the sparse operators, run where the library runs on the CPU: FlexAttention eager, SDPA.

Eager FlexAttention applies the mask function to all pairs, so its outputs check the mask function and the order of
tokens. Compiled, it visits the listed tiles alone, and asks the function in partial ones alone: `by_tiles` does that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from inspect import isfunction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention

from attnbench.kernels.flex import patterns, pieces, windows
from attnbench.operator import Impl
from attnbench.operators.sparse import _fixed
from attnbench.problem import Problem
from attnbench.registry import operators, resolve
from tests.kernels.agreement import with_gradients
from tests.operators.sparse.masked import Case, close, gradients

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

CPU = torch.device("cpu")
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("local", 301, {"window": 40}),
    ("local", 33, {"window": 40}),
    ("sliding_window", 301, {"window": 40}),
    ("sliding_window", 301, {"window": 140, "sink": "tokens", "sink_tokens": 130}),
    ("sliding_window", 300, {"window": 40, "sink": "tokens"}),
    ("sliding_window", 33, {"window": 40, "sink": "tokens"}),
    ("sliding_window", 301, {"window": 40, "sink": "logit"}),
    ("strided", 301, {"stride": 3, "reach": 9}),
    ("strided", 300, {"stride": 4, "reach": 20}),
    ("global_tokens", 131, {"global_tokens": 5}),
    ("global_tokens", 1040, {"global_tokens": 5, "kind": "external"}),
    ("global_tokens", 9, {"global_tokens": 20}),
    ("longformer", 301, {"window": 40, "global_tokens": 7}),
    ("longformer", 301, {"window": 11, "dilation": 3, "global_tokens": 7}),
    ("longformer", 301, {"window": 11, "dilation": 3, "global_tokens": 0}),
    ("longformer", 131, {"window": 11, "kind": "mixed_heads", "global_tokens": 7}),
    ("big_bird", 700, {"block": 64}),
    ("big_bird", 301, {"block": 16, "random": 2}),
    ("big_bird", 900, {"block": 128, "random": 1}),
    ("big_bird", 50, {"block": 64}),
    ("big_bird", 301, {"block": 16, "kind": "mixed_heads"}),
    *(
        ("sparse_transformer", n, {"kind": kind, "heads": heads, "summary": 3})
        for n in (301, 289)
        for kind in ("strided", "fixed")
        for heads in ("split", "union")
    ),
]


def case_of(name: str, n: int, params: dict[str, Any], causal: bool, kv_heads: int = 4) -> Case:
    causal_params = {"global_tokens": 0} if causal and name == "longformer" else {}
    return Case(
        name,
        n,
        causal,
        heads=4,
        head_dim=16,
        kv_heads=kv_heads,
        batch=1 if n > 400 else 2,
        given={**params, **causal_params},
    )


@cache
def all_cases() -> tuple[Any, ...]:
    return tuple(_all_cases())


def _all_cases() -> Iterator[Any]:
    for name, n, params in CASES:
        for causal in (False, True):
            case = case_of(name, n, params, causal)
            form = case.operator.causal if causal else case.operator.full
            if form is True and case.operator.why_not(case.problem, case.params, "core") is None:
                yield pytest.param(name, n, params, causal, id=f"{name}-{n}-{causal}-{list(params.values())}")


TRACED: set[Any] = set()
"""Functions of pairs that have been traced."""


def traced_once(
    q: Tensor, k: Tensor, v: Tensor, block_mask: Any = None, score_mod: Any = None, **options: Any
) -> Tensor | tuple[Tensor, Any]:
    """FlexAttention, which traces a mask function, as it is where it is compiled; that takes longer than the attention.
    Another time the same code over values of the same types is called as it is.
    """
    called = code_of(block_mask and block_mask.mask_mod), code_of(score_mod), q.shape[1] == k.shape[1], *options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", called in TRACED)
        TRACED.add(called)
        return flex_attention.flex_attention(q, k, v, block_mask=block_mask, score_mod=score_mod, **options)


@pytest.fixture(autouse=True)
def each_function_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_call", lambda q: traced_once)


def code_of(function: Any) -> Any:
    """What a function does, apart from the values that it has from elsewhere."""
    if not isfunction(function):
        return type(function)
    return function.__code__, *(code_of(cell.cell_contents) for cell in function.__closure__ or ())


@pytest.mark.parametrize(("name", "n", "params", "causal"), all_cases())
def test_equals_the_reference(name: str, n: int, params: dict[str, Any], causal: bool) -> None:
    case = case_of(name, n, params, causal)
    impl = case.form.impls["cuda"]
    single = case.problem.with_dtype("float32")
    reason = impl.why_not(single, case.params, "cuda")
    assert reason is None, reason
    with torch.inference_mode():
        assert close(case.run_impl("cuda"), case.output())


def by_tiles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: Any,
    scale: float | None = None,
    enable_gqa: bool = False,
    score_mod: Any = None,
    **options: Any,
) -> Any:
    """FlexAttention as its kernels compute it: only listed tiles are visited, and in full ones no function is asked."""
    queries, keys = q.shape[-2], k.shape[-2]
    group = q.shape[1] // k.shape[1]
    assert enable_gqa is (group > 1)
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    allowed = torch.tensor(True)
    h, i, j = torch.arange(q.shape[1])[:, None, None], torch.arange(queries)[:, None], torch.arange(keys)
    if block_mask is not None:
        tile = block_mask.BLOCK_SIZE[0]
        partial, full = (
            x.repeat_interleave(tile, 1).repeat_interleave(tile, 2)[:, :queries, :keys] for x in tile_sets(block_mask)
        )
        allowed = full | (partial & block_mask.mask_mod(torch.tensor(0), h, i, j))
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if score_mod is not None:
        scores = score_mod(scores, torch.tensor(0), h, i, j)
    scores = scores.masked_fill(~allowed, float("-inf"))
    lse = scores.logsumexp(-1)
    y = (scores - lse.nan_to_num(neginf=0.0)[..., None]).exp() @ v
    return (y, SimpleNamespace(lse=lse)) if "return_aux" in options else y


@pytest.fixture
def listed_tiles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_call", lambda q: by_tiles)


@pytest.mark.usefixtures("listed_tiles_alone")
@pytest.mark.parametrize(("name", "n", "params", "causal"), all_cases())
def test_the_listed_tiles_alone_equal_the_reference(name: str, n: int, params: dict[str, Any], causal: bool) -> None:
    for kv_heads in (4, 2):
        case = case_of(name, n, params, causal, kv_heads)
        with torch.inference_mode():
            for choices in case.inputs.choices.values():  # drawn anew into the same memory: no list may be of before
                assert close(case.run_impl("cuda"), case.output())
                choices.copy_(case.form.make_inputs(case.problem, case.params, seeded(1)).choices["blocks"])
            assert close(case.run_impl("cuda"), case.output())


@pytest.mark.usefixtures("listed_tiles_alone")
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(
    ("name", "n", "params"),
    [
        ("big_bird", 704, {"block": 64}),
        ("big_bird", 301, {"block": 16, "random": 2}),
        ("big_bird", 100, {"block": 64}),
        ("longformer", 1100, {"window": 40, "global_tokens": 76}),
        ("longformer", 301, {"window": 40, "global_tokens": 1}),
        ("longformer", 9, {"window": 3, "global_tokens": 20}),
        ("sliding_window", 301, {"window": 40}),
        ("sliding_window", 301, {"window": 40, "sink": "tokens"}),
        ("sliding_window", 401, {"window": 200, "sink": "tokens", "sink_tokens": 130}),
        ("sliding_window", 301, {"window": 40, "sink": "logit"}),
        ("longformer", 301, {"window": 11, "dilation": 3, "global_tokens": 7}),
        ("global_tokens", 1152, {"global_tokens": 128}),
        ("global_tokens", 131, {"global_tokens": 5, "kind": "external"}),
    ],
)
def test_gradients_equal_the_reference(
    name: str, n: int, params: dict[str, Any], kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gradients keys that all tokens see are attended to apart, and long sides in pieces."""
    monkeypatch.setattr(pieces, "LEAST_TOKENS", 64)
    case = case_of(name, n, params, causal=name == "sliding_window", kv_heads=kv_heads)
    wanted = [x.requires_grad_() for x in case.inputs.differentiated().values()]
    for ours, theirs in zip(
        gradients(case.run_impl("cuda"), wanted),
        gradients(case.output(), wanted),
        strict=True,
    ):
        assert close(ours, theirs)
        assert not close(ours + 1e-3, theirs)


def test_a_long_side_is_cut_where_it_divides() -> None:
    assert [pieces.pieces(tokens) for tokens in (0, 1, 1023, 1024, 1026, 65536, 65535, 65537)] == [
        *(1, 1, 1, 2, 2, 32, 17, 1)
    ]


@pytest.mark.usefixtures("listed_tiles_alone")
@pytest.mark.parametrize("name", ["local", "big_bird"])
def test_a_tile_that_is_not_listed_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(name, 700, {"window": 40} if name == "local" else {"block": 64}, causal=False)
    block_mask = windows.block_mask

    def without_the_last(some: Tensor, *given: Any) -> Any:
        some = some.clone()
        some[..., -1] = False
        return block_mask(some, *given)

    for module in (windows, patterns):
        monkeypatch.setattr(module, "block_mask", without_the_last)
    for masks_of in (windows.window_mask, patterns._block_rows):
        masks_of.cache_clear()
    with torch.inference_mode():
        assert not close(case.run_impl("cuda"), case.output())
    windows.window_mask.cache_clear()


def test_blocks_that_are_written_to_are_listed_anew() -> None:
    case = Case("big_bird", 1300, block=64)
    for inference in (False, True):
        with torch.inference_mode(inference):
            blocks = case.inputs.choices["blocks"].clone()
            before = patterns.block_rows(blocks, 1300, 64)
            assert patterns.block_rows(blocks, 1300, 64) is before
            blocks.copy_(case.form.make_inputs(case.problem, case.params, seeded(1)).choices["blocks"])
            after = patterns.block_rows(blocks, 1300, 64)
        assert not torch.equal(before.full_kv_indices, after.full_kv_indices)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("name", "n", "params", "causal"), all_cases())
def test_shared_keys_equal_the_reference(name: str, n: int, params: dict[str, Any], causal: bool) -> None:
    for kv_heads in (1, 2):
        case = case_of(name, n, params, causal, kv_heads)
        assert case.operator.grouped is True
        for impl in ("sdpa", "cuda"):
            if impl in case.form.impls and case.form.impls[impl].why_not(case.problem, case.params, "cpu") is None:
                assert case.form.impls[impl].grouped
                with torch.inference_mode():
                    assert close(case.run_impl(impl), case.output()), impl
        with torch.inference_mode():
            y = case.output()
            case.inputs.data["k"] = case.inputs.data["k"].flip(1)
            assert (kv_heads == 1) is close(case.output(), y)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("local", {"window": 9}),
        ("strided", {"stride": 3, "reach": 9}),
        ("global_tokens", {"kind": "external", "global_tokens": 5}),
        ("longformer", {"window": 9, "global_tokens": 3}),
        ("longformer", {"window": 9, "kind": "mixed_heads"}),
        ("big_bird", {"block": 16}),
        ("sparse_transformer", {"kind": "fixed"}),
    ],
)
def test_the_layer_has_the_path_of_its_core(name: str, params: dict[str, Any]) -> None:
    case = Case(name, 130, heads=4, head_dim=16, given=params)
    layer = case.operator.forms["layer"]
    inputs = layer.make_inputs(case.problem, case.params, torch.Generator().manual_seed(0))
    assert layer.impls.keys() == case.form.impls.keys()
    call = layer.impls["cuda"].load()
    with torch.inference_mode():
        right = layer.reference(case.problem, case.params, **inputs.tensors())
        assert close(call(case.problem, case.params, **inputs.tensors()), right)
        swapped = {**inputs.tensors(), "w_q": inputs.tensors()["w_k"]}
        assert not close(call(case.problem, case.params, **swapped), right)


@pytest.mark.parametrize(
    ("name", "params", "other"),
    [
        ("local", {"window": 40}, {"window": 41}),
        ("strided", {"stride": 3, "reach": 9}, {"reach": 10}),
        ("longformer", {"window": 40}, {"global_tokens": 2}),
        ("big_bird", {"block": 16, "random": 2}, {"block": 8}),
        ("sparse_transformer", {"kind": "fixed", "heads": "union"}, {"summary": 9}),
        ("sparse_transformer", {"kind": "strided", "heads": "union"}, {"stride": 16}),
    ],
)
def test_another_pattern_is_noticed(name: str, params: dict[str, Any], other: dict[str, Any]) -> None:
    case = Case(name, 301, head_dim=16, given=params)
    with torch.inference_mode():
        right = case.run_impl("cuda")
        assert close(right, case.output())
        changed = Case(name, 301, head_dim=16, given={**params, **other})
        changed.inputs = replace(
            changed.inputs, data={**changed.inputs.data, **dict(zip("qkv", case.qkv, strict=True))}
        )
        assert not close(changed.run_impl("cuda"), right)


def masks() -> Iterator[tuple[str, Any, int]]:
    """Name, mask, and the heads its function tells apart."""
    for n, before, after, classes, hubs in (
        (300, 10, 10, 1, 0),
        (300, 0, 0, 1, 3),
        (900, 260, 0, 1, 1),
        (1000, 130, 130, 3, 130),
        (1025, 400, 400, 2, 0),
        (129, 300, 300, 2, 4),
    ):
        yield (
            f"window-{n}-{before}-{classes}-{hubs}",
            windows.window_mask(n, before, after, classes, hubs, CPU),
            classes,
        )
    for n, before, hubs in ((300, 10, 3), (1700, 260, 130), (3000, 100, 128), (2500, 100, 1)):
        yield f"copies-{n}-{before}-{hubs}", windows.copied_hubs_mask(n, before, before, hubs, CPU), 1
    for n, before, hubs in ((300, 10, 3), (1700, 260, 130)):
        yield f"causal-copies-{n}-{before}-{hubs}", windows.copied_hubs_mask(n, before, 0, hubs, CPU, True), 1
        for queries in (1, 40, n - 200, n):
            yield f"causal-{queries}-{n}", windows.causal_mask(queries, n, before, hubs, CPU), 1
    yield "causal-all", windows.causal_mask(300, 1000, 1000, 0, CPU), 1
    for n, factor in ((300, 3), (1000, 1), (900, 7)):
        keys = (n - 1) // factor + 1
        yield f"every-{n}-{factor}", patterns.every_few_tokens(n, keys, factor, CPU), 1
    yield "window-groups", windows.window_mask(1000, 130, 130, 3, 130, CPU, 2), 6
    yield "distant-groups", patterns.distant(1000, 3, True, CPU, 2), 6
    for n, size in ((700, 64), (1300, 64), (1100, 128), (301, 16), (50, 64), (1500, 256)):
        case = Case("big_bird", n, block=size)
        for copied in {0, min(n, 2 * size - -n % size)}:
            yield f"rows-{n}-{size}-{copied}", patterns.block_rows(case.inputs.choices["blocks"], n, size, copied), 2
    for causal in (False, True):
        for n, size, width in ((1000, 31, 4), (1024, 32, 32), (700, 150, 140), (2500, 7, 3)):
            count = _fixed.blocks_of(Problem(n, 4), {"block": size, "summary": width}).summaries
            for own in (True, False) if causal else (True,):
                mask = patterns.summaries(n, size, width, count, own, causal, CPU)
                yield f"summaries-{n}-{size}-{own}-{causal}", mask, 1
        for n, classes in ((1000, 3), (999, 4), (700, 2), (100, 60)):
            yield f"distant-{n}-{classes}-{causal}", patterns.distant(n, classes, causal, CPU), classes


@pytest.mark.parametrize(("mask", "heads"), [pytest.param(m, heads, id=name) for name, m, heads in masks()])
def test_block_masks_leave_no_pair_out(mask: Any, heads: int) -> None:
    """Against the pairs themselves, asked of the mask function one by one."""
    some, full = tile_sets(mask)
    any_pair, all_pairs = tiles_of_pairs(mask, heads)
    assert not (any_pair & ~(some | full)).any(), "a tile with pairs is skipped"
    assert not (full & ~all_pairs).any(), "a tile taken whole has forbidden pairs"
    assert not (some & full).any()
    surplus = int(((some | full) & ~any_pair).sum())
    assert surplus <= 0.1 * int(any_pair.sum()) + 2, "tiles without a pair are computed"


def tile_sets(mask: Any) -> tuple[Tensor, Tensor]:
    """[H, query tiles, key tiles]: partial and full tiles."""

    def dense(count: Tensor, indices: Tensor) -> Tensor:
        listed = torch.arange(indices.shape[-1]) < count[0].unsqueeze(-1)
        return torch.zeros_like(listed).scatter_(-1, indices[0].long(), listed)

    return dense(mask.kv_num_blocks, mask.kv_indices), dense(mask.full_kv_num_blocks, mask.full_kv_indices)


def tiles_of_pairs(mask: Any, heads: int) -> tuple[Tensor, Tensor]:
    (queries, keys), size = mask.seq_lengths, mask.BLOCK_SIZE[0]
    i, j = torch.arange(queries)[:, None], torch.arange(keys)
    zero = torch.tensor(0)
    each = [mask.mask_mod(zero, torch.tensor(h), i, j).expand(queries, keys) for h in range(heads)]
    tall, wide = windows.tiles(queries, size), windows.tiles(keys, size)
    grid = torch.zeros(heads, tall * size, wide * size, dtype=torch.bool)
    grid[:, :queries, :keys] = torch.stack(each)
    grid = grid.view(heads, tall, size, wide, size)
    some, every = grid.any(dim=4).any(dim=2), grid.all(dim=4).all(dim=2)
    if mask.kv_num_blocks.shape[1] == 1:  # one mask for all classes
        return some.any(dim=0, keepdim=True), every.all(dim=0, keepdim=True)
    return some, every


def test_a_mask_that_skips_a_tile_is_noticed() -> None:
    mask = windows.window_mask(900, 260, 0, 1, 0, CPU)
    some, full = tile_sets(mask)
    any_pair, all_pairs = tiles_of_pairs(mask, 1)
    narrow, narrow_full = tile_sets(windows.window_mask(900, 100, 0, 1, 0, CPU))
    assert (any_pair & ~(narrow | narrow_full)).any()
    assert full.any()
    assert ((some | full) & ~all_pairs).any()


def test_masks_are_built_once_and_serve_autograd() -> None:
    with torch.inference_mode():
        mask = windows.window_mask(555, 10, 10, 1, 0, CPU)
    assert windows.window_mask(555, 10, 10, 1, 0, CPU) is mask
    assert not mask.kv_indices.is_inference()
    blocks = Case("big_bird", 700, block=64).inputs.choices["blocks"]
    assert patterns.block_rows(blocks, 700, 64) is patterns.block_rows(blocks, 700, 64)
    assert patterns.block_rows(blocks.clone(), 700, 64) is not patterns.block_rows(blocks, 700, 64)


def test_merging_two_sets_of_keys_is_one_softmax() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 9, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    scores = q @ k.transpose(-2, -1)

    def part(keys: slice) -> tuple[Tensor, Tensor]:
        return scores[..., keys].softmax(-1) @ v[..., keys, :], scores[..., keys].logsumexp(-1)

    merged = windows.merge(*part(slice(0, 4)), *part(slice(4, None)))
    assert close(merged, scores.softmax(-1) @ v)
    assert not close((part(slice(0, 4))[0] + part(slice(4, None))[0]) / 2, merged)
    nothing = (torch.zeros_like(merged), torch.full_like(merged[..., 0], float("-inf")))
    alone = windows.merge(*part(slice(None)), *nothing)
    assert close(alone, merged)
    for gradient in torch.autograd.grad(alone.sum(), (q, k, v)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "float64"}, "float64"),
        ({"channels": 16}, "head dimension"),
        ({"seq_len": 2**24}, "entries"),
        ({}, None),
    ],
)
def test_reasons(changes: dict[str, Any], words: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    impl: Impl = Case("local", 9).form.impls["cuda"]
    problem = replace(Problem(1024, 64, 2, dtype="bfloat16"), **changes)
    reason = impl.why_not(problem, {"window": 4}, "cuda")
    assert reason is None if words is None else words in (reason or "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "Triton" in (impl.why_not(problem, {"window": 4}, "cuda") or "")


def test_big_bird_says_which_blocks_fit_its_tiles() -> None:
    impl = Case("big_bird", 9).form.impls["cuda"]
    problem = Problem(1024, 64, 2, dtype="bfloat16")
    for block, fits in ((64, True), (128, True), (256, True), (48, False), (200, False)):
        case = Case("big_bird", 9, block=block)
        assert (impl.why_not(problem, case.params, "cuda") is None) is fits


PADDED_CASES = [
    ("criss_cross", "cuda", (9, 67), {}),
    ("local", "cuda", 61, {"window": 9}),
    ("longformer", "cuda", 101, {"window": 11, "dilation": 3, "global_tokens": 7}),
]


def gradients_of_short_lines(
    name: str, impl: str, size: Any, params: dict[str, Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients of the GPU path and of the reference, float64."""
    operator = operators()[name].load()
    given, form = resolve(operator, params), operator.forms["core"]
    sides = {"height": size[0], "width": size[1]} if isinstance(size, tuple) else {}
    n = size[0] * size[1] if sides else size
    problem = Problem(n, 64, heads=4, kv_heads=2 if operator.grouped else 4, dtype="float64", **sides)
    inputs = form.make_inputs(problem, given, torch.Generator().manual_seed(0))
    cotangent = torch.randn(problem.batch, 4, n, 16, generator=torch.Generator().manual_seed(1)).double()
    calls = form.impls[impl].load(), form.reference
    return tuple([*with_gradients(call, problem, given, inputs, cotangent).values()] for call in calls)  # type: ignore[return-value]


@pytest.mark.usefixtures("listed_tiles_alone")
@pytest.mark.parametrize(("name", "impl", "size", "params"), PADDED_CASES)
def test_lines_padded_for_their_gradients_give_the_same(
    name: str, impl: str, size: Any, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "_compiles_gradients", lambda q: True)
    lengths = []
    lengthened = windows._lengthened
    monkeypatch.setattr(windows, "_lengthened", lambda q, k: lengths.append(lengthened(q, k)) or lengths[-1])
    ours, reference = gradients_of_short_lines(name, impl, size, params)
    assert any(lengths), "nothing was padded"
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("listed_tiles_alone")
def test_padded_keys_that_are_not_hidden_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_compiles_gradients", lambda q: True)
    monkeypatch.setattr(windows, "_lengthened_mask", lambda *_: None)
    ours, reference = gradients_of_short_lines(*PADDED_CASES[0])
    assert not torch.allclose(ours[0], reference[0])


@pytest.mark.usefixtures("listed_tiles_alone")
def test_padded_lines_are_asked_for_no_score_beyond_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.randn(61, 67, generator=torch.Generator().manual_seed(0)).double()
    q, k, v = (torch.randn(1, 2, n, 16, generator=torch.Generator().manual_seed(n)).double() for n in (61, 67, 67))

    def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + table[i, j]

    plain = windows.attend(q, k, v, None, biased)
    monkeypatch.setattr(windows, "_compiles_gradients", lambda q: True)
    torch.testing.assert_close(windows.attend(q, k, v, None, biased), plain)
    monkeypatch.setattr(windows, "_within", lambda mod, queries, keys: mod)
    with pytest.raises(IndexError):
        windows.attend(q, k, v, None, biased)


def test_gradients_are_padded_where_they_were_wrong_alone() -> None:
    seen_wrong, seen_right = (33, 61, 63, 67, 100, 127), (24, 32, 40, 48, 56, 64, 72, 96, 112, 120, 128, 129, 191, 437)
    assert all(map(windows.wrong_gradients, seen_wrong))
    assert not any(map(windows.wrong_gradients, seen_right))
