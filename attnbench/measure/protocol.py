"""What a runner and a worker send each other: typed requests and answers, and the version of both.

One JSON object per line each way. The worker speaks first and says that it is ready (`Ready`); then every request has
a number, `id`, which its answer repeats. This file alone knows the words on the wire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Generic, TypeVar

from attnbench.errors import BadInput, printable
from attnbench.plan.settings import Limits, Measure
from attnbench.problem import Cell, Dtype, cell_of, columns_of
from attnbench.store.records import CAUSE_OF, CAUSES, STATUSES, Cause, Status, is_sample
from attnbench.thresholds import Gate, Threshold

VERSION = 2
"""Raised by hand where a worker of the version before could not read a request, or would mean another thing by an
answer. A gate starts workers of other revisions: see `OtherVersion`."""

VERSION_OF_SILENCE = 1
"""What a worker speaks that names no version: the first workers did not."""

FATAL: tuple[Status, ...] = ("oom", "crashed")
"""After an answer with one of these a worker ends: its memory is in pieces, or its CUDA context lost."""

THROTTLED = "throttled"
"""The flag of a sample taken while the GPU's clock was held down: stored, but left out of every figure."""


def is_steady(flags: str) -> bool:
    """Whether figures may use a sample with these flags, which are joined by "+"."""
    return THROTTLED not in flags.split("+")


class WorkerLost(Exception):
    """The worker is gone, or what it sends cannot be read. The text is the reason.

    Args:
        status: "timeout", "oom" or "crashed".
        cause: by default the status's own.
    """

    def __init__(self, status: Status, reason: str, cause: Cause | None = None) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.cause: Cause = cause or CAUSE_OF[status]


class OtherVersion(BadInput):
    """A worker of an attnbench that speaks another version of this protocol."""

    def __init__(self, version: object) -> None:
        self.theirs, self.ours = printable(version, 20), VERSION
        super().__init__(
            f"the worker process speaks version {self.theirs} of attnbench's protocol, this process version "
            f"{self.ours}: attnbench was replaced while it ran. Start again."
        )


@dataclass(frozen=True)
class Ready:
    """A worker's first message. process: its id. threads: that torch computes with. version: of its protocol."""

    process: int
    threads: int
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """As it is sent."""
        return {"ready": self.process, "threads": self.threads, "protocol": self.version}


