"""y_i = Σ_j p_ij v_j, p_i = softmax_j(q_iᵀ q_j / ‖q_j‖) over the tokens j ≠ i that a hash round brings to i.

Round r sorts the tokens by (bucket, position) and cuts the sorted line into chunks of m. In that round i sees j when
j is in i's own chunk or in the one before (none precedes the first), in i's bucket (`sees: bucket`), and j ≤ i where
causal. Queries and keys are the same vectors; the keys are normalised, which leaves logits of variance 1 without 1/√D.
A token that sees no other in any round returns its v_i. Rounds are merged by their log-sum-exp. A key seen in N_ij
rounds counts once (`repeats: corrected`; the paper's appendix A subtracts log N_ij in each of them, here it counts in
the first alone, which is the same y); with `repeats: counted`, as in later code, it counts N_ij times.

Buckets: h(x) = argmax [x R; −x R], about 2N/m of them, as a product of hashes of at most 64 buckets each, since one
hash into 2N/m buckets would itself cost N²·D/m. With `hashing: given` they are computed once with the inputs, and the
call starts with the sort; with `hashing: inside` the call hashes as well. Where the chunks end depends on the buckets
of later tokens, so the map is causal only for given buckets.

Where m does not divide N, the last chunk of the sorted line is short: it is padded with tokens that no query sees.

Kitaev et al. 2020, "Reformer: The Efficient Transformer", eq. 2–6 and appendix A, https://arxiv.org/abs/2001.04451
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize, pad

from attnbench.cost import moved_again, product, traffic
from attnbench.inputs import heads
from attnbench.kernels.library.graphs import with_graph
from attnbench.kernels.support import why_not
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.projection import projected

BITS_PER_HASH = 6
ALONE = -1e5
"""The logit of a token with itself: it counts only where there is no other key (the paper's appendix A)."""


def reference(
    problem: Problem,
    params: Params,
    qk: Tensor,
    v: Tensor,
    buckets: Tensor | None = None,
    rotations: Tensor | None = None,
) -> Tensor:
    """qk, v: [B, H, N, D]. buckets: int [B, H, R, N], or rotations: [H, D, R·K]. Returns [B, H, N, D]."""
    b, h, n, d = qk.shape
    m = chunk_length(problem, params)
    buckets = bucket_of(problem, params, qk, buckets, rotations)
    rounds, chunks = buckets.shape[2], -(-n // m)

    order, place, label = sort(params, buckets, m)
    token = pad(order, (0, chunks * m - n), value=n).view(b, h, rounds, chunks, m)  # n: nobody

    row = (token.clamp(max=n - 1) + _offsets(token, 2, n)).flatten()
    q, k, value = (x.reshape(-1, d).index_select(0, row).view(*token.shape, d) for x in (qk, normalize(qk, dim=-1), v))
    k, value = (_with_previous(x.flatten(-2)).unflatten(-1, (2 * m, d)) for x in (k, value))
    scores = q @ k.transpose(-2, -1)  # [B, H, R, chunks, m, 2m]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    with torch.no_grad():  # hidden keys have weight 0; a single key has weight 1 whatever its logit
        scores.masked_fill_(_hidden(problem, params, label, token), float("-inf"))
        scores.diagonal(m, -2, -1).fill_(ALONE)

    largest = scores.detach().amax(dim=-1, keepdim=True)  # [B, H, R, chunks, m, 1]
    weights = scores.sub_(largest).exp_()
    y = weights.to(v.dtype) @ value  # [B, H, R, chunks, m, D]
    row = (place + _offsets(place, 3, chunks * m)).flatten()
    y = y.reshape(-1, d).index_select(0, row).view(b, h, rounds, n, d)
    largest, total = (x.flatten(3).gather(-1, place) for x in (largest, weights.sum(dim=-1)))  # [B, H, R, N]
    share = (largest + total.log()).softmax(dim=2) / total
    return (share.to(v.dtype).unsqueeze(-1) * y).sum(dim=2)


def sort(params: Params, buckets: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each round's line: the token in each place, the place of each token, and each token's label, all [B, H, R, N].

    Labels rise by 1 from chunk to chunk, and by 2 more where a bucket ends (`sees: bucket`), so that in a round
    i sees j where label_i − label_j is 0 or 1.
    """
    order = buckets.argsort(dim=-1, stable=True)
    along = torch.arange(buckets.shape[-1], device=buckets.device)
    place = torch.empty_like(order).scatter_(-1, order, along.expand_as(order))
    label = (along // m).int().expand_as(order)
    if params["sees"] == "bucket":
        ends = buckets.gather(-1, order).diff(dim=-1, prepend=order.new_zeros(1).expand(*order.shape[:-1], 1)) != 0
        label = label + 2 * ends.cumsum(-1, dtype=torch.int32)
    return order, place, label.gather(-1, place)


def chunk_length(problem: Problem, params: Params) -> int:
    """m: the param, or all N tokens where there are fewer."""
    return min(params["chunk"], problem.seq_len)


def hash_sizes(problem: Problem, params: Params) -> list[int]:
    """The buckets of each hash of a round: powers of two, at most 64; their product is 2N/m, rounded up to one."""
    bits = max(1, math.ceil(math.log2(2 * problem.seq_len / chunk_length(problem, params))))
    parts = -(-bits // BITS_PER_HASH)
    return [2 ** (bits // parts + (part < bits % parts)) for part in range(parts)]


def bucket_of(problem: Problem, params: Params, qk: Tensor, buckets: Tensor | None, rotations: Tensor | None) -> Tensor:
    """The buckets, or else their hashes from rotations. Raises ValueError where there is neither."""
    if buckets is None and rotations is None:
        raise ValueError("reformer needs buckets or rotations")
    return hashed(qk, rotations, hash_sizes(problem, params)) if buckets is None else buckets  # type: ignore[arg-type]


def hashed(qk: Tensor, rotations: Tensor, sizes: list[int]) -> Tensor:
    """h(x) = argmax [x R; −x R] for every hash of a round, combined into one number: int32 [B, H, R, N].

    Always in float32, so that a call in float64 on the same values has the same buckets.

    Args:
        qk: [B, H, N, D].
        rotations: [H, D, R·K], K half the sum of `sizes`.
        sizes: the buckets of each hash of a round.
    """
    rotated = qk.detach().float() @ rotations.float()  # [B, H, N, R·K]
    rotated = rotated.unflatten(-1, (-1, sum(sizes) // 2))
    bucket = torch.zeros(rotated.shape[:-1], dtype=torch.int32, device=qk.device)  # [B, H, N, R]
    for size, part in zip(sizes, rotated.split([s // 2 for s in sizes], dim=-1), strict=True):
        bucket = bucket * size + torch.cat([part, -part], dim=-1).argmax(dim=-1).int()
    return bucket.transpose(-2, -1).contiguous()


def _with_previous(x: Tensor, first: float = 0) -> Tensor:
    """[…, chunks, W] → […, chunks, 2W]: the chunk before, then the chunk; `first` stands before the first."""
    return torch.cat([pad(x[..., :-1, :], (0, 0, 1, 0), value=first), x], dim=-1)


def _hidden(problem: Problem, params: Params, label: Tensor, token: Tensor) -> Tensor:
    """True where a query does not count a key in its round: [B, H, R, chunks, m, 2m], or shaped to be broadcast.

    `repeats: corrected` counts a key in the first of the rounds that bring it: as much as 1/N_ij in each of N_ij.
    """
    n = label.shape[-1]
    hidden = _with_previous(token, n).unsqueeze(-2) > (token.unsqueeze(-1) if problem.causal else n - 1)
    if params["sees"] == "bucket":
        hidden = _sees(label, token).logical_not_().logical_or_(hidden)
    if params["repeats"] == "corrected" and label.shape[2] > 1:
        hidden = hidden.expand(*token.shape, -1).contiguous()
        for back in range(1, label.shape[2]):
            hidden[:, :, back:].logical_or_(_sees(label[:, :, :-back], token[:, :, back:]))
    return hidden


def _sees(label: Tensor, token: Tensor) -> Tensor:
    """Whether query sees key in the round of the labels [B, H, R, N], for each pair of every chunk of `token`."""
    n = label.shape[-1]
    queries = label.gather(-1, token.flatten(-2).clamp(max=n - 1)).view_as(token)
    keys = _with_previous(queries, -2).unsqueeze(-2)
    queries = queries.unsqueeze(-1)
    return (keys == queries).logical_or_(keys == queries - 1)  # [B, H, R, chunks, m, 2m]


def _offsets(index: Tensor, lead: int, rows: int) -> Tensor:
    """Where each of the `lead` first dimensions' batches of `rows` rows begins, shaped to be added to index."""
    start = torch.arange(math.prod(index.shape[:lead]), device=index.device) * rows
    return start.view(*index.shape[:lead], *(1,) * (index.dim() - lead))


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """qk, v ~ N(0, 1); rotations ~ N(0, 1) for every head, or the buckets that they give."""
    data = heads(problem, generator, "qk", "v")
    return Inputs(data, choices=_choices(problem, params, generator, data["qk"]))


def _choices(problem: Problem, params: Params, generator: Generator, qk: Tensor) -> dict[str, Tensor]:
    sizes = hash_sizes(problem, params)
    shape = (problem.heads, problem.head_dim, params["n_hashes"] * sum(sizes) // 2)
    rotations = torch.randn(shape, generator=generator, device=generator.device)
    return {"rotations": rotations} if params["hashing"] == "inside" else {"buckets": hashed(qk, rotations, sizes)}


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """`flops` counts every pair of tokens that the chunks bring together.

    The data decide which of these the masks allow (bucket, causality, the token itself); the definition computes all.
    The reference also multiplies the padding of the last chunk and the empty chunk before the first: at most 4 times
    as much (N = m + 1), 2 times at N ≤ m, and (1 + m/2N) for long sequences.
    """
    b, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    rounds, m = params["n_hashes"], chunk_length(problem, params)
    whole_chunks, last_tokens = divmod(n, m)
    pairs = rounds * (m * m + (whole_chunks - 1) * 2 * m * m + last_tokens * (last_tokens + m))
    executed = rounds * -(-n // m) * m * 2 * m
    columns = rounds * sum(hash_sizes(problem, params)) // 2
    inside = params["hashing"] == "inside"
    hashing = product(b * h * n * d * columns, mode, gradients=0) if inside else 0  # x R: [N, D] × [D, R·K]
    size = b * h * n * d
    choices = h * d * columns if inside else b * h * rounds * n  # of 4 bytes
    return Cost(
        flops=product(b * h * pairs * d, mode)  # q kᵀ: [m, D] × [D, 2m] in every chunk
        + product(b * h * pairs * d, mode)  # p v: [m, 2m] × [2m, D]
        + hashing,
        reference_flops=2 * product(b * h * executed * d, mode) + hashing,
        elementwise=4 * b * h * pairs * (1 if mode == "fwd" else 2)  # max, subtract, exp, divide
        + b * h * rounds * n * math.ceil(math.log2(n + 1)),  # comparisons of the sort
        bytes_required=traffic(
            problem, mode, read=2 * size, written=size, constant=-(-choices * 4 // problem.item_bytes)
        ),
        # Every token's bucket is known before the first attends.
        bytes_again=moved_again(problem, mode, forward=size if inside else 0),
    )


def _complexity(params: Params) -> Complexity:
    """Products: N·R·2m·D in the chunks; the hashes have log N columns. The sort is N log N comparisons."""
    return Complexity(time="n log n" if params["hashing"] == "inside" else "n", memory="n")


def _why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    if params["hashing"] == "given":
        return None
    if problem.causal:
        return (
            "hashing: inside is not causal: where chunks end depends on the buckets of later tokens; use hashing: given"
        )
    if scope == "layer":
        return (
            "hashing: inside in a layer is not a fixed map: the projection's rounding flips buckets; use hashing: given"
        )
    return None


def _chunked() -> Callable[..., Tensor]:
    from attnbench.kernels.sorted_chunks.launch import Seeing, attend, lines

    def call(
        problem: Problem,
        params: Params,
        qk: Tensor,
        v: Tensor,
        buckets: Tensor | None = None,
        rotations: Tensor | None = None,
    ) -> Tensor:
        m = chunk_length(problem, params)
        buckets = bucket_of(problem, params, qk, buckets, rotations)
        seeing = Seeing(m, problem.causal, params["repeats"] == "corrected", params["sees"] == "bucket")
        order, label = lines(buckets, math.prod(hash_sizes(problem, params)), seeing)
        return attend(qk, v, order, label, seeing)

    return call


def _chunked_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return why_not(problem)


CORE = Form(
    reference,
    make_inputs,
    cost,
    {"cuda": Impl(_chunked, "torch sort, attnbench Triton: sorted_chunks", _chunked_why_not)},
)
LAYER = projected(CORE, names=("qk", "v"))


def _layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """The layer's inputs, with the buckets of its own queries."""
    inputs = LAYER.make_inputs(problem, params, generator)
    qk = (inputs.data["x"] @ inputs.parameters["w_qk"]).unflatten(-1, (problem.heads, -1)).transpose(1, 2)
    return replace(inputs, choices=_choices(problem, params, generator, qk))


OPERATOR = Operator(
    paper=Paper(
        "Kitaev et al.",
        2020,
        "Reformer: The Efficient Transformer",
        "https://arxiv.org/abs/2001.04451",
        "eq. 2-6 and appendix A",
    ),
    forms=with_graph({"core": CORE, "layer": replace(LAYER, make_inputs=_layer_inputs)}, "cuda"),
    complexity=_complexity,
    pairs=lambda params, causal: "chosen",
    params={
        "chunk": Param(64, "m, the chunk's length; a round hashes into 2N/m buckets", minimum=1),
        "n_hashes": Param(4, "hash rounds R", minimum=1, maximum=64),
        "sees": Param("bucket", "which keys of the two chunks: the query's bucket, or all", ("bucket", "chunk")),
        "repeats": Param(
            "corrected", "a key met in several rounds counts once (log N_ij), or each time", ("corrected", "counted")
        ),
        "hashing": Param("given", "buckets computed once with the inputs, or in the call", ("given", "inside")),
    },
    grouped="queries and keys are the same vectors, so there are as many heads of both",
    continues="one more token moves the end of every chunk behind it in the sorted line: earlier outputs would change",
    why_not=_why_not,
    notes="plus a sort of N log N comparisons; buckets are given unless hashing: inside",
)
