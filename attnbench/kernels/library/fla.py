"""Recurrences by flash-linear-attention's kernels; the causal scan from features that eager PyTorch has computed.

Of up to MOST_RECURRENT new tokens after a state one kernel takes token after token; otherwise the kernels go by chunks.
A head of a sample is a sample of one head to them, so that nothing is transposed. The queries of a group of heads are
tokens one after the other, of which all but the first bring no key: so each state is read and written once for all.

Yang and Zhang 2024, `fla.ops`, https://github.com/fla-org/flash-linear-attention
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module, metadata
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.grouped import group_of, merged, separated
from attnbench.kernels.support import tf32_allowed, why_not
from attnbench.modules import installed
from attnbench.problem import Problem

MAX_FEATURES = 256

MOST_RECURRENT = 16
"""New tokens after a state up to which one token after another is faster than chunks of 64."""


EXACT_FLOAT32 = ("based", "rebased")
"""Modules whose products of float32 are no TF32; those of the others are, whatever torch's settings say."""


def why_not_fla(problem: Problem, features: int, module: str = "simple_gla") -> str | None:
    """The reason the library's `fla.ops` module cannot run this here, or None."""
    if not problem.causal:
        return "flash-linear-attention has causal kernels only"
    if features > MAX_FEATURES:
        return f"flash-linear-attention's chunk kernels take at most {MAX_FEATURES} features, not {features}"
    reason = why_not(problem)
    if reason is None and not installed(f"fla.ops.{module}"):
        return "flash-linear-attention is not installed: pip install fla-core"
    if reason is None and problem.dtype == "float32" and not _exact_in_float32(problem, module):
        return "flash-linear-attention's chunks multiply float32 in TF32, which torch's settings do not allow"
    return reason


def _exact_in_float32(problem: Problem, module: str) -> bool:
    by_step = problem.past > 0 and problem.query_len <= MOST_RECURRENT
    return by_step or module in EXACT_FLOAT32 or tf32_allowed()


def why_no_gated_gradients() -> str | None:
    """The reason the library refuses the gradients of a gated scan here, or None (its issue 640)."""
    numbers = tuple(int(n) for n in re.findall(r"\d+", metadata.version("triton"))[:3])
    hopper = torch.cuda.get_device_capability()[0] == 9
    if hopper and (3, 4) <= numbers < (3, 7, 1) and not installed("tilelang"):
        return (
            "Triton 3.4 to 3.7.0 compiles flash-linear-attention's gated gradients wrongly for Hopper: "
            "pip install 'triton>=3.7.1', or tilelang"
        )
    return None


def attend_with_fla(
    fq: Tensor,
    fk: Tensor,
    v: Tensor,
    dtype: torch.dtype,
    epsilon: float = 0.0,
    log_keep: Tensor | None = None,
    sums: Tensor | None = None,
    totals: Tensor | None = None,
) -> Any:
    """φ(q_i)ᵀ S_i / (φ(q_i)ᵀ z_i + ε), with S and z decayed by exp(log_keep).

    Where there are no totals, columns of ones beside v sum to z: eight of them, to keep rows aligned, or the one that
    sums has.

    Args:
        fq, fk: features, [B, H, Q, m] and [B, Hk, Q, m].
        v: [B, Hk, Q, D].
        dtype: of y.
        epsilon: added to the normaliser.
        log_keep: [B, Hk, Q], float32; None: no decay.
        sums: S, or where there are no totals [S, z], after the tokens before, float32, [B, Hk, m, D or D + 1].
        totals: z after them, [B, Hk, m].

    Returns: y, [B, H, Q, D]; with sums a tuple of it, of the new sums, and of the new totals where they were given.
    """
    if sums is None:
        y, _ = _scanned(fq, fk, pad(v, (0, 8), value=1.0), log_keep, None)
        return _normalised(y, v.shape[-1], epsilon).to(dtype)
    if totals is None:
        y, new = _scanned(fq, fk, pad(v, (0, 1), value=1.0), log_keep, sums)
        return _normalised(y, v.shape[-1], epsilon).to(dtype), new
    y, new = _scanned(fq, fk, v, log_keep, sums)
    counts = fk.cumsum(dim=2, dtype=totals.dtype) + totals.unsqueeze(2)  # [B, Hk, Q, m]
    heads = fq.unflatten(1, (fk.shape[1], -1))  # [B, Hk, G, Q, m]
    normaliser = (counts.unsqueeze(2) * heads).sum(dim=-1, keepdim=True).flatten(1, 2)
    return (y / (normaliser + epsilon)).to(dtype), new, counts[:, :, -1].contiguous()


