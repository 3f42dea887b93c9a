"""Peak memory from shapes alone: the call runs on fake tensors, and the bytes of its live storages are added up.

Nothing is computed and nothing is allocated, so a million tokens take milliseconds. What a library allocates inside
one operation (oneDNN's and SDPA's scratch) is invisible here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from attnbench.measure.device import HOST
from attnbench.measure.worker.meta_results import result_on_meta
from attnbench.operator import Form, Inputs
from attnbench.problem import Mode, Params, Problem


@dataclass(frozen=True)
class Footprint:
    """Predicted bytes.

    Attributes:
        peak_bytes: the most alive at once above the inputs, as `peak_memory_bytes` measures it.
        input_bytes, parameter_bytes, choice_bytes, state_bytes: of the groups of `Inputs`.
        cotangent_bytes: in fwd_bwd of the output's gradient, which is alive as well and in no other figure.
        saved_bytes: in fwd_bwd what is kept from forward to backward beside parameters and choices: of the data what
            gradients need, and what the call has computed.
    """

    peak_bytes: int
    input_bytes: int
    parameter_bytes: int
    choice_bytes: int
    state_bytes: int = 0
    cotangent_bytes: int = 0
    saved_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Everything alive at the peak, inputs included, the cotangent not."""
        return self.peak_bytes + self.input_bytes + self.parameter_bytes + self.choice_bytes + self.state_bytes


def predict(
    form: Form,
    problem: Problem,
    params: Params,
    mode: Mode,
    call: Callable[..., Tensor] | None = None,
) -> Footprint:
    """The footprint of one call of `call` (None: the reference) on the form's inputs."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = _inputs(form, problem, params)
        return _footprint(call or form.reference, problem, params, mode, inputs, LiveBytes())


def predict_on_meta(form: Form, problem: Problem, params: Params, mode: Mode, most: int | None = None) -> Footprint:
    """The reference's footprint as `predict` finds it, on torch's meta tensors: 5 to 15 times as fast where thousands
    of operations are small, and without torch's compiler.

    They are on no device: statistics of a layer norm in half precision are float32, as on a GPU. A reference that mixes
    its inputs with tensors of its own on the CPU raises RuntimeError, one for which torch chooses an algorithm by the
    kind of device NotImplementedError, one of more than `most` operations TooManyOperations.
    """
    with torch.device("meta"), LiveBytes(None, result_on_meta):
        inputs = _inputs(form, problem, params, device="meta")
    groups = (inputs.data, inputs.parameters, inputs.choices, inputs.state)
    on_meta = Inputs(*({name: _meta(tensor) for name, tensor in group.items()} for group in groups))
    with _ComputedAlikeEverywhere():
        return _footprint(form.reference, problem, params, mode, on_meta, LiveBytes(most, result_on_meta))


def _inputs(form: Form, problem: Problem, params: Params, device: str = HOST) -> Inputs:
    with _Undrawn(device):
        return form.make_inputs(problem, params, torch.Generator().manual_seed(0))


class _Undrawn(TorchFunctionMode):
    """Draws nothing: on tensors without data that takes a millisecond, twenty times what an empty tensor takes.

    device: of the tensors that are made on that of the generator.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if "device" in given:
            given["device"] = self.device
        if func in (torch.rand, torch.randn) and given.pop("generator", None):
            return torch.empty(*args, **given)
        return func(*args, **given)


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


