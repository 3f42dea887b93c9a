"""How an operator file adds up its cost: products, their gradients, and the traffic that cannot be avoided."""

from __future__ import annotations

from attnbench.problem import Mode, Problem


def product(multiply_adds: int, mode: Mode, gradients: int = 2) -> int:
    """FLOPs of one matrix product (convolution, contraction) of `multiply_adds` terms.

    fwd: 2 per term. fwd_bwd: the same again for each operand that needs a gradient (`gradients`: 0, 1 or 2),
    since the gradient of either operand of a product is a product of the same number of terms.
    """
    return 2 * multiply_adds * (1 + (gradients if mode == "fwd_bwd" else 0))


def uncounted_sums(flops: int, terms: int) -> dict[str, int]:
    """`Cost.uncounted` of einsums whose sums have so many terms: of one term they are products element by element,
    which torch does not count.
    """
    return {"mul": flops} if terms == 1 else {}


def traffic(problem: Problem, mode: Mode, *, read: int, written: int, constant: int = 0) -> int:
    """Bytes that any implementation must move.

    read: elements of the inputs and parameters that need a gradient; written: elements of the output;
    constant: elements read that need no gradient (random features, for instance), all in the working dtype.
    fwd: each is moved once. fwd_bwd: inputs are read again and their gradients written, the cotangent read.
    """
    elements = read + constant + written
    if mode == "fwd_bwd":
        elements += read + constant + written + read
    return elements * problem.item_bytes
