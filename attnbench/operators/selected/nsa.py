"""y_i = g^cmp_i a^cmp_i + g^slc_i a^slc_i + g^win_i a^win_i, each softmax attention of q_i to some of what is j ≤ i.

a^cmp: to compressed blocks, c of the tokens d·c … d·c + l − 1, of those with d·c + l − 1 ≤ i; 0 where there is none.
Their keys and values are means of the tokens' (`compress: mean`) or an MLP of them (`mlp`: GELU, D hidden units, which
the paper leaves open; one for keys and one for values, the same for all heads).
a^slc: to the tokens j ≤ i of n blocks, J of the tokens l'·J … l'·J + l' − 1: the first, i's own, the one before, and
those of the largest importance Σ_c p^cmp_ic |c ∩ J| / d, p^cmp summed over the heads of a group, which choose alike.
(The paper's eq. 9 as printed counts blocks c before J.) No gradient passes through the choice.
a^win: to the tokens 0 ≤ i − j ≤ w − 1: w keys.
The logits are q_iᵀ k / √D in all three. With `kv: own`, as in the paper, each has keys and values of its own; with
`kv: shared` they have the same. With `selection: inside` the call chooses, in float32 whatever the working dtype is, so
that every dtype has the same blocks; with `selection: given` the blocks are chosen once with the inputs.

Yuan et al. 2025, "Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention", eq. 5–12,
https://arxiv.org/abs/2502.11089
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from attnbench import window
from attnbench.cost import product, traffic
from attnbench.inputs import heads, normal
from attnbench.kernels.library import fla_selected
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Call, Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators.kernelized._contraction import widened
from attnbench.operators.selected import _blocks, _compression
from attnbench.operators.selected._choice import SELECTION, not_in_a_layer
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.projection import projected
from attnbench.state import appended, cache_bytes, cached_rows, drawn_caches, with_room

BRANCHES = 3

Tensors = Mapping[str, Tensor]


def reference(
    problem: Problem, params: Params, q: Tensor, gates: Tensor, chosen: Tensor | None = None, **tensors: Tensor
) -> Tensor:
    """Compressed attention in tiles of queries, the selected blocks by `_blocks`, windows by `window`.

    Args:
        q: [B, H, Q, D].
        gates: g of cmp, slc and win, [B, H, Q, 3].
        chosen: int32 [B, Hk, Q, n], the blocks of each query; None: they are chosen here.
        tensors: k, v: [B, Hk, Q, D]; with `kv: own` they are those of the selected blocks, and there are k_cmp, v_cmp,
            k_win and v_win; with `compress: mlp` position_…, w_in_… and w_out_… of k and of v. Where Q < N, of each
            the cache of the tokens before that `state` leaves.

    Returns: [B, H, Q, D].
    """
    keys, values = (compressed(problem, params, tensors, name) for name in "kv")
    slots = 0 if chosen is not None else slots_of(problem, params)
    if slots and q.dtype == torch.float64:
        chosen, slots = choose(problem, params, q, tensors), 0
    y_cmp, inside = _compression.attend(q, keys, values, problem.past, params, slots)
    chosen = inside if chosen is None else chosen
    assert chosen is not None
    scaled = q * problem.head_dim**-0.5
    k, v = (appended(tensors.get(f"{name}_cache"), tensors[name]) for name in "kv")
    y_slc = _blocks.attend(scaled, k, v, chosen, block_of(problem, params))
    k, v = (_window_of(problem, params, tensors, name) for name in "kv")
    y_win = window.attend(scaled, k, v, params["window"] - 1, 0)
    g_cmp, g_slc, g_win = gates.unsqueeze(-1).unbind(dim=-2)
    return y_cmp.to(q.dtype) * g_cmp + y_slc * g_slc + y_win * g_win


def block_of(problem: Problem, params: Params) -> int:
    """Tokens that a selected block has: l', or all N where there are fewer."""
    return min(params["select"], problem.seq_len)


