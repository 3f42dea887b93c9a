"""What a runner and a worker send each other: typed requests and answers, and the version of both.

One JSON object per line each way. The worker speaks first and says that it is ready (`Ready`); then every request has
a number, `id`, which its answer repeats. This file alone knows the words on the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

from attnbench.errors import BadInput, printable
from attnbench.plan.settings import Limits, Measure
from attnbench.problem import Cell, Dtype, cell_of, columns_of
from attnbench.store.records import CAUSE_OF, CAUSES, STATUSES, Cause, Status, is_sample
from attnbench.thresholds import Gate, Threshold

VERSION = 1
"""Raised by hand where a worker of the version before could not read a request, or would mean another thing by an
answer. A gate starts workers of other revisions: see `OtherVersion`."""

VERSION_OF_SILENCE = 1
"""What a worker speaks that names no version: the first workers did not."""

FATAL: tuple[Status, ...] = ("oom", "crashed")
"""After an answer with one of these a worker ends: its memory is in pieces, or its CUDA context lost."""

THROTTLED = "throttled"
"""The flag of a sample taken while the GPU's clock was held down: stored, but left out of every figure."""

Phase = Literal["check", "time"]
"""What a visit is for: `check` in round 0, `time` in every later one."""

_PHASE_WORDS: dict[Phase, str] = {"check": "scout", "time": "time"}
"""Phases as version 1 writes them."""


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

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> SupportRequest:
        """The request of a message."""
        return cls(tuple(map(cell_of, message["cells"])), message["device"], tuple(message["operators_from"]))

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

    def to_json(self) -> dict[str, Any]:
        """See `Answer`."""
        return {("foreseen" if name == "forecast" else name): value for name, value in super().to_json().items()}


@dataclass(frozen=True)
class ForecastRequest(Request[ForecastAnswer]):
    """How much memory and how many FLOPs does a cell need, by its shapes?"""

    cell: Cell
    operators_from: tuple[str, ...]
    word: ClassVar[str] = "foresee"
    runs_operators: ClassVar[bool] = True

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> ForecastRequest:
        """The request of a message."""
        return cls(cell_of(message["cell"]), tuple(message["operators_from"]))

    def read(self, message: Mapping[str, Any]) -> ForecastAnswer:
        """See `Request`."""
        return ForecastAnswer(Forecast(**message.get("foreseen", {})), restart=_flag(message, "restart"))


@dataclass(frozen=True)
class EnvironmentAnswer(Answer):
    """What environment.json stores of a process and its machine."""

    environment: dict[str, Any]


@dataclass(frozen=True)
class EnvironmentRequest(Request[EnvironmentAnswer]):
    """What is measured on a device from there?"""

    device: str
    word: ClassVar[str] = "environment"

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> EnvironmentRequest:
        """The request of a message."""
        return cls(message["device"])

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

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> RatesRequest:
        """The request of a message."""
        return cls(message["device"], tuple(message["dtypes"]))

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

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> ExpansionRequest:
        """The request of a message."""
        return cls(
            text=message["text"],
            where=message["where"],
            directory=message["directory"],
            name=message["name"],
            operators_from=tuple(message["operators_from"]),
            operators=tuple(message["operators"]),
            impls=tuple(message["impls"]),
            lenient=message["lenient"],
        )

    def read(self, message: Mapping[str, Any]) -> ExpansionAnswer:
        """See `Request`."""
        expansion = message.get("expansion")
        if expansion is None:
            return ExpansionAnswer()
        if "refused" in expansion:
            return ExpansionAnswer(refused=str(expansion["refused"]))
        return ExpansionAnswer(Expansion.from_json(expansion))


