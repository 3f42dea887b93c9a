"""FLOPs as torch's FlopCounterMode counts them, without what it does beside: it asks of every call whether the
operation is made of others, and follows modules, which takes longer than the small calls of tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCounter(TorchDispatchMode):
    """Adds up the FLOPs of what runs inside it in `total`. `test_operators.py` holds it against torch's."""

    whole: set[Any] = set()  # noqa: RUF012 – of all counters: operations that are not made of others

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether it is hidden from torch's compiler, which each of its calls would then go through."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self.whole:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            self.whole.add(func)
        result = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        return result
