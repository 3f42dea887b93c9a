"""A memory, what of it is reserved, and what layers need of the rest."""

from __future__ import annotations

from dataclasses import dataclass

CONTEXT_BYTES = 640 * 2**20
"""Of a GPU's memory what CUDA's context with torch's kernels takes; assumed, 0.3 to 0.6 GiB are usual."""

FRAGMENTATION = 0.05
"""Of a GPU's memory the share that blocks between others leave unusable; assumed."""

LIBRARY_BYTES = 32 * 2**20
"""Of a CPU's memory what libraries take inside one call (oneDNN packs operands), which shapes do not tell: up to 9 MiB
were measured on one thread."""


@dataclass(frozen=True)
class Budget:
    """A memory, and what of it is for what is counted.

    Attributes:
        of: what has the memory.
        total_bytes: of it.
        context_bytes, fragmentation_bytes, library_bytes: reserved.
    """

    of: str
    total_bytes: int
    context_bytes: int = 0
    fragmentation_bytes: int = 0
    library_bytes: int = 0

    @property
    def left_bytes(self) -> int:
        """What is not reserved; 0 or less: nothing."""
        return self.total_bytes - self.context_bytes - self.fragmentation_bytes - self.library_bytes


def of_gpu(name: str, total_bytes: int) -> Budget:
    """That of a GPU."""
    return Budget(name, total_bytes, CONTEXT_BYTES, int(FRAGMENTATION * total_bytes))


def of_host(name: str, total_bytes: int) -> Budget:
    """That of a CPU."""
    return Budget(name, total_bytes, library_bytes=LIBRARY_BYTES)


@dataclass(frozen=True)
class Need:
    """Predicted bytes of L layers.

    Attributes:
        parameter_bytes: of all layers.
        gradient_bytes: of these parameters, in all layers but the one at work.
        saved_bytes: what all layers keep for their backward.
        state_bytes: what all layers keep of the tokens before.
        working_bytes: the rest: inputs, outputs, temporaries, and gradients of the layer at work.
    """

    parameter_bytes: int
    gradient_bytes: int
    saved_bytes: int
    state_bytes: int
    working_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of them."""
        return sum(vars(self).values())

    @property
    def largest_part(self) -> str:
        """The name of the largest part, without its unit."""
        return max(vars(self), key=lambda name: int(getattr(self, name))).removesuffix("_bytes")
