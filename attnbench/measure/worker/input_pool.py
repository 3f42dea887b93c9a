"""The tensors of data and states that members of a block share: equal ones are in memory once.

Every member has tensor objects of its own, with version counters of their own; only their memory is one. So what one
member writes to its data the others would read, and it is looked for. What it writes to a cache are the new tokens,
which were there before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from attnbench.measure.worker.fingerprints import digest
from attnbench.operator import Inputs


@dataclass
class InputPool:
    """Data tensors by the number of their input set, each with the digest of the values that it was drawn with."""

    _tensors: dict[int, list[tuple[Tensor, int]]] = field(default_factory=dict)

    def share(self, number: int, inputs: Inputs) -> Inputs:
        """An input set, in the memory of equal tensors of the same set that are there."""
        data, state = (
            {name: self._shared(number, tensor) for name, tensor in tensors.items()}
            for tensors in (inputs.data, inputs.state)
        )
        return replace(inputs, data=data, state=state)

    def _shared(self, number: int, drawn: Tensor) -> Tensor:
        tensors, value = self._tensors.setdefault(number, []), digest(drawn)
        for tensor, known in tensors:
            if known == value and tensor.dtype == drawn.dtype and torch.equal(tensor, drawn):
                return tensor.data
        tensors.append((drawn, value))
        return drawn.data

    def written(self, number: int, inputs: Inputs) -> list[str]:
        """The names of the data tensors of a set whose values are not those that were drawn."""
        return [name for name, (tensor, value) in self._known(number, inputs) if digest(tensor) != value]

    def restore(self, number: int, inputs: Inputs, drawn: Inputs) -> None:
        """Gives a set the values that it was drawn with, behind all version counters."""
        for name, (tensor, _) in self._known(number, inputs):
            tensor.data.copy_(drawn.data[name])

    def _known(self, number: int, inputs: Inputs) -> Iterator[tuple[str, tuple[Tensor, int]]]:
        by_place = {tensor.data_ptr(): (tensor, value) for tensor, value in self._tensors.get(number, [])}
        for name, tensor in inputs.data.items():
            yield name, by_place[tensor.data_ptr()]