@dataclass(frozen=True)
class Functions:
    """Two functions of a module of `fla.ops` that compute one recurrence.

    Attributes:
        module: as simple_gla.
        chunks: by chunks of tokens.
        steps: one token after another, in the forward alone.
        renamed: the names that arguments of `chunks` have in `steps`.
    """

    module: str
    chunks: str
    steps: str
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def kernel(self) -> str:
        """For `Impl.kernel`."""
        return f"flash-linear-attention: {self.module}"


SIMPLE_GLA = Functions("simple_gla", "chunk_simple_gla", "fused_recurrent_simple_gla")
KERNEL = SIMPLE_GLA.kernel


def recurrent_with_fla(
    functions: Functions,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Tensor],
    scale: float,
    state: Tensor | None,
) -> Any:
    """A recurrence of H states. Heads that share q and k get copies of them.

    Args:
        tensors: by the library's names, v among them: [B, H or heads that divide H, Q, X].
        numbers: those with one number of a token and head, [B, H, Q, 1].
        scale: of y.
        state: S before, [B, H, K, V], float32.

    Returns: y, [B, H, Q, V]; with a state a tuple of it and of the new state.
    """
    v = tensors["v"]
    heads = v.shape[1]

    def sample_of_one_head(x: Tensor) -> Tensor:
        x = x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)
        return x.flatten(0, 1).unsqueeze(2)  # [B·H, Q, 1, X]

    arguments = {name: sample_of_one_head(x) for name, x in tensors.items()}
    arguments |= {name: sample_of_one_head(x).squeeze(-1) for name, x in numbers.items()}
    by_step = state is not None and v.shape[2] <= MOST_RECURRENT
    if by_step:
        arguments = {functions.renamed.get(name, name): x for name, x in arguments.items()}
    y, last = getattr(import_module(f"fla.ops.{functions.module}"), functions.steps if by_step else functions.chunks)(
        **arguments,
        scale=scale,
        initial_state=None if state is None else state.flatten(0, 1).unsqueeze(1),
        output_final_state=state is not None,
    )
    y = y.view(v.shape).to(v.dtype)
    return y if state is None else (y, last.view(state.shape))


def taylor_with_fla(module: str, function: str, q: Tensor, k: Tensor, v: Tensor, epsilon: float) -> Tensor:
    """Causal attention with polynomials of logits as weights, by a function of `fla.ops` for it: [B, H, N, D].

    Its functions of the module based have their ε, 10⁻⁶, inside.

    Args:
        module: based or rebased.
        q, k: [B, H, N, d].
        v: [B, H, N, D].
    """
    call = getattr(import_module(f"fla.ops.{module}"), function)
    given = {"eps": epsilon} if module == "rebased" else {}
    y: Tensor = call(*(x.transpose(1, 2) for x in (q, k, v)), **given)
    return y.transpose(1, 2)


def half_safe(*tensors: Tensor) -> tuple[Tensor, ...]:
    """float16 as float32: sums of features pass 65504; others as they are."""
    return tuple(x.float() if x.dtype == torch.float16 else x for x in tensors)


def _normalised(y: Tensor, d: int, epsilon: float) -> Tensor:
    return y[..., :d] / (y[..., d : d + 1] + epsilon)


def _scanned(
    q: Tensor, k: Tensor, v: Tensor, log_keep: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Σ_{j ≤ i} (q_i·k_j) v_j, decayed, [B, H, Q, X], and the last state; that is None where there was none before.

    Args:
        q, k: [B, H, Q, m] and [B, Hk, Q, m].
        v: [B, Hk, Q, X].
        log_keep: [B, Hk, Q].
        state: [B, Hk, m, X].
    """
    group = group_of(q, k)
    rows = {"q": merged(q, group, dim=2, heads=1), "k": _spread(k, group), "v": _spread(v, group)}  # [B, Hk, Q·G, …]
    keep = {} if log_keep is None else {"g": _spread(log_keep.float().unsqueeze(-1), group)}
    outputs = recurrent_with_fla(SIMPLE_GLA, rows, keep, 1.0, state)
    y, last = (outputs, None) if state is None else outputs
    return separated(y, group, dim=2, heads=1), last


def _spread(x: Tensor, group: int) -> Tensor:
    """Zeros after each token, for the queries of a group that bring none: [B, Hk, Q, X] → [B, Hk, Q·G, X]."""
    return x if group == 1 else pad(x.unsqueeze(3), (0, 0, 0, group - 1)).flatten(2, 3)
