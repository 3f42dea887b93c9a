"""What an operator file computes its cost with: products, their gradients, and unavoidable traffic."""

from __future__ import annotations

from attnbench.problem import Mode, Problem


def product(multiply_adds: int, mode: Mode, gradients: int = 2) -> int:
    """FLOPs of one matrix product, convolution or contraction.

    Args:
        multiply_adds: terms of the product; each is 2 FLOPs.
        mode: `fwd_bwd` adds the same again per gradient: that of either operand is a product of as many terms.
        gradients: operands that need a gradient: 0, 1 or 2.
    """
    return 2 * multiply_adds * (1 + (gradients if mode == "fwd_bwd" else 0))


def uncounted_sums(flops: int, terms: int) -> dict[str, int]:
    """`Cost.uncounted` of einsums: with sums of one term they are elementwise products, which torch does not count.

    Args:
        flops: of the einsums.
        terms: of each sum.
    """
    return {"mul": flops} if terms == 1 else {}


def traffic(problem: Problem, mode: Mode, *, read: int, written: int, constant: int = 0) -> int:
    """Bytes that any implementation must move, all in the working dtype.

    fwd moves each element once; fwd_bwd also reads the inputs again, reads the cotangent and writes the gradients.

    Args:
        read: elements of the inputs and parameters that need a gradient.
        written: elements of the output.
        constant: elements read that need no gradient, such as random features.
    """
    elements = read + constant + written
    if mode == "fwd_bwd":
        elements += read + constant + written + read
    return elements * problem.item_bytes


def moved_again(problem: Problem, mode: Mode, *, forward: int = 0, backward: int = 0) -> int:
    """`Cost.bytes_again` of so many elements in the working dtype; backward: in fwd_bwd alone."""
    return (forward + (backward if mode == "fwd_bwd" else 0)) * problem.item_bytes


def keys_summed_first(problem: Problem, mode: Mode) -> int:
    """`Cost.bytes_again` of a layer whose core, but for its causal form, sums all keys before it answers a query.

    x is read again for the queries; x and the cotangent are, for the gradient of x.
    """
    size = problem.batch * problem.query_len * problem.channels
    return 0 if problem.causal else moved_again(problem, mode, forward=size, backward=2 * size)
