"""What runner and worker send each other is read back as it was, and workers of another version are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from attnbench.errors import BadInput
from attnbench.measure import gate_sides, protocol
from attnbench.measure.git_worktrees import Checkout
from attnbench.measure.protocol import (
    CheckRequest,
    EnvironmentAnswer,
    EnvironmentRequest,
    Expansion,
    ExpansionAnswer,
    ExpansionRequest,
    FinishRequest,
    Forecast,
    ForecastAnswer,
    ForecastRequest,
    OtherVersion,
    PreparedAnswer,
    PrepareRequest,
    RatesAnswer,
    RatesRequest,
    ReleasedAnswer,
    ReleaseRequest,
    SampleAnswer,
    SampleRequest,
    SupportAnswer,
    SupportRequest,
    VisitAnswer,
    WorkerLost,
    answer_to,
    check_ready,
    request_of,
)
from attnbench.plan.settings import Limits, Measure
from attnbench.thresholds import Gate, Threshold
from tests.stored import CELL

MEASURE = Measure(rounds=2, max_time_s=0.5)
OWN = ("mine.py", "package")
GATE = Gate({"flops": 0.0}, (Threshold({"operator": "a*"}, {"wall_time": 0.1}),))
EXPANSION = Expansion("s", "name: s", ("sdpa",), MEASURE, Limits(budget_s=9.0), GATE, (CELL,), {"exact": ["softmax"]})
CHECK = CheckRequest(CELL, "cpu", OWN, 2**30, None, Forecast(1, 2, 3))
PREPARE = PrepareRequest(CELL, "cpu", OWN, 2**30, 2**31, 1e-6, (0.5, 0.25))
SAMPLE = SampleRequest(CELL.key)
SAMPLES = (("wall", 1e-3, ""), ("device", 2e-3, "throttled+gaps"))

SENT: list[tuple[Any, Any]] = [
    (SupportRequest((CELL,), "cuda", OWN), SupportAnswer((("skipped", "needs a GPU"),), restart=True)),
    (SupportRequest((CELL,), "cpu", ()), SupportAnswer((("skipped", None),))),
    (ForecastRequest(CELL, OWN), ForecastAnswer(Forecast(1, None, 3), restart=True)),
    (EnvironmentRequest("cpu"), EnvironmentAnswer({"threads": 2})),
    (RatesRequest("cpu", ("float32",)), RatesAnswer({"copy_bytes_per_s": 1e9})),
    (ExpansionRequest("t", "w", "/d", "n", OWN, ("a,b",), ("sdpa",), lenient=True), ExpansionAnswer(EXPANSION)),
    (ExpansionRequest("t", "w", "/d", "n", ()), ExpansionAnswer(refused="t: no such operator")),
    (CHECK, VisitAnswer("ok", "so", "", "k", {"flops": 3}, SAMPLES, {"aten.mm": 2}, True, warnings=("hot",))),
    (CHECK, VisitAnswer("error", "it raised", "bad_inputs", restart=True)),
    (PREPARE, PreparedAnswer("ok", "", "", 0.2, 0.1, 2**40, warnings=("hot",))),
    (PREPARE, PreparedAnswer("wrong", "it differs", "wrong", restart=True)),
    (SAMPLE, SampleAnswer("ok", "", "", SAMPLES, throttled=True)),
    (SAMPLE, SampleAnswer("wrong", "it replaces time.sleep", "tampered", restart=True)),
    (FinishRequest(CELL.key), VisitAnswer("ok", metrics={"operator_s": 0.5})),
    (ReleaseRequest(), ReleasedAnswer()),
]


def sent(message: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(message, allow_nan=False))


@pytest.mark.parametrize(("request_", "answer"), SENT, ids=lambda each: type(each).__name__)
def test_what_is_sent_is_read_back_as_it_was(request_: Any, answer: Any) -> None:
    assert request_of(sent(request_.to_json())) == request_
    assert answer_to(request_, {"id": 1, **sent(answer.to_json())}) == answer


def test_every_request_is_known_by_its_word() -> None:
    words = {request.to_json()["do"] for request, _ in SENT}
    assert words == set(protocol._REQUESTS)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (CHECK, {}),
        (CHECK, {"status": "fine"}),
        (CHECK, {"status": "ok", "cause": "bad luck"}),
        (CHECK, {"status": "ok", "throttled": "yes"}),
        (CHECK, {"status": "ok", "samples": [["wall", -1.0, ""]]}),
        (CHECK, {"status": "ok", "metrics": []}),
        (SAMPLE, {"status": "ok", "samples": [["wall", "soon", ""]]}),
        (SAMPLE, {"status": "ok", "warnings": "hot"}),
        (PREPARE, {"status": "ok"}),
        (PREPARE, {"status": "ok", "first_call_s": -1.0, "call_s": 1.0}),
        (PREPARE, {"status": "ok", "first_call_s": 1.0, "call_s": 1.0, "held_bytes": "all"}),
        (ReleaseRequest(), {"restart": 1}),
        (SENT[0][0], {"reasons": []}),
        (SENT[0][0], {"reasons": [["fine", None]]}),
        (SENT[3][0], {"environment": "Linux"}),
        (SENT[5][0], {"expansion": {"name": "half"}}),
    ],
    ids=str,
)
def test_what_is_no_answer_is_a_lost_worker(request_: Any, message: dict[str, Any]) -> None:
    with pytest.raises(WorkerLost, match="the worker sent what is no answer: ") as lost:
        answer_to(request_, message)
    assert (lost.value.status, lost.value.cause) == ("crashed", "crashed")


@pytest.mark.parametrize("status", ["ok", "skipped", "wrong", "oom", "timeout", "crashed", "error"])
def test_after_which_answers_a_worker_ends(status: Any) -> None:
    assert VisitAnswer(status).fatal == (status in ("oom", "crashed"))


@pytest.mark.parametrize("answer", [PreparedAnswer("oom"), SampleAnswer("crashed")])
def test_a_member_that_ends_its_process_does_so_by_any_answer(answer: Any) -> None:
    assert answer.fatal
    assert not type(answer)("wrong").fatal


WORKER = """
import json, sys
requests, answers = open(int(sys.argv[1])), open(int(sys.argv[2]), "w")
print(json.dumps({ready}), file=answers, flush=True)
for line in requests:
    message = dict(id=json.loads(line)["id"], expansion=dict(refused="it was asked"))
    print(json.dumps(message), file=answers, flush=True)