def slots_of(problem: Problem, params: Params) -> int:
    """n, or all blocks where there are fewer."""
    return min(params["blocks"], -(-problem.seq_len // params["select"]))


def _name(params: Params, name: str, branch: str) -> str:
    """Of k or v of a branch."""
    return f"{name}_{branch}" if params["kv"] == "own" else name


def _window_of(problem: Problem, params: Params, tensors: Tensors, name: str) -> Tensor:
    """k or v of the tokens that a window of the new tokens can reach."""
    name = _name(params, name, "win")
    x = tensors.get(f"{name}_cache")
    if x is None:
        return tensors[name]
    reach = cached_rows(problem, params["window"] - 1) + problem.query_len
    return appended(x, tensors[name])[..., x.shape[-2] - reach :, :]


def compressed(problem: Problem, params: Params, tensors: Tensors, name: str, single: bool = False) -> Tensor:
    """Of k or v all blocks that have ended, [B, Hk, blocks, D], in float32 at least.

    Where Q < N the new ones are written to the cache. single: float32 even in float64, and none is written.
    """
    cache, raw = tensors.get(f"{name}_blocks_cache"), _name(params, name, "cmp")
    x = appended(tensors.get(f"{raw}_cache"), tensors[raw])
    known = _compression.ended(problem.past, params)
    x = x[..., known * params["step"] - (problem.seq_len - x.shape[-2]) :, :]
    weights = [tensors[f"{weight}_{name}"] for weight in MLP] if params["compress"] == "mlp" else []
    x, *weights = (each.detach().float() if single else widened(each) for each in (x, *weights))
    new = _compression.mlp(x, params, *weights) if weights else _compression.mean(x, params)
    if cache is None:
        return new
    if single:
        return torch.cat((cache[..., :known, :].float(), new), dim=-2)
    cache[..., known : known + new.shape[-2], :] = new
    return cache[..., : known + new.shape[-2], :]


MLP = ("position", "w_in", "w_out")


def choose(problem: Problem, params: Params, q: Tensor, tensors: Tensors) -> Tensor:
    """The blocks of the new tokens, chosen in float32: int32 [B, Hk, Q, n]."""
    with torch.no_grad():
        keys = compressed(problem, params, tensors, "k", single=True)
        _, chosen = _compression.attend(q.float(), keys, keys[..., :0], problem.past, params, slots_of(problem, params))
    assert chosen is not None
    return chosen


def data_names(params: Params) -> tuple[str, ...]:
    """Of the tensors that a layer projects x to."""
    return ("q", "k", "v", "k_cmp", "v_cmp", "k_win", "v_win") if params["kv"] == "own" else ("q", "k", "v")


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): the logits have variance 1, of means less; gates σ(N(0, 1)). The MLPs keep the variance."""
    data = heads(problem, generator, *data_names(params))
    gates = normal(problem, generator, problem.batch, problem.heads, problem.query_len, BRANCHES)
    data["gates"] = gates.sigmoid()
    parameters = _mlps(problem, params, generator) if params["compress"] == "mlp" else {}
    held = _drawn_state(problem, params, generator, {**data, **parameters})
    inputs = Inputs(data, parameters, state=held)
    return replace(inputs, choices=own_choices(problem, params, inputs.tensors()))


def own_choices(problem: Problem, params: Params, tensors: Tensors) -> dict[str, Tensor]:
    """What queries choose, where it is given. tensors: of the core; none is changed."""
    if params["selection"] == "inside":
        return {}
    tensors = {n: tensor.clone() if n.endswith("_cache") else tensor for n, tensor in tensors.items()}
    return {"chosen": choose(problem, params, tensors["q"], tensors)}


def _mlps(problem: Problem, params: Params, generator: Generator) -> dict[str, Tensor]:
    d, length = problem.head_dim, params["length"]
    weights = {}
    for name in "kv":
        weights[f"position_{name}"] = normal(problem, generator, length, d)
        weights[f"w_in_{name}"] = normal(problem, generator, length * d, d, scale=(2 * length * d) ** -0.5)
        weights[f"w_out_{name}"] = normal(problem, generator, d, d, scale=(2 / d) ** 0.5)
    return weights


def _drawn_state(problem: Problem, params: Params, generator: Generator, tensors: Tensors) -> dict[str, Tensor]:
    """A state of N(0, 1) keys and values, filled with the new ones, so that a call leaves its inputs as they were."""
    if not problem.past:
        return {}
    held = drawn_caches(problem, generator, tensors["k"], tensors["v"])
    before = dict(tensors)
    for k, v in zip(data_names(params)[1::2], data_names(params)[2::2], strict=True):
        drawn = held if k == "k" else drawn_caches(problem, generator, tensors[k], tensors[v])
        before |= {k: drawn["k_cache"][..., : problem.past, :], v: drawn["v_cache"][..., : problem.past, :]}
    held = state(problem, params, **before)
    for name, tensor in tensors.items():
        if f"{name}_cache" in held:
            appended(held[f"{name}_cache"], tensor)
    for name in "kv":
        compressed(problem, params, {**tensors, **held}, name)
    return held


def state(problem: Problem, params: Params, **tensors: Tensor) -> dict[str, Tensor]:
    """All keys and values of the selection, compressed blocks, and with `kv: own` the last of the other branches.

    These are w − 1 of the window and the l − 1 that may be of a block that has not ended.
    """
    blocks = {name: compressed(problem.before, params, tensors, name) for name in "kv"}
    held = {f"{name}_cache": with_room(problem, tensors[name]) for name in "kv"}
    held |= {f"{name}_blocks_cache": pad(x, (0, 0, 0, problem.query_len)) for name, x in blocks.items()}
    if params["kv"] == "own":
        for branch, most in (("cmp", params["length"] - 1), ("win", params["window"] - 1)):
            held |= {f"{n}_{branch}_cache": with_room(problem, tensors[f"{n}_{branch}"], most) for n in "kv"}
    return held


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference multiplies selected blocks whole and pads chunks of queries; windows see `Windows`.

    Where compressed attention goes tile by tile, backward computes its scores again. In float64 what is chosen inside
    is computed in float32 beside it.
    """
    b, h, n, past, d = problem.batch, problem.heads, problem.seq_len, problem.past, problem.head_dim
    reach, slots, inside = params["window"] - 1, slots_of(problem, params), params["selection"] == "inside"
    cmp_pairs = _compression.compressed_pairs(past, n, params)
    slc_pairs = _blocks.seen_pairs(past, n, params["blocks"], params["select"])
    win_pairs = window.window_pairs(n, reach, 0) - window.window_pairs(past, reach, 0)
    pairs = cmp_pairs + slc_pairs + win_pairs
    phi = _phi_terms(problem, params)
    cmp_executed, again = _compression.executed(b * h, problem.query_len, d, past, params)
    scores = product(b * h * cmp_executed * d, "fwd")
    executed = 2 * product(b * h * cmp_executed * d, mode) + (scores if again and mode == "fwd_bwd" else 0)
    executed += b * h * d * _blocks.executed(problem, problem.kv_heads, slots, block_of(problem, params), mode)
    win_executed = window.executed_pairs(problem.query_len, reach, 0, past=cached_rows(problem, reach))
    executed += 2 * product(b * h * win_executed * d, mode)
    if inside and problem.dtype == "float64":
        executed += scores + product(phi // 2, "fwd")
    return Cost(
        flops=2 * product(b * h * pairs * d, mode) + product(phi, mode),  # q kᵀ and p v of each branch, φ
        reference_flops=executed + product(phi, mode),
        elementwise=4 * b * h * pairs * (1 if mode == "fwd" else 2),  # max, subtract, exp, divide
        bytes_required=_bytes(problem, params, mode),
        state_bytes=_state_bytes(problem, params, n),
    )


def _phi_terms(problem: Problem, params: Params) -> int:
    """Multiply-adds of the MLPs of the new blocks: [blocks, l·D] × [l·D, D] and [blocks, D] × [D, D], of k and of v."""
    if params["compress"] == "mean":
        return 0
    d = problem.head_dim
    blocks = _compression.ended(problem.seq_len, params) - _compression.ended(problem.past, params)
    return 2 * problem.batch * problem.kv_heads * blocks * (params["length"] + 1) * d * d


def _mlp_weights(problem: Problem, params: Params) -> int:
    d = problem.head_dim
    return 2 * d * (params["length"] * (1 + d) + d) if params["compress"] == "mlp" else 0


def _bytes(problem: Problem, params: Params, mode: Mode) -> int:
    """Of the tokens before those that one new token sees: others may see the same."""
    b, q, past, kv = problem.batch, problem.query_len, problem.past, problem.kv_channels
    new = b * q * kv * (len(data_names(params)) - 1)
    selected, in_window, pending = (
        min(past, most) for most in (params["blocks"] * params["select"], params["window"] - 1, params["length"] - 1)
    )
    cached = selected + in_window + pending if params["kv"] == "own" else max(selected, in_window, pending)
    blocks = 4 if problem.dtype != "float64" else 8
    blocks *= 2 * b * kv * _compression.ended(past, params)
    chosen = 4 * b * problem.kv_heads * q * slots_of(problem, params) if params["selection"] == "given" else 0
    return traffic(
        problem,
        mode,
        read=b * q * (problem.channels + BRANCHES * problem.heads) + new + _mlp_weights(problem, params),
        written=b * q * problem.channels + (new if past else 0),
        constant=2 * b * cached * kv + -(-(chosen + blocks) // problem.item_bytes),
    )


def _state_bytes(problem: Problem, params: Params, tokens: int) -> int:
    width = 8 if problem.dtype == "float64" else 4
    blocks = 2 * problem.batch * problem.kv_channels * _compression.ended(tokens, params) * width
    rows = tokens
    if params["kv"] == "own":
        rows += min(tokens, params["window"] - 1) + min(tokens, params["length"] - 1)
    return cache_bytes(problem, rows) + blocks


def _cuda() -> Call:
    from attnbench.kernels.flex import windows as flex

    def call(
        problem: Problem,
        params: Params,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Tensor,
        chosen: Tensor | None = None,
    ) -> Tensor:
        if chosen is None:
            chosen = choose(problem, params, q, {"k": k})
        y = fla_selected.nsa(q, k, v, gates[..., :2], chosen, params["select"])
        return torch.addcmul(y, flex.causal_window(q, k, v, params["window"] - 1), gates[..., 2:])

    return call


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    from attnbench.kernels.flex import windows as flex

    if (params["compress"], params["kv"]) != ("mean", "shared"):
        return "flash-linear-attention's parallel_nsa has compress: mean and kv: shared alone"
    lengths = [params[name] for name in ("length", "step", "select")]
    if len(set(lengths)) > 1:
        given = ", ".join(map(str, lengths))
        return f"flash-linear-attention's parallel_nsa has blocks of one length: length = step = select, not {given}"
    reason = flex.why_not(problem, problem.query_len, problem.seq_len)
    return reason or fla_selected.why_not_nsa(problem, params["select"])


CUDA = Impl(
    _cuda, "float32 torch choice, flash-linear-attention: nsa, FlexAttention window", _cuda_why_not, grouped=True
)
CORE = Form(reference, make_inputs, cost, {"cuda": CUDA}, state)

AROUND = {kv: projected(CORE, data_names({"kv": kv})) for kv in ("shared", "own")}


def with_gates(call: Call) -> Call:
    """A layer whose gates are σ(x W), around one that takes them."""

    def layer(problem: Problem, params: Params, x: Tensor, w_gates: Tensor, **tensors: Tensor) -> Tensor:
        y: Tensor = call(problem, params, x=x, gates=_gates(x, w_gates), **tensors)
        return y

    return layer


def _gates(x: Tensor, w_gates: Tensor) -> Tensor:
    """[B, Q, C] → [B, H, Q, 3]."""
    gates: Tensor = (x @ w_gates).sigmoid().unflatten(-1, (-1, BRANCHES)).transpose(1, 2)
    return gates


def _layer(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
    return with_gates(AROUND[params["kv"]].reference)(problem, params, **tensors)


def _layer_state(problem: Problem, params: Params, w_gates: Tensor, **tensors: Tensor) -> dict[str, Tensor]:
    form = AROUND[params["kv"]]
    assert form.state is not None
    return form.state(problem, params, **tensors)


def _layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """The layer's inputs, with what its own queries choose."""
    inputs = AROUND[params["kv"]].make_inputs(problem, params, generator)
    c, x = problem.channels, inputs.data["x"]
    w_gates = normal(problem, generator, c, BRANCHES * problem.heads, scale=c**-0.5)
    inputs = replace(inputs, parameters={**inputs.parameters, "w_gates": w_gates})
    split = {
        name: (x @ inputs.parameters[f"w_{name}"]).unflatten(-1, (-1, problem.head_dim)).transpose(1, 2)
        for name in data_names(params)
    }
    return replace(inputs, choices=own_choices(problem, params, {**inputs.tensors(), **split}))


def _layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """With the gates' projection, [B·Q, C] × [C, 3·H], in the place of the gates."""
    inner = AROUND[params["kv"]].cost(problem, params, mode)
    tokens, columns = problem.batch * problem.query_len, BRANCHES * problem.heads
    gates = product(tokens * problem.channels * columns, mode)
    moved = traffic(problem, mode, read=problem.channels * columns, written=0)
    replaced = traffic(problem, mode, read=tokens * columns, written=0)
    return replace(
        inner,
        flops=inner.flops + gates,
        reference_flops=inner.reference_flops + gates,
        bytes_required=inner.bytes_required + moved - replaced,
    )


def _layer_cuda() -> Call:
    return with_gates(AROUND["shared"].impls["cuda"].load())


LAYER = Form(_layer, _layer_inputs, _layer_cost, {"cuda": replace(CUDA, load=_layer_cuda)}, _layer_state)


def why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    """Steps that do not divide the blocks; a choice inside a layer."""
    step = params["step"]
    for name in ("length", "select"):
        if params[name] % step:
            return f"step divides length and select, and {step} does not divide {name} = {params[name]}"
    return not_in_a_layer(params, scope)


OPERATOR = Operator(
    paper=Paper(
        "Yuan et al.",
        2025,
        "Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention",
        "https://arxiv.org/abs/2502.11089",
        "eq. 5-12",
    ),
    forms=with_graph({"core": CORE, "layer": LAYER}, "cuda"),
    complexity=lambda params: Complexity(time="n^2", memory="n"),
    params={
        "compress": Param("mean", "how a block becomes a key and a value", ("mean", "mlp")),
        "kv": Param("shared", "keys and values of the three branches: the same, or of its own each", ("shared", "own")),
        "selection": SELECTION,
        "length": Param(32, "l, tokens of a compressed block", minimum=1),
        "step": Param(16, "d, from one compressed block to the next; divides l and l'", minimum=1),
        "select": Param(64, "l', tokens of a selected block", minimum=1),
        "blocks": Param(16, "n, selected blocks: the first, the own, the one before, n - 3 others", minimum=3),
        "window": Param(512, "w, tokens of the window, the own included", minimum=1),
    },
    domains=("sequence",),
    full="blocks are chosen among the earlier ones",
    grouped=True,
    continues=True,
    why_not=why_not,
    notes="n^2/d products; in a layer blocks are given (selection: given)",
)
