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
    EnvironmentAnswer,
    EnvironmentRequest,
    Expansion,
    ExpansionAnswer,
    ExpansionRequest,
    Forecast,
    ForecastAnswer,
    ForecastRequest,
    OtherVersion,
    RatesAnswer,
    RatesRequest,
    Ready,
    SupportAnswer,
    SupportRequest,
    VisitAnswer,
    VisitRequest,
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
VISIT = VisitRequest("time", CELL, MEASURE, "cpu", OWN, 2**30, None, Forecast(1, 2, 3), 1e-6, (0.5, 0.25))
SAMPLES = (("wall", 1e-3, ""), ("device", 2e-3, "throttled+gaps"))

SENT: list[tuple[Any, Any]] = [
    (SupportRequest((CELL,), "cuda", OWN), SupportAnswer((("skipped", "needs a GPU"),), restart=True)),
    (SupportRequest((CELL,), "cpu", ()), SupportAnswer((("skipped", None),))),
    (ForecastRequest(CELL, OWN), ForecastAnswer(Forecast(1, None, 3), restart=True)),
    (EnvironmentRequest("cpu"), EnvironmentAnswer({"threads": 2})),
    (RatesRequest("cpu", ("float32",)), RatesAnswer({"copy_bytes_per_s": 1e9})),
    (ExpansionRequest("t", "w", "/d", "n", OWN, ("a,b",), ("sdpa",), lenient=True), ExpansionAnswer(EXPANSION)),
    (ExpansionRequest("t", "w", "/d", "n", ()), ExpansionAnswer(refused="t: no such operator")),
    (VISIT, VisitAnswer("ok", "so", "", "k", {"flops": 3}, SAMPLES, ("hot",), {"aten.mm": 2}, throttled=True)),
    (VISIT, VisitAnswer("error", "it raised", "bad_inputs", restart=True)),
]


def sent(message: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(message, allow_nan=False))


@pytest.mark.parametrize(("request_", "answer"), SENT, ids=lambda each: type(each).__name__)
def test_what_is_sent_is_read_back_as_it_was(request_: Any, answer: Any) -> None:
    assert request_of(sent(request_.to_json())) == request_
    assert answer_to(request_, {"id": 1, **sent(answer.to_json())}) == answer


def test_every_request_is_known_by_its_word() -> None:
    words = {request.to_json()["do"] for request, _ in SENT} | {"scout"}
    assert words == set(protocol._REQUESTS)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (VISIT, {}),
        (VISIT, {"status": "fine"}),
        (VISIT, {"status": "ok", "cause": "bad luck"}),
        (VISIT, {"status": "ok", "throttled": "yes"}),
        (VISIT, {"status": "ok", "samples": [["wall", -1.0, ""]]}),
        (VISIT, {"status": "ok", "metrics": []}),
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


def test_version_1_is_what_the_first_workers_spoke() -> None:
    """They say no version, call round 0's visits otherwise, and read exactly these keys."""
    check_ready({"ready": 4711, "threads": 2})
    check_ready(Ready(4711, 2).to_json())
    cell = {"operator": "softmax", "impl": "reference", "scope": "core", "params": "{}", "dtype": "float32"}
    cell |= {"mode": "fwd", "batch": 1, "heads": 4, "seq_len": 64, "height": None, "width": None, "channels": 32}
    measure = {"rounds": 2, "within_process_precision": 0.02, "min_samples": 5, "max_samples": 1000, "max_time_s": 0.5}
    common = {"cell": {**cell, "causal": False}, "measure": measure, "device": "cpu", "operators_from": list(OWN)}
    limits = {"memory_limit": 2**30, "host_limit": 2**30}
    nothing = {"foreseen": {"total_bytes": None, "reference_bytes": None, "flops_counted": None}}
    check = VisitRequest("check", CELL, MEASURE, "cpu", OWN, 2**30, 2**30)
    assert check.to_json() == {"do": "scout", **common, **limits, **nothing, "tolerance": None, "answers": []}
    assert answer_to(check, {"status": "oom"}).cause == "oom", "they leave out the cause that goes with a status"


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
        ({"ready": 1, "threads": 1}, 1, None),
        ({"ready": 1, "threads": 1, "protocol": 1}, 1, None),
        ({"ready": 1, "threads": 1, "protocol": 99}, 1, "99"),
        ({"ready": 1, "threads": 1, "protocol": "x"}, 1, "x"),
        ({"ready": 1, "threads": 1}, 2, "1"),
    ],
    ids=["silent", "same", "later", "strange", "earlier"],
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
    with pytest.raises(OtherVersion, match=r"speaks version 7 .*this process version 1: .*Start again\."):
        check_ready({"ready": 1, "protocol": 7})
    with pytest.raises(WorkerLost, match="did not say that it is ready"):
        check_ready({"threads": 1})
