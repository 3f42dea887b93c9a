"""The measured process: it answers requests, and says where an operator has changed what the next one would find.

    python -m attnbench.worker READ WRITE PARENT

READ and WRITE are the numbers of the pipe ends it talks through, as `attnbench.measure.protocol` says; PARENT is the id
of the process that started it. It says that it is ready once torch is loaded, answers each request, and ends when its
pipe closes. What libraries print on stdout is none of its answers.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from attnbench.measure.device import device_of
from attnbench.measure.protocol import (
    NOTHING_KNOWN,
    Answer,
    CellAnswer,
    CheckRequest,
    EnvironmentAnswer,
    EnvironmentRequest,
    ExpansionRequest,
    FinishRequest,
    ForecastAnswer,
    ForecastRequest,
    PrepareRequest,
    RatesAnswer,
    RatesRequest,
    Ready,
    ReleasedAnswer,
    ReleaseRequest,
    Request,
    SampleRequest,
    SupportAnswer,
    SupportRequest,
    request_of,
)
from attnbench.measure.worker.failures import text_of
from attnbench.measure.worker.lifetime import CLEAN_EXIT, die_with, exit_when_closed
from attnbench.operator import Operator
from attnbench.problem import Cell
from attnbench.registry import source_of, why_not
from attnbench.store.records import Status

if TYPE_CHECKING:
    from attnbench.measure.worker.block import Block


def main() -> None:
    """Serves requests until the pipe closes."""
    read, write, parent = (int(a) for a in sys.argv[1:4])
    die_with(parent)
    for end in (read, write):
        os.set_inheritable(end, False)
    threading.Thread(target=exit_when_closed, args=(write,), daemon=True).start()
    gc.disable()  # imports make no garbage; looking for it takes a seventh of torch's import
    import torch

    from attnbench.measure.worker import shared_state
    from attnbench.measure.worker.block import Block
    from attnbench.measure.worker.visit import metrics

    threads = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(threads)
    with open(write, "w", encoding="utf-8") as answers, open(read, encoding="utf-8") as requests:
        metrics()
        block = Block()
        gc.freeze()  # what torch leaves behind is not looked through again by every collection
        gc.enable()
        own = os.getpid()
        _send(answers, Ready(own, torch.get_num_threads()).to_json())
        before = shared_state.now()
        for line in requests:
            message = json.loads(line)
            request = request_of(message)
            answer = _answer(request, block)
            if os.getpid() != own:  # an operator forked and lets the copy go on: one worker answers
                os._exit(CLEAN_EXIT)
            after = shared_state.now(before)
            if request.runs_operators:
                changes, replaced = shared_state.changes(before, after), shared_state.replaced(before, after)
                answer = _with_changes(_cell(request, block), answer, changes, replaced)
            before = after
            _send(answers, {"id": message["id"], **answer.to_json()})
            if answer.fatal:
                break
        answers.flush()
    os._exit(CLEAN_EXIT)  # a library's exit handlers must not hang a round


def _send(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message, allow_nan=False) + "\n")
    answers.flush()


def _cell(request: Request[Answer], block: Block) -> Cell | None:
    """The cell that a request runs, of those that run one."""
    if isinstance(request, (SampleRequest, FinishRequest)):
        return block.cells.get(request.key)
    return request.cell if isinstance(request, (CheckRequest, PrepareRequest)) else None


def _answer(request: Request[Answer], block: Block) -> Answer:
    if isinstance(request, PrepareRequest):
        return block.prepare(request)
    if isinstance(request, SampleRequest):
        return block.sample(request)
    if isinstance(request, FinishRequest):
        return block.finish(request)
    if isinstance(request, ReleaseRequest):
        block.release()
        return ReleasedAnswer()
    if isinstance(request, SupportRequest):
        return SupportAnswer(tuple(_reasons(request)))
    if isinstance(request, ExpansionRequest):
        from attnbench.measure.expansion import expand

        return expand(request)
    if isinstance(request, ForecastRequest):
        from attnbench.measure.worker.forecast import forecast_of

        try:
            return ForecastAnswer(forecast_of(request.cell, source_of(request.cell.operator, request.operators_from)))
        except BaseException:  # what is wrong with an operator its check tells
            return ForecastAnswer(NOTHING_KNOWN)
    if isinstance(request, EnvironmentRequest):
        from attnbench.measure.machine.environment import collect

        return EnvironmentAnswer(collect(request.device))
    if isinstance(request, RatesRequest):
        from attnbench.measure.machine.peak_rates import rates

        return RatesAnswer(rates(device_of(request.device), request.dtypes))
    assert isinstance(request, CheckRequest)
    from attnbench.measure.worker.checking import check

    block.release()
    return check(request)


def _with_changes(cell: Cell | None, answer: Answer, changes: Sequence[str], replaced: Sequence[str]) -> Answer:
    """The answer, with `restart` where an operator left this process otherwise than it found it, and its name.

    A visit keeps its own number and warns; one that replaced what measures it has none.

    Args:
        cell: that ran; None: the request was about none, or about several.
        answer: without what changed.
        changes: what the next operator would find otherwise, one phrase each.
        replaced: functions by which attnbench measures that are others now.
    """
    if not changes and not replaced:
        return answer
    if cell is None or not isinstance(answer, CellAnswer):
        return replace(answer, restart=True)
    if replaced:
        tampered = f"it replaces {', '.join(replaced)}, which attnbench measures with"
        return type(answer)("wrong", tampered, "tampered", restart=True)
    warning = (
        f"{cell.operator} ({cell.impl}) changes what the next operator would find, which is therefore "
        f"measured in a fresh process: {', '.join(changes)}"
    )
    return replace(answer, restart=True, warnings=(*answer.warnings, warning))


def _reasons(request: SupportRequest) -> Iterator[tuple[Status, str | None]]:
    """Of each cell; an operator's file that cannot say is an error, and shown as such."""
    device = device_of(request.device).type
    loaded: dict[str, Operator | str] = {}
    for cell in request.cells:
        if cell.operator not in loaded:  # once, also where that takes its time and fails
            loaded[cell.operator] = _loaded(cell.operator, request.operators_from)
        operator = loaded[cell.operator]
        try:
            yield ("error", operator) if isinstance(operator, str) else ("skipped", why_not(operator, cell, device))
        except BaseException as error:
            yield "error", text_of(error)


def _loaded(name: str, operators_from: Sequence[str]) -> Operator | str:
    """An operator, or the reason why it cannot be imported."""
    try:
        return source_of(name, operators_from).load()
    except BaseException as error:
        return text_of(error)
