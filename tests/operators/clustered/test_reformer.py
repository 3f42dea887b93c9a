"""Reformer against a loop over tokens, rounds and chunks; its hash, its limits, its count of pairs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.operator import Inputs
from attnbench.operators.clustered.reformer import OPERATOR, chunk_length, hash_sizes, hashed
from attnbench.problem import Params, Problem
from attnbench.registry import outside_definition, resolve

CORE, LAYER = OPERATOR.forms["core"], OPERATOR.forms["layer"]


def setup(n: int, seed: int = 0, causal: bool = False, heads: int = 2, **params: Any) -> tuple[Problem, Params, Inputs]:
    problem = Problem(n, 5 * heads, heads, batch=2, dtype="float64", causal=causal)
    resolved = resolve(OPERATOR, params)
    return problem, resolved, CORE.make_inputs(problem, resolved, torch.Generator().manual_seed(seed))


def run(problem: Problem, params: Params, inputs: Inputs) -> Tensor:
    return CORE.reference(problem, params, **inputs.tensors())


def looped(problem: Problem, params: Params, inputs: Inputs, mistake: str = "") -> Tensor:
    """The definition, one token at a time; `mistake` breaks one point of it."""
    qk, v, buckets = inputs.data["qk"], inputs.data["v"], inputs.choices["buckets"]
    k = qk if mistake == "keys not normalised" else qk / qk.norm(dim=-1, keepdim=True)
    n, m = problem.seq_len, chunk_length(problem, params)
    y = torch.empty_like(v)
    for b in range(problem.batch):
        for h in range(problem.heads):
            met = [dict[int, int]() for _ in range(n)]
            for bucket in buckets[b, h].tolist():
                line = sorted(range(n), key=lambda token, bucket=bucket: (bucket[token], token))
                chunk = {token: at // m for at, token in enumerate(line)}
                for i in range(n):
                    for j in range(n):
                        ahead = chunk[i] - chunk[j]
                        near = ahead in ((0, -1) if mistake == "next chunk" else (0, 1))
                        same = params["sees"] == "chunk" or bucket[i] == bucket[j]
                        if near and same and (j <= i or not problem.causal):
                            met[i][j] = met[i].get(j, 0) + 1
            for i in range(n):
                seen = [j for j in met[i] if j != i or mistake == "sees itself"] or [i]
                count = torch.tensor([float(met[i][j]) for j in seen], dtype=v.dtype)
                if (params["repeats"] == "corrected") != (mistake == "repeats"):
                    count = torch.ones_like(count)
                logits = (k[b, h, seen] @ qk[b, h, i]) + count.log()
                y[b, h, i] = logits.softmax(0) @ (k if mistake == "keys as values" else v)[b, h, seen]
    return y


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 23),
    chunk=st.integers(1, 9),
    n_hashes=st.integers(1, 3),
    sees=st.sampled_from(["bucket", "chunk"]),
    repeats=st.sampled_from(["corrected", "counted"]),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_loop(n: int, seed: int, causal: bool, **params: Any) -> None:
    given = setup(n, seed, causal, **params)
    torch.testing.assert_close(run(*given), looped(*given), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mistake", ["keys not normalised", "next chunk", "sees itself", "repeats", "keys as values"])
@pytest.mark.parametrize("causal", [False, True])
def test_the_loop_tells_mistakes(mistake: str, causal: bool) -> None:
    given = setup(23, causal=causal, chunk=4, n_hashes=3)
    assert (run(*given) - looped(*given)).abs().max() < 1e-10
    assert (run(*given) - looped(*given, mistake=mistake)).abs().max() > 1e-2


@pytest.mark.parametrize("causal", [False, True])
def test_one_bucket_is_softmax_without_the_token_itself(causal: bool) -> None:
    """Every token in one chunk: softmax over normalised keys, the diagonal left out, the first causal token alone."""
    problem, params, inputs = setup(17, causal=causal, sees="chunk", n_hashes=2)
    q, v = inputs.data["qk"], inputs.data["v"]
    scores = q @ (q / q.norm(dim=-1, keepdim=True)).mT
    scores.diagonal(dim1=-2, dim2=-1).fill_(-1e9)
    if causal:
        scores.masked_fill_(torch.ones(17, 17, dtype=torch.bool).triu(1), float("-inf"))
    torch.testing.assert_close(run(problem, params, inputs), scores.softmax(-1) @ v)


def test_a_token_alone_returns_its_value_and_takes_its_gradient() -> None:
    problem, params, inputs = setup(9, chunk=3, n_hashes=2)
    inputs.choices["buckets"] = torch.arange(9, dtype=torch.int32).expand(2, 2, 2, 9).contiguous()
    torch.testing.assert_close(run(problem, params, inputs), inputs.data["v"], rtol=0, atol=0)
    inputs.choices["buckets"][..., 1] = 0
    assert not torch.equal(run(problem, params, inputs), inputs.data["v"])


def test_order_of_rounds_and_of_samples_does_not_matter() -> None:
    problem, params, inputs = setup(21, chunk=4, n_hashes=3)
    expected = run(problem, params, inputs)
    flipped = replace(inputs, choices={"buckets": inputs.choices["buckets"].flip(2)})
    torch.testing.assert_close(run(problem, params, flipped), expected)
    data = {name: x.flip(0) for name, x in inputs.data.items()}
    samples = Inputs(data, choices={"buckets": inputs.choices["buckets"].flip(0)})
    torch.testing.assert_close(run(problem, params, samples).flip(0), expected)


@pytest.mark.parametrize("repeats", ["corrected", "counted"])
def test_gradients(repeats: str) -> None:
    problem, params, inputs = setup(7, chunk=3, n_hashes=2, repeats=repeats, causal=True)

    def call(qk: Tensor, v: Tensor) -> Tensor:
        return CORE.reference(problem, params, qk, v, **inputs.choices)

    assert torch.autograd.gradcheck(call, [x.requires_grad_() for x in inputs.data.values()])


class TestHash:
    def test_is_the_largest_of_the_rotated_axes(self) -> None:
        qk, rotations = torch.randn(1, 2, 40, 6), torch.randn(2, 6, 3 * 4)
        found = hashed(qk, rotations, [8])
        for r in range(3):
            for h in range(2):
                turned = qk[0, h] @ rotations[h, :, 4 * r : 4 * r + 4]
                expected = torch.cat([turned, -turned], 1).argmax(1)
                assert torch.equal(found[0, h, r].long(), expected)

    def test_factors_make_mixed_radix_digits(self) -> None:
        generator = torch.Generator().manual_seed(0)
        qk = torch.randn(2, 1, 300, 6, generator=generator)
        rotations = torch.randn(1, 6, 2 + 4, generator=generator)
        coarse, fine = hashed(qk, rotations[..., :2], [4]), hashed(qk, rotations[..., 2:], [8])
        both = hashed(qk, rotations, [4, 8])
        assert torch.equal(both, coarse * 8 + fine)
        assert 16 < both.unique().numel() <= 32

    def test_nearer_vectors_share_a_bucket_more_often(self) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 1, 2000, 16, generator=generator)
        rotations = torch.randn(1, 16, 8, generator=generator)
        shared = []
        for distance in (0.01, 0.3, 1.0, 100.0):
            y = x + distance * torch.randn(x.shape, generator=generator)
            shared.append((hashed(x, rotations, [16]) == hashed(y, rotations, [16])).float().mean().item())
        assert shared == sorted(shared, reverse=True)
        assert shared[0] > 0.9
        assert shared[-1] == pytest.approx(1 / 16, abs=0.02), "far ones meet by chance"

    def test_length_and_dtype_do_not_matter(self) -> None:
        qk, rotations = torch.randn(1, 1, 50, 6), torch.randn(1, 6, 8)
        expected = hashed(qk, rotations, [16])
        assert torch.equal(hashed(3 * qk, rotations, [16]), expected)
        assert torch.equal(hashed(qk.double(), rotations.double(), [16]), expected)
        assert not torch.equal(hashed(-qk, rotations, [16]), expected)

    @pytest.mark.parametrize("n", [1, 64, 65, 1000, 2**20, 2**22])
    def test_sizes_multiply_to_the_buckets_and_stay_small(self, n: int) -> None:
        problem, params = Problem(n, 8), resolve(OPERATOR, {})
        sizes, wanted = hash_sizes(problem, params), 2 * n / chunk_length(problem, params)
        assert wanted <= math.prod(sizes) < 2 * wanted
        assert max(sizes) <= 64

    def test_inside_equals_given(self) -> None:
        problem, params, inputs = setup(50, hashing="inside", chunk=8)
        buckets = hashed(inputs.data["qk"], inputs.choices["rotations"], hash_sizes(problem, params))
        given = replace(inputs, choices={"buckets": buckets})
        assert torch.equal(run(problem, params, inputs), run(problem, params, given))

    def test_a_layer_hashes_its_own_queries(self) -> None:
        problem, params = Problem(60, 8, 2, dtype="float64"), resolve(OPERATOR, {"n_hashes": 8, "chunk": 4})
        inputs = LAYER.make_inputs(problem, params, torch.Generator().manual_seed(0))
        qk = (inputs.data["x"] @ inputs.parameters["w_qk"]).view(1, 60, 2, 4).transpose(1, 2)
        qk = torch.nn.functional.normalize(qk, dim=-1)
        buckets = inputs.choices["buckets"]  # [1, 2, 8, 60]
        same = (buckets.unsqueeze(-1) == buckets.unsqueeze(-2)).double().mean(2)
        cosine = qk @ qk.mT
        assert torch.corrcoef(torch.stack([same.flatten(), cosine.flatten()]))[0, 1] > 0.4
        assert LAYER.reference(problem, params, **inputs.tensors()).shape == (1, 60, 8)

    def test_refused_where_it_is_no_fixed_map(self) -> None:
        params = resolve(OPERATOR, {"hashing": "inside"})
        assert "not causal" in (outside_definition(OPERATOR, Problem(9, 4, causal=True), params, "core") or "")
        assert "rounding" in (outside_definition(OPERATOR, Problem(9, 4), params, "layer") or "")
        assert outside_definition(OPERATOR, Problem(9, 4), params, "core") is None

    def test_needs_buckets_or_rotations(self) -> None:
        problem, params, inputs = setup(5)
        with pytest.raises(ValueError, match="buckets or rotations"):
            CORE.reference(problem, params, **inputs.data)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), chunk=st.integers(1, 20), n_hashes=st.integers(1, 3))
def test_flops_are_the_pairs_of_the_chunks(n: int, chunk: int, n_hashes: int) -> None:
    problem, params = Problem(n, 12, 2, batch=3), resolve(OPERATOR, {"chunk": chunk, "n_hashes": n_hashes})
    m = min(chunk, n)
    pairs = sum(i // m - j // m in (0, 1) for i in range(n) for j in range(n))
    found = CORE.cost(problem, params, "fwd")
    assert found.flops == 3 * 2 * n_hashes * pairs * 6 * 2 * 2
    assert found.reference_flops <= 4 * found.flops
    assert CORE.cost(problem, params, "fwd_bwd").flops == 3 * found.flops


def test_the_layer_projects_three_times() -> None:
    problem, params = Problem(64, 32, 4), resolve(OPERATOR, {})
    apart = LAYER.cost(problem, params, "fwd").flops - CORE.cost(problem, params, "fwd").flops
    assert apart == 2 * 3 * 64 * 32 * 32