class _ComputedAlikeEverywhere(TorchFunctionMode):
    """Raises where torch chooses between algorithms by the kind of device: on meta tensors it takes another one."""

    CHOSEN = (functional.scaled_dot_product_attention, torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in self.CHOSEN:
            raise NotImplementedError(f"{func} depends on the device")
        return func(*args, **(kwargs or {}))


def _footprint(
    call: Callable[..., Tensor],
    problem: Problem,
    params: Params,
    mode: Mode,
    inputs: Inputs,
    live: LiveBytes,
) -> Footprint:
    cotangent_bytes = saved_bytes = 0
    if mode == "fwd":
        with torch.no_grad(), live:  # inference_mode would hide what SDPA does inside
            output = call(problem, params, **inputs.tensors())
        del output
    else:
        wanted = _wanted(inputs)
        noted: list[weakref.ref[Tensor]] = []

        def note(tensor: Tensor) -> Tensor:
            with live.uncounted():
                saved = tensor.detach()  # the output itself would hold its graph, and that the output
            noted.append(weakref.ref(saved))
            return saved

        with live:
            with saved_tensors_hooks(note, lambda tensor: tensor):
                output = call(problem, params, **wanted, **inputs.choices)
            held = live.now
            # Of what is gone by now another tensor may have the address.
            kept = {_identity(saved) for saved in (each() for each in noted) if saved is not None}
            with live.uncounted():
                cotangent = torch.ones_like(output.detach())
            gradients = torch.autograd.grad(output, list(wanted.values()), cotangent)
        cotangent_bytes = total_bytes({"": cotangent})
        data = {_identity(wanted[name]): wanted[name].untyped_storage().nbytes() for name in inputs.data}
        saved_bytes = held + sum(size for identity, size in data.items() if identity in kept)
        if _identity(output) not in kept | data.keys():
            saved_bytes -= output.untyped_storage().nbytes()
        del output, gradients
    return Footprint(
        peak_bytes=live.peak,
        input_bytes=total_bytes(inputs.data),
        parameter_bytes=total_bytes(inputs.parameters),
        choice_bytes=total_bytes(inputs.choices),
        state_bytes=total_bytes(inputs.state),
        cotangent_bytes=cotangent_bytes,
        saved_bytes=saved_bytes,
    )


def _wanted(inputs: Inputs) -> dict[str, Tensor]:
    return {name: tensor.detach().requires_grad_() for name, tensor in inputs.differentiated().items()}


def output_like(call: Callable[..., Tensor], problem: Problem, params: Params, inputs: Inputs) -> Tensor:
    """A tensor of the output's shape and dtype, to serve as a cotangent."""
    with torch.inference_mode():
        return torch.ones_like(call(problem, params, **inputs.tensors()))


def run(
    call: Callable[..., Tensor],
    problem: Problem,
    params: Params,
    inputs: Inputs,
    cotangent: Tensor | None,
    within: Any,
) -> Tensor | tuple[Tensor, Sequence[Tensor]]:
    """One call inside the context `within`: fwd where cotangent is None, else forward and autograd.grad."""
    if cotangent is None:
        with torch.inference_mode(), within:
            return call(problem, params, **inputs.tensors())
    wanted = _wanted(inputs)
    with within:
        output = call(problem, params, **wanted, **inputs.choices)
        return output, torch.autograd.grad(output, list(wanted.values()), cotangent)


_MADE_CONTIGUOUS = frozenset(
    getattr(torch.ops.aten, name).default
    for name in ("_softmax", "_log_softmax", "_softmax_backward_data", "_log_softmax_backward_data")
)
"""Operations that copy arguments which are not contiguous, on every device."""


class TooManyOperations(Exception):
    """A call has more of them than were allowed."""


def _called(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return func(*args, **kwargs)


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations inside it create, until each is freed. `peak`: the most at once, bytes.

    Args:
        most: the operations after which it raises TooManyOperations; None: there may be any number.
        result: (operation, arguments, those with names) → what it gives.
    """

    def __init__(self, most: int | None = None, result: Callable[..., Any] = _called) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._result = result
        self.operations, self.most = 0, most
        self.now = 0
        self.peak = 0
        self._live: set[int] = set()
        self._counts = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: to skip its compiler torch would import it, which takes as long as its own import."""
        return False

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Within which what is done and created is not added."""
        self._counts = False
        try:
            yield
        finally:
            self._counts = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.operations += self._counts
        if self.most is not None and self.operations > self.most:
            raise TooManyOperations
        result = self._result(func, args, kwargs or {})
        if self._counts:
            created = [
                each for each in map(Tensor.untyped_storage, _tensors((result,))) if each._cdata not in self._live
            ]
            if created:
                arguments = {_identity(tensor) for tensor in _tensors((args, *(kwargs or {}).values()))}
                for storage in created:
                    if storage._cdata not in arguments:
                        self._add(storage)
        if func in _MADE_CONTIGUOUS:
            copies = (t.numel() * t.element_size() for t in _tensors(args) if not t.is_contiguous())
            self.peak = max(self.peak, self.now + sum(copies))
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        identity = storage._cdata
        if identity in self._live:
            return
        self._live.add(identity)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, identity, storage.nbytes())

    def _free(self, identity: int, size: int) -> None:
        self._live.discard(identity)
        self.now -= size


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments or results of an operation, in lists and tuples as well."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _identity(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def total_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the elements of all of them."""
    return sum(t.numel() * t.element_size() for t in tensors.values())
