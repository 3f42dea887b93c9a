"""Every reference on the CPU beside its cost: achieved FLOP/s on reference_flops as a share of a large matmul's.

    python benchmarks/operators.py [--seq-len 2048] [--channels 256] [--only NAME ...]

A low share is expected where the operator is bound by memory or by elementwise work. The last column is the time over
the time predicted from its cost: reference_flops at the matmul's rate, plus elementwise operations and required traffic
at the rate of an exponential. A row is flagged above FLAG_ABOVE times that and 0.2 ms: `why` where the reason is known,
which stands below the table, else `slow`. Times are the best of several calls in one process, with both rates measured
again for each row so that drift cancels. With OMP_NUM_THREADS=1 they are CPU time, which other work on the machine
hardly changes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from rich.console import Console
from rich.table import Table

from attnbench.measure.worker.fake_memory import output_like, run
from attnbench.problem import MODES, Mode, Problem
from attnbench.registry import operators, outside_definition, resolve

FLAG_ABOVE = 2.0
"""The ratio of measured to predicted time above which a row is flagged."""

REASONS = {
    "non_local": "products of half a head, 16 channels, are bound by the N×N weights that they write and read",
    "reformer": "buckets and positions of all pairs of every round are compared, in passes of their own",
    "lambda_layer": "more than half of the time with gradients is in torch's own gradient of a convolution",
    "fnet": "a Fourier transform moves its data once for each factor of N; its FLOPs are not a product's",
    "kda": "products of blocks of 16 tokens, and exponentials of each channel between them",
    "rwkv7": "products of blocks of 16 tokens, in four matrices of scores, and exponentials of each channel",
    "moba": "keys and values are gathered for each chunk of queries, and again with gradients",
    "nsa": "keys and values are gathered for each chunk of queries, and again with gradients",
    "dsa": "beyond top_k tokens, keys and values are gathered for each query, and again with gradients",
    "neighborhood": "a tile's softmax is over its halo, 225 keys where 49 are counted; gradients of halos are added",
    "sliding_window": "a window wider than N has the N×N weights of softmax, and a sink logit one more copy of them",
}
"""Why an operator takes longer than its products and elements."""


def best_of(call: Callable[[], object], seconds: float = 0.6) -> float:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    call()
    best, end = float("inf"), clock() + seconds
    while clock() < end:
        start = clock()
        call()
        best = min(best, clock() - start)
    return best


def matmul_rate(n: int = 1024) -> float:
    """FLOP/s of one n×n×n float32 product."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    return 2 * n**3 / best_of(lambda: a @ b, 0.3)


def elementwise_rate(n: int = 1 << 22) -> float:
    """Elements per second of an exponential over an array that does not fit the caches."""
    a, b = torch.randn(n), torch.empty(n)
    return n / best_of(lambda: torch.exp(a, out=b), 0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    side = int(args.seq_len**0.5)
    table = Table(title=f"References on {torch.get_num_threads()} threads, N = {args.seq_len}, C = {args.channels}")
    columns = ("operator", "kind", "mode", "ms", "GFLOP", "of matmul", "time / (products + elements)", "")
    for column in columns:
        table.add_column(column, justify="left" if column in ("operator", "kind", "mode") else "right")
    flagged = set()
    for name, source in operators().items():
        if args.only and name not in args.only:
            continue
        operator = source.load()
        for kind in operator.params["kind"].choices if "kind" in operator.params else ("",):
            params = resolve(operator, {"kind": kind} if kind else {})
            problem = Problem(args.seq_len, args.channels, args.heads)
            if "sequence" not in operator.domains:
                problem = Problem.image(side, side, args.channels, args.heads)
            if outside_definition(operator, problem, params, "core") is not None:
                problem = Problem(args.seq_len, args.channels, args.heads, causal=True)
            for mode in MODES:
                texts, is_slow = row(operator.forms["core"], problem, params, mode)
                flag = ("why" if name in REASONS else "slow") if is_slow else ""
                flagged |= {name} if is_slow else set()
                table.add_row(name, str(kind), mode, *texts, flag)
    console = Console(width=120)
    console.print(table)
    for name in sorted(flagged & REASONS.keys()):
        console.print(f"{name}: {REASONS[name]}")


def row(form, problem, params, mode: Mode) -> tuple[tuple[str, ...], bool]:  # type: ignore[no-untyped-def]
    """The figures of a row, and whether they are above FLAG_ABOVE."""
    cost = form.cost(problem, params, mode)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    cotangent = output_like(form.reference, problem, params, inputs) if mode == "fwd_bwd" else None
    rate, elements = matmul_rate(), elementwise_rate()
    seconds = best_of(lambda: run(form.reference, problem, params, inputs, cotangent, within=nullcontext()))
    share = cost.reference_flops / seconds / rate
    traffic = cost.bytes_required / problem.item_bytes
    expected = cost.reference_flops / rate + (cost.elementwise + traffic) / elements
    ratio = seconds / expected if expected else 0.0
    flops = cost.reference_flops / 1e9
    texts = f"{seconds * 1e3:.2f}", f"{flops:.3f}", f"{share:.0%}", f"{ratio:.1f}"
    return texts, ratio > FLAG_ABOVE and seconds > 2e-4


if __name__ == "__main__":
    main()