def check_ready(message: Mapping[str, Any]) -> None:
    """Looks at a worker's first message. Raises WorkerLost where it is another one, OtherVersion."""
    if "ready" not in message:
        raise WorkerLost("crashed", "the worker did not say that it is ready")
    version = message.get("protocol", VERSION_OF_SILENCE)
    if version != VERSION:
        raise OtherVersion(version)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What all answers have. restart: an operator has changed what the next one would find, so that a fresh process
    must make the next visit."""

    restart: bool = False

    @property
    def fatal(self) -> bool:
        """Whether the worker ends after this answer."""
        return False

    def to_json(self) -> dict[str, Any]:
        """As it is sent, without the number of its request."""
        values = _as_json(self)
        return values if self.restart else {name: value for name, value in values.items() if name != "restart"}


A_co = TypeVar("A_co", bound=Answer, covariant=True)


@dataclass(frozen=True)
class Request(Generic[A_co]):
    """What a worker can be asked.

    Attributes:
        word: that it is known by.
        runs_operators: whether the worker imports or calls operators for it.
    """

    word: ClassVar[str]
    runs_operators: ClassVar[bool] = False

    def to_json(self) -> dict[str, Any]:
        """As it is sent, without its number."""
        return {"do": self.word, **_as_json(self)}

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> Request[A_co]:
        """The request of a message; what that does not have is as by default."""
        return cls(**{each.name: _field(each.name, message[each.name]) for each in fields(cls) if each.name in message})

    def read(self, message: Mapping[str, Any]) -> A_co:
        """The answer to this request. Raises LookupError, TypeError or ValueError where it is none."""
        raise NotImplementedError


def answer_to(request: Request[A_co], message: Mapping[str, Any]) -> A_co:
    """The answer that a message holds. Raises WorkerLost where it is no answer to this request."""
    try:
        return request.read(message)
    except (LookupError, TypeError, ValueError) as error:  # an operator has written to the pipe
        raise WorkerLost("crashed", f"the worker sent what is no answer: {printable(error)}") from None


@dataclass(frozen=True)
class SupportAnswer(Answer):
    """By cell, why it cannot run here, or None; the status is "error" where its operator cannot say."""

    reasons: tuple[tuple[Status, str | None], ...]


@dataclass(frozen=True)
class SupportRequest(Request[SupportAnswer]):
    """Which of these cells can run on a device?"""

    cells: tuple[Cell, ...]
    device: str
    operators_from: tuple[str, ...]
    word: ClassVar[str] = "why_not"
    runs_operators: ClassVar[bool] = True

    def read(self, message: Mapping[str, Any]) -> SupportAnswer:
        """See `Request`."""
        reasons = tuple((_status(status), reason) for status, reason in message["reasons"])
        if len(reasons) != len(self.cells):
            raise ValueError(f"{len(reasons)} reasons for {len(self.cells)} cells")
        return SupportAnswer(reasons, restart=_flag(message, "restart"))


@dataclass(frozen=True)
class Forecast:
    """Bytes alive at the peak, inputs included, of the impl and of the reference; FLOPs that torch counts on the
    reference. None: an operator that does on real tensors what fake ones do not support.
    """

    total_bytes: int | None = None
    reference_bytes: int | None = None
    flops_counted: int | None = None


NOTHING_KNOWN = Forecast()


@dataclass(frozen=True)
class ForecastAnswer(Answer):
    """What the shapes of a cell tell."""

    forecast: Forecast


@dataclass(frozen=True)
class ForecastRequest(Request[ForecastAnswer]):
    """How much memory and how many FLOPs does a cell need, by its shapes?"""

    cell: Cell
    operators_from: tuple[str, ...]
    word: ClassVar[str] = "forecast"
    runs_operators: ClassVar[bool] = True

    def read(self, message: Mapping[str, Any]) -> ForecastAnswer:
        """See `Request`."""
        return ForecastAnswer(Forecast(**message.get("forecast", {})), restart=_flag(message, "restart"))


@dataclass(frozen=True)
class EnvironmentAnswer(Answer):
    """What environment.json stores of a process and its machine."""

    environment: dict[str, Any]


@dataclass(frozen=True)
class EnvironmentRequest(Request[EnvironmentAnswer]):
    """What is measured on a device from there?"""

    device: str
    word: ClassVar[str] = "environment"

    def read(self, message: Mapping[str, Any]) -> EnvironmentAnswer:
        """See `Request`."""
        return EnvironmentAnswer(_object(message["environment"], "environment"))


@dataclass(frozen=True)
class RatesAnswer(Answer):
    """The hardware's rates as environment.json stores them."""

    rates: dict[str, Any]


@dataclass(frozen=True)
class RatesRequest(Request[RatesAnswer]):
    """How fast does a device multiply matrices of these dtypes, and copy?"""

    device: str
    dtypes: tuple[Dtype, ...]
    word: ClassVar[str] = "rates"

    def read(self, message: Mapping[str, Any]) -> RatesAnswer:
        """See `Request`."""
        return RatesAnswer(_object(message["rates"], "rates"))


@dataclass(frozen=True)
class Expansion:
    """A suite as one revision reads it. definitions: what environment.json stores of its operators."""

    name: str
    text: str
    impls: tuple[str, ...]
    measure: Measure
    limits: Limits
    gate: Gate
    cells: tuple[Cell, ...]
    definitions: Mapping[str, Any]

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> Expansion:
        """The expansion of a message."""
        gate = message["gate"]
        return cls(
            name=message["name"],
            text=message["text"],
            impls=tuple(message["impls"]),
            measure=Measure(**message["measure"]),
            limits=Limits(**message["limits"]),
            gate=Gate(gate["thresholds"], tuple(Threshold(**each) for each in gate["overrides"])),
            cells=tuple(map(cell_of, message["cells"])),
            definitions=message["definitions"],
        )