"""


def checkout(folder: Path, name: str, ready: dict[str, Any]) -> Checkout:
    """A revision whose worker pretends: it says `ready`, and refuses every suite."""
    package = folder / name / "attnbench"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "worker.py").write_text(WORKER.replace("{ready}", repr(ready)))
    return Checkout(name, "0123456789abcdef", folder / name, "name: s\n", (), (str(folder / name),))


@pytest.mark.parametrize(
    ("ready", "ours", "theirs"),
    [
        ({"ready": 1, "threads": 1, "protocol": 2}, 2, None),
        ({"ready": 1, "threads": 1, "protocol": 99}, 2, "99"),
        ({"ready": 1, "threads": 1, "protocol": "x"}, 2, "x"),
        ({"ready": 1, "threads": 1}, 2, "1"),
    ],
    ids=["same", "later", "strange", "earlier"],
)
def test_a_gate_says_which_revision_speaks_another_version(
    ready: dict[str, Any], ours: int, theirs: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "VERSION", ours)
    base = checkout(tmp_path, "base", ready)
    with pytest.raises(BadInput) as refused:
        gate_sides.expand_both((base, base), tmp_path / "s.yaml", ((), ()))
    text = str(refused.value)
    if theirs is None:
        assert text == "it was asked"
        return
    assert text.startswith(f"base 0123456789ab: its worker speaks version {theirs} of attnbench's protocol, ")
    assert f"speaks version {ours}, " in text
    assert "attnbench compare BASE HEAD" in text
    assert "\n" not in text


def test_elsewhere_another_version_is_a_message_too() -> None:
    with pytest.raises(OtherVersion, match=r"speaks version 7 .*this process version 2: .*Start again\."):
        check_ready({"ready": 1, "protocol": 7})
    with pytest.raises(WorkerLost, match="did not say that it is ready"):
        check_ready({"threads": 1})
