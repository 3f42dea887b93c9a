"""What a call moves at least, against counts by hand: of every operator the tensors that each direction moves.

The chip holds sums over all tokens and whatever does not grow with N, such as a window of tokens. A tensor that is used
before and after such a sum is complete is moved again. Weights and choices are read once in each direction, and their
gradients written once; the tables have the tensors of all tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

import torch

from attnbench.measure.worker.fake_memory import output_like
from attnbench.problem import MODES, Mode, Problem
from tests.operators.by_operator import by_operator
from tests.variants import Variant, variants

Moved = tuple[str, str]
"""What the forward and what the backward moves: tensors, dy of the cotangent, d… of gradients, each with a factor."""

ONCE = "q k v y", "q k v dy dq dk dv"
WITH_Y = "q k v y", "q k v y dy dq dk dv"  # the gradients of a query's scores all have the sum of its y · dy
LAYER = "x y", "x dy dx"
LAYER_WITH_Y = "x y", "x y dy dx"
SUMMED_FIRST = "2x y", "2x 2dy dx"  # keys of x are summed before queries of x are answered

BY_HAND: Mapping[str, Moved] = {
    "softmax-*-core": WITH_Y,
    "softmax-*-layer": LAYER_WITH_Y,
    "mla-*-core": ("q_n q_r c k_r y", "q_n q_r c k_r y dy dq_n dq_r dc dk_r"),
    "mla-*-layer": LAYER_WITH_Y,
    "softmax_pool-*-core": (
        "q k v y",
        "q 2k/4 2v/4 y dy dq dk dv",
    ),  # means, written in the forward, in place of k and v
    "softmax_pool-*-layer": LAYER_WITH_Y,
    "non_local-gaussian-core": ("x g y", "x g y dy dx dg"),
    "non_local-embedded_gaussian-core": ("theta phi g y", "theta phi g y dy dtheta dphi dg"),
    "non_local-*gaussian-layer": ("x y", "x y/2 dy dx"),  # y of the core has half the channels
    "non_local-*-core": ("theta phi g y", "theta phi g dy dtheta dphi dg"),
    "non_local-*-layer": SUMMED_FIRST,
    "identity-core": ("", ""),
    "identity-layer": LAYER,
    "local-core": ONCE,
    "sliding_window-*-core": ONCE,
    "neighborhood-*-core": ONCE,
    "strided-*-core": ONCE,
    "sparse_transformer-*-core": ONCE,
    "big_bird-*-core": ONCE,
    "longformer-mixed_heads-core": ONCE,
    "longformer-window-core": (
        "q k v q_global k_global v_global y",
        "q k v q_global k_global v_global dy dq dk dv dq_global dk_global dv_global",
    ),
    "global_tokens-internal-core": ONCE,
    "global_tokens-external-core": (
        "q k v q_global k_global v_global y",
        "q k v q_global k_global v_global dy dq dk dv dq_global dk_global dv_global",
    ),
    "swin_window-*-core": ONCE,
    "axial-*-core": ONCE,
    "criss_cross-*core": ONCE,
    # What one layer gives the next is as large as x and y: written and read, read again for its gradient, and that too.
    "axial-sum-True-layer": ("x 3y", "x y 3dy dx"),
    "axial-*-layer": LAYER,
    "criss_cross-*layer": ("x 3y", "x y 3dy dx"),
    "swin_window-*-layer": LAYER,
    "local-layer": LAYER,
    "sliding_window-*-layer": LAYER,
    "neighborhood-*-layer": LAYER,
    "strided-*-layer": LAYER,
    "sparse_transformer-*-layer": LAYER,
    "big_bird-*-layer": LAYER,
    "longformer-*-layer": LAYER,
    "global_tokens-*-layer": LAYER,
    "moba-*-core": ONCE,
    "nsa-*-own-*-core": (
        "q k v k_cmp v_cmp k_win v_win gates y",
        "q k v k_cmp v_cmp k_win v_win gates dy dq dk dv dk_cmp dv_cmp dk_win dv_win dgates",
    ),
    "nsa-*-core": ("q k v gates y", "q k v gates dy dq dk dv dgates"),
    "nsa-*-layer": LAYER,
    "moba-*-layer": LAYER,
    "dsa-mla-*-core": ("q_n q_r c k_r y", "q_n q_r c k_r dy dq_n dq_r dc dk_r"),
    "dsa-*-core": ONCE,
    "dsa-*-layer": LAYER,
    # qk is hashed before any query attends; the backward has the buckets.
    "reformer-*-inside-core": ("2qk v y", "qk v dy dqk dv"),
    "reformer-*-inside-layer": ("2x y", "x dy dx"),
    "reformer-*-core": ("qk v y", "qk v dy dqk dv"),
    "reformer-*-layer": LAYER,
    # Blocks of keys are summed before they are sorted; what the sorting logits give dk is added to what attention gave.
    "sinkhorn-*-core": ("q 2k v y", "q k v dy dq 3dk dv"),
    "sinkhorn-*-layer": ("2x y", "x dy 3dx"),
    "linformer-*-core": ONCE,
    "linformer-*-layer": SUMMED_FIRST,
    # q for q̃, then k and v, then q; backwards q and dy for what landmarks have of v, and again when dq̃ is complete.
    "nystromformer-*-core": ("2q k v y", "2q k v 2dy dq dk dv"),
    "nystromformer-*-layer": ("3x y", "3x 2dy dx"),
    # Sums over all tokens come first in both directions; in the layer also those of the norm.
    "external_attention-core": ("2x y", "2x 2dy dx"),
    "external_attention-layer": ("3x y", "3x 3dy dx"),
    "compressed-core": WITH_Y,
    "compressed-layer": LAYER_WITH_Y,
    "kao_kv-*-core": ("q k v y", "q dy dq dk dv"),  # means of k and of v are still there
    "kao_kv-*-layer": SUMMED_FIRST,
    "kao_qkv-*-core": ("q k v y", "dy dq dk dv"),
    "kao_qkv-*-layer": ("x y", "dy dx"),
    **{f"{name}-core": ONCE for name in ("efficient", "based-*", "linear_transformer", "performer-*", "rfa-*")},
    **{
        f"{name}-layer": SUMMED_FIRST for name in ("efficient", "based-*", "linear_transformer", "performer-*", "rfa-*")
    },
    "retention-*-core": ONCE,
    **{f"{name}-*-layer": LAYER for name in ("retention", "gla", "mamba2", "gated_delta_net", "kda", "rwkv7")},
    "gla-*-core": ("q k v log_decay y", "q k v log_decay dy dq dk dv dlog_decay"),
    "mamba2-*-core": ("q k v delta y", "q k v delta dy dq dk dv ddelta"),
    "gated_delta_net-delta_net-*-core": ("q k v beta y", "q k v beta dy dq dk dv dbeta"),
    **{
        f"{name}-core": ("q k v beta log_decay y", "q k v beta log_decay dy dq dk dv dbeta dlog_decay")
        for name in ("gated_delta_net-*", "kda-*")
    },
    "rwkv7-*-core": (
        "q k v kappa a log_decay y",
        "q k v kappa a log_decay dy dq dk dv dkappa da dlog_decay",
    ),
    "synthesizer-*dense-core": ("x v y", "x v y dy dx dv"),
    "synthesizer-*random-core": ("v y", "v y dy dv"),
    "synthesizer-*-layer": LAYER_WITH_Y,
    # The transform over the channels is written, and read for the one over the tokens; the backward does not need x.
    "fnet-*": ("x 2spectrum y", "dy 2spectrum dx"),
    "pool-*": ("x y", "dy dx"),
    "hyena-core": ("v x1 x0 y", "v x1 x0 dy dv dx1 dx0"),
    "hyena-layer": LAYER,
    "gmlp-*-core": ("z y", "z dy dz"),
    "gmlp-*-layer": LAYER,
    # x is summed into the hidden layer, and dy into its gradient, before what comes of either; in the layer dy goes
    # through the channel MLP, twice, for which x and W₂ are read.
    "mlp_mixer-*-core": ("2x y", "x 2dy dx"),
    "mlp_mixer-*-layer": ("2x y", "2x 2dy w2 dx"),
    # The part of dv from positions is written before the content lambda's gradient is complete, and read after it.
    "lambda_layer-content-core": ("q k v y", "q k v dy dq dk dv"),
    "lambda_layer-*-core": ("q k 2v y", "q k 2v dy dq dk 3dv"),
    # The norms' sums come before dx: after them dy is read again, or with an E of N × N dq and dv.
    "lambda_layer-global-layer": ("2x y", "2x dy 2q 2v dx"),
    "lambda_layer-*-layer": SUMMED_FIRST,
    # x for each of six steps and for the end, and for a norm; bptt also backwards, with dy for the end and for dx.
    "hamburger-*-bptt-*-core": ("7x y", "7x 2dy dx"),
    "hamburger-*-bptt-*-layer": ("8x y", "8x 3dy dx"),
    "hamburger-*-core": ("7x y", "x dy dx"),
    "hamburger-*-layer": ("8x y", "2x 2dy dx"),
}

CAUSAL: Mapping[str, Moved] = {
    # Sums so far are known where a query is answered; the backward makes them again from a few on the way.
    **{f"{name}-layer": LAYER for name in ("based-*", "linear_transformer", "performer-*", "rfa-*", "sinkhorn-*")},
    "rfa-causal-core": ("q k v gate y", "q k v gate dy dq dk dv dgate"),
    "sinkhorn-*-core": ONCE,
}
"""Where the causal form is another."""


def moved_by(variant: Variant, causal: bool) -> Moved:
    lines = [*(CAUSAL.items() if causal else ()), *BY_HAND.items()]
    return next(moved for pattern, moved in lines if fnmatchcase(str(variant), pattern))


def bytes_by_hand(variant: Variant, problem: Problem, mode: Mode, moved: Moved) -> float:
    """The bytes of the tensors, as they are, each as often as it is moved."""
    inputs = variant.inputs(problem)
    core = variant.operator.forms["core"].make_inputs(problem, variant.params, torch.Generator().manual_seed(0))
    tensors = {
        **core.tensors(),
        **inputs.tensors(),
        "y": output_like(variant.form.reference, problem, variant.params, inputs),
        "spectrum": torch.empty(problem.batch, problem.seq_len, 2 * (problem.channels // 2 + 1)),
    }
    weights = [*inputs.parameters] if str(variant) != "identity-core" else []
    choices = [name for name in inputs.choices if name != "blocks"]  # a few numbers of blocks
    forward = [*moved[0].split(), *weights, *choices]
    backward = [*moved[1].split(), *weights, *choices, *(f"d{name}" for name in weights)]

    def moved_bytes(term: str) -> float:
        match = re.fullmatch(r"(\d*)(\w+?)(?:/(\d+))?", term)
        assert match, term
        times, name, part = match.groups()
        tensor = tensors[name if name in tensors else name.removeprefix("d")]
        return int(times or 1) * tensor.nbytes / int(part or 1)

    return sum(map(moved_bytes, forward if mode == "fwd" else [*forward, *backward]))


def cases() -> Iterator[tuple[Variant, Problem, Moved]]:
    """Every variant, and its causal form; of a causal R half is read: that is not a whole tensor."""
    for variant in variants():
        for causal in (False, True):
            problem = variant.problem((6, 8), causal=causal, dtype="float32")
            if variant.defined(problem) and not (causal and str(variant).startswith("synthesizer-random")):
                yield variant, problem, moved_by(variant, causal)


each_case = by_operator(cases())


@each_case
def test_bytes_moved_are_those_counted_by_hand(variant: Variant, problem: Problem, moved: Moved) -> None:
    for mode in MODES:
        by_hand = bytes_by_hand(variant, problem, mode, moved)
        assert variant.form.cost(problem, variant.params, mode).bytes_moved == by_hand, mode


@each_case
def test_a_tensor_that_is_read_once_more_is_another_count(variant: Variant, problem: Problem, moved: Moved) -> None:
    """The control: neither any tensor of either line, nor all of them, can be moved once more."""
    cost = variant.form.cost(problem, variant.params, "fwd_bwd")
    every = (*variant.inputs(problem).data, "y")
    for more in (*every, " ".join(every)):
        changed = f"{moved[0]} {more}", moved[1]
        assert cost.bytes_moved != bytes_by_hand(variant, problem, "fwd_bwd", changed), more