@dataclass(frozen=True)
class ExpansionAnswer(Answer):
    """expansion: None where the suite is refused, or the worker's attnbench is too old to expand suites. refused: the
    reason."""

    expansion: Expansion | None = None
    refused: str = ""

    def to_json(self) -> dict[str, Any]:
        """See `Answer`."""
        return {"expansion": {"refused": self.refused} if self.expansion is None else _as_json(self.expansion)}


@dataclass(frozen=True)
class ExpansionRequest(Request[ExpansionAnswer]):
    """Which cells has a suite with the operators there?

    Args:
        text: the suite's.
        where: its name for messages.
        directory: what its relative paths start from.
        name: of the suite where its text has none.
        operators_from: in place of the suite's own.
        operators: of the command line; empty: all.
        impls: of the command line; empty: all.
        lenient: names of operators that are not there are passed over.
    """

    text: str
    where: str
    directory: str
    name: str
    operators_from: tuple[str, ...]
    operators: tuple[str, ...] = ()
    impls: tuple[str, ...] = ()
    lenient: bool = False
    word: ClassVar[str] = "expand"

    def to_json(self) -> dict[str, Any]:
        """See `Request`. device and host_limit: workers that know no such request take it for a visit's."""
        return {**super().to_json(), "device": "", "host_limit": None}

    def read(self, message: Mapping[str, Any]) -> ExpansionAnswer:
        """See `Request`."""
        expansion = message.get("expansion")
        if expansion is None:
            return ExpansionAnswer()
        if "refused" in expansion:
            return ExpansionAnswer(refused=str(expansion["refused"]))
        return ExpansionAnswer(Expansion.from_json(expansion))


@dataclass(frozen=True)
class CellAnswer(Answer):
    """What all answers about one cell have.

    Args:
        status: "ok" where what was asked for is there.
        reason: notes, or why it is not.
        cause: the reason as a code.
        warnings: sentences for the user.
    """

    status: Status
    reason: str = ""
    cause: Cause = ""
    warnings: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def fatal(self) -> bool:
        """See `Answer`."""
        return self.status in FATAL

    def to_json(self) -> dict[str, Any]:
        """See `Answer`; what is empty is left out."""
        return {name: value for name, value in _as_json(self).items() if value or name in ("status", "reason")}


@dataclass(frozen=True)
class VisitAnswer(CellAnswer):
    """What became of a visit; all that is stored of it but its samples.

    Args:
        kernel: what the impl launched.
        metrics: values by results.csv column.
        samples: (clock, seconds, flags) in the order taken.
        operations: dispatched operators and launched kernels with their counts.
        throttled: whether a clock had no sample free of THROTTLED.
    """

    kernel: str = ""
    metrics: dict[str, float | int] = field(default_factory=dict)
    samples: Sequence[tuple[str, float, str]] = ()
    operations: dict[str, int] = field(default_factory=dict)
    throttled: bool = False

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> VisitAnswer:
        """The answer of a message. What its texts and numbers may be, the store says."""
        return cls(
            **_outcome(message),
            kernel=message.get("kernel", ""),
            metrics=_object(message.get("metrics", {}), "metrics"),
            samples=_samples(message),
            operations=_object(message.get("operations", {}), "operations"),
            throttled=_flag(message, "throttled"),
        )