@dataclass(frozen=True)
class VisitAnswer(Answer):
    """What became of a visit.

    Args:
        status: "ok" where it has figures.
        reason: notes, or why it has no figures.
        cause: the reason as a code.
        kernel: what the impl launched.
        metrics: values by results.csv column.
        samples: (clock, seconds, flags) in the order taken.
        warnings: sentences for the user.
        operations: dispatched operators and launched kernels with their counts.
        throttled: whether a clock had no sample free of THROTTLED.
    """

    status: Status
    reason: str = ""
    cause: Cause = ""
    kernel: str = ""
    metrics: dict[str, float | int] = field(default_factory=dict)
    samples: Sequence[tuple[str, float, str]] = ()
    warnings: tuple[str, ...] = ()
    operations: dict[str, int] = field(default_factory=dict)
    throttled: bool = False

    @property
    def fatal(self) -> bool:
        """See `Answer`."""
        return self.status in FATAL

    def to_json(self) -> dict[str, Any]:
        """See `Answer`; what is empty is left out."""
        return {name: value for name, value in _as_json(self).items() if value or name in ("status", "reason")}

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> VisitAnswer:
        """The answer of a message. What its texts and numbers may be, the store says."""
        status = _status(message["status"])
        cause = message.get("cause", CAUSE_OF.get(status, ""))
        samples, warnings = message.get("samples", []), message.get("warnings", [])
        if cause not in CAUSES:
            raise ValueError(f"cause = {cause!r}")
        if not isinstance(warnings, list):
            raise ValueError(f"warnings = {warnings!r}")
        if not isinstance(samples, list) or not all(map(is_sample, samples)):
            raise ValueError("a sample is no number of seconds")
        return cls(
            status=status,
            reason=message.get("reason", ""),
            cause=cause,
            kernel=message.get("kernel", ""),
            metrics=_object(message.get("metrics", {}), "metrics"),
            samples=tuple((clock, seconds, flags) for clock, seconds, flags in samples),
            warnings=tuple(warnings),
            operations=_object(message.get("operations", {}), "operations"),
            throttled=_flag(message, "throttled"),
            restart=_flag(message, "restart"),
        )


@dataclass(frozen=True)
class VisitRequest(Request[VisitAnswer]):
    """One visit of a cell.

    Args:
        phase: what it is for.
        cell: what is called.
        measure: how it is timed.
        device: where.
        operators_from: a user's own files and packages.
        memory_limit: bytes that the cell may need.
        host_limit: bytes that the process may allocate beside what it has; None: no limit.
        forecast: what its shapes tell, for a check.
        tolerance: the bound of its check, over the largest value; None: not known.
        answers: fingerprints of the outputs that were checked, one for each input set.
    """

    phase: Phase
    cell: Cell
    measure: Measure
    device: str
    operators_from: tuple[str, ...]
    memory_limit: int
    host_limit: int | None
    forecast: Forecast = NOTHING_KNOWN
    tolerance: float | None = None
    answers: tuple[float, ...] = ()
    runs_operators: ClassVar[bool] = True

    def to_json(self) -> dict[str, Any]:
        """See `Request`."""
        values = _as_json(self)
        return {"do": _PHASE_WORDS[values.pop("phase")], "foreseen": values.pop("forecast"), **values}

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> VisitRequest:
        """The request of a message."""
        phase: Phase = "time" if message["do"] == _PHASE_WORDS["time"] else "check"
        return cls(
            phase=phase,
            cell=cell_of(message["cell"]),
            measure=Measure(**message["measure"]),
            device=message["device"],
            operators_from=tuple(message["operators_from"]),
            memory_limit=message["memory_limit"],
            host_limit=message["host_limit"],
            forecast=Forecast(**message["foreseen"]),
            tolerance=message["tolerance"],
            answers=tuple(message["answers"]),
        )

    def read(self, message: Mapping[str, Any]) -> VisitAnswer:
        """See `Request`."""
        return VisitAnswer.from_json(message)


_REQUESTS: dict[str, Callable[[Mapping[str, Any]], Request[Answer]]] = {
    SupportRequest.word: SupportRequest.from_json,
    ForecastRequest.word: ForecastRequest.from_json,
    EnvironmentRequest.word: EnvironmentRequest.from_json,
    RatesRequest.word: RatesRequest.from_json,
    ExpansionRequest.word: ExpansionRequest.from_json,
    **dict.fromkeys(_PHASE_WORDS.values(), VisitRequest.from_json),
}
"""By the word that a message has under `do`."""


def request_of(message: Mapping[str, Any]) -> Request[Answer]:
    """The request of a message that a worker has received."""
    return _REQUESTS[message["do"]](message)


def _as_json(value: Any) -> Any:
    """A value as JSON has it: a cell as its columns, a dataclass as an object of its fields."""
    if isinstance(value, Cell):
        return columns_of(value)
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if is_dataclass(value):
        return {each.name: _as_json(getattr(value, each.name)) for each in fields(value)}
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