@dataclass(frozen=True)
class CheckRequest(Request[VisitAnswer]):
    """Is a cell right, what does it need, and what does it execute? Nothing else of the process is alive meanwhile: an
    open block is released.

    The metrics of the answer have, beside those of the metric files, `held_bytes` (what the cell would hold as a member
    of a block, alone: its input sets, its cotangent, the outputs of a call), answer_0 and answer_1 (fingerprints of its
    outputs, one for each input set), in fwd_bwd `following` (which outputs follow every write to an input, as bits, the
    output's first), check_time_s (of one call), operator_s, visit_s, and of impls that compile compile_s and
    recompile_s, which every later process takes again (torch compiles anew; what Triton builds is cached).

    Args:
        cell: what is called.
        device: where.
        operators_from: a user's own files and packages.
        memory_limit: bytes that the cell may need.
        host_limit: bytes that the process may allocate beside what it has; None: no limit.
        forecast: what its shapes tell.
    """

    cell: Cell
    device: str
    operators_from: tuple[str, ...]
    memory_limit: int
    host_limit: int | None
    forecast: Forecast = NOTHING_KNOWN
    word: ClassVar[str] = "check"
    runs_operators: ClassVar[bool] = True

    def read(self, message: Mapping[str, Any]) -> VisitAnswer:
        """See `Request`."""
        return VisitAnswer.from_json(message)


@dataclass(frozen=True)
class PreparedAnswer(CellAnswer):
    """What became of a cell that was to become a member of the open block.

    Args:
        first_call_s: seconds of its first call in this process; None where there was none.
        call_s: of the call after it, or its own where it is the only one.
        held_bytes: what this member holds beside those that are there: tensors that it shares with them count once.
    """

    first_call_s: float | None = None
    call_s: float | None = None
    held_bytes: int = 0

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> PreparedAnswer:
        """The answer of a message."""
        first_call_s, call_s = (_seconds(message, name) for name in ("first_call_s", "call_s"))
        held_bytes = message.get("held_bytes", 0)
        if not isinstance(held_bytes, int) or held_bytes < 0:
            raise ValueError(f"held_bytes = {held_bytes!r}")
        outcome = _outcome(message)
        if outcome["status"] == "ok" and (first_call_s is None or call_s is None):
            raise ValueError("a member without the time of a call")
        return cls(**outcome, first_call_s=first_call_s, call_s=call_s, held_bytes=held_bytes)


@dataclass(frozen=True)
class PrepareRequest(Request[PreparedAnswer]):
    """Makes a cell a member of this process's open block, beside those that are there, and calls it twice, or once
    where that takes 20 ms. One of the same key is replaced.

    Args:
        cell: what is called.
        device: where.
        operators_from: a user's own files and packages.
        memory_limit: bytes that the cell may need.
        host_limit: bytes that the process may allocate beside what it has; None: no limit.
        tolerance: the bound of its check, over the largest value; None: not known.
        answers: fingerprints of the outputs that were checked, one for each input set.
        following: as its check found it; 1: the output does.
        most_samples: that its visit has; None: not known.
    """

    cell: Cell
    device: str
    operators_from: tuple[str, ...]
    memory_limit: int
    host_limit: int | None
    tolerance: float | None = None
    answers: tuple[float, ...] = ()
    following: int = 1
    most_samples: int | None = None
    word: ClassVar[str] = "prepare"
    runs_operators: ClassVar[bool] = True

    def read(self, message: Mapping[str, Any]) -> PreparedAnswer:
        """See `Request`."""
        return PreparedAnswer.from_json(message)


@dataclass(frozen=True)
class MemberRequest(Request[A_co]):
    """What is asked about a member of the open block. key: of its cell."""

    key: str
    runs_operators: ClassVar[bool] = True


@dataclass(frozen=True)
class SampleAnswer(CellAnswer):
    """One turn's sample of a member.

    Args:
        samples: (clock, seconds, flags) in the order taken; each clock of the device has one at least.
        throttled: whether a clock had no sample free of THROTTLED.
    """

    samples: Sequence[tuple[str, float, str]] = ()
    throttled: bool = False

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> SampleAnswer:
        """The answer of a message."""
        return cls(**_outcome(message), samples=_samples(message), throttled=_flag(message, "throttled"))


@dataclass(frozen=True)
class SampleRequest(MemberRequest[SampleAnswer]):
    """Times calls of a member: after two untimed ones, or fewer that together last less than 10 ms, until 10 ms have
    passed or 8 were made. A member that fails is freed.
    """

    word: ClassVar[str] = "sample"

    def read(self, message: Mapping[str, Any]) -> SampleAnswer:
        """See `Request`."""
        return SampleAnswer.from_json(message)


@dataclass(frozen=True)
class FinishRequest(MemberRequest[VisitAnswer]):
    """Ends a member's visit: the last checks, the figures taken beside samples (energy_j, operator_s, visit_s), and
    it is freed. The answer has no samples.
    """

    word: ClassVar[str] = "finish"

    def read(self, message: Mapping[str, Any]) -> VisitAnswer:
        """See `Request`."""
        return VisitAnswer.from_json(message)


@dataclass(frozen=True)
class ReleasedAnswer(Answer):
    """The open block has no member any more."""


@dataclass(frozen=True)
class ReleaseRequest(Request[ReleasedAnswer]):
    """Frees all members of the open block: at its end, or before it starts again."""

    word: ClassVar[str] = "release"

    def read(self, message: Mapping[str, Any]) -> ReleasedAnswer:
        """See `Request`."""
        return ReleasedAnswer(restart=_flag(message, "restart"))


_REQUESTS: Mapping[str, type[Request[Any]]] = {
    kind.word: kind
    for kind in (
        *(SupportRequest, ForecastRequest, EnvironmentRequest, RatesRequest, ExpansionRequest),
        *(CheckRequest, PrepareRequest, SampleRequest, FinishRequest, ReleaseRequest),
    )
}
"""By the word that a message has under `do`."""


def request_of(message: Mapping[str, Any]) -> Request[Answer]:
    """The request of a message that a worker has received."""
    return _REQUESTS[message["do"]].from_json(message)


def _as_json(value: Any) -> Any:
    """A value as JSON has it: a cell as its columns, a dataclass as an object of its fields."""
    if isinstance(value, Cell):
        return columns_of(value)
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if is_dataclass(value):
        return {each.name: _as_json(getattr(value, each.name)) for each in fields(value)}
    return value


def _field(name: str, sent: Any) -> Any:
    """What a request's field of that name holds: the opposite of `_as_json`."""
    if name == "cell":
        return cell_of(sent)
    if name == "cells":
        return tuple(map(cell_of, sent))
    if name == "forecast":
        return Forecast(**sent)
    return tuple(sent) if isinstance(sent, list) else sent


def _outcome(message: Mapping[str, Any]) -> dict[str, Any]:
    """What all answers about a cell have, as arguments of one."""
    status = _status(message["status"])
    cause, warnings = message.get("cause", CAUSE_OF.get(status, "")), message.get("warnings", [])
    if cause not in CAUSES:
        raise ValueError(f"cause = {cause!r}")
    if not isinstance(warnings, list):
        raise ValueError(f"warnings = {warnings!r}")
    return {
        "status": status,
        "reason": message.get("reason", ""),
        "cause": cause,
        "warnings": tuple(warnings),
        "restart": _flag(message, "restart"),
    }


def _samples(message: Mapping[str, Any]) -> tuple[tuple[str, float, str], ...]:
    samples = message.get("samples", [])
    if not isinstance(samples, list) or not all(map(is_sample, samples)):
        raise ValueError("a sample is no number of seconds")
    return tuple((clock, seconds, flags) for clock, seconds, flags in samples)


def _seconds(message: Mapping[str, Any], name: str) -> float | None:
    """A time that is stored, or None."""
    value = message.get(name)
    if value is not None and not is_sample((name, value, "")):
        raise ValueError(f"{name} = {value!r}")
    return value


def _status(value: object) -> Status:
    if value not in STATUSES:
        raise ValueError(f"status = {value!r}")
    return value


def _flag(message: Mapping[str, Any], name: str) -> bool:
    value = message.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f"{name} = {value!r}")
    return value


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} = {value!r}")
    return value
