from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.analysis.memory_budget import CONTEXT_BYTES, LIBRARY_BYTES
from attnbench.errors import BadInput
from attnbench.measure.fit import need
from attnbench.measure.worker.fake_memory import Footprint, predict
from attnbench.operator import Form
from attnbench.problem import Params, Problem
from attnbench.registry import operators, resolve

GIB = 2**30


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["fit", *words])
    if result.exception is not None:
        raise result.exception
    return result.output


def rows(*words: str) -> dict[str, dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(*words, "--format", "json"))
    return {row["operator"] + (":sdpa" if row["impl"] == "sdpa" else ""): row for row in found}


def total(name: str, problem: Problem, mode: Any = "fwd", impl: str | None = None) -> int:
    operator = operators()[name].load()
    form = operator.forms["core"]
    call = form.impls[impl].load() if impl else None
    footprint = predict(form, problem, resolve(operator, {}), mode, call)
    return footprint.total_bytes + footprint.cotangent_bytes


CPU = ("--device", "cpu", "--memory", "1GiB")
LEFT = GIB - LIBRARY_BYTES


def test_the_longest_sequence_fits_and_the_next_does_not() -> None:
    found = rows(*CPU, "--operators", "softmax,linformer", "--operators", "linear_transformer")
    assert list(found) == sorted(found, key=lambda name: -found[name]["largest"])
    for name, row in found.items():
        operator, _, impl = name.partition(":")
        assert (row["outcome"], row["exact"], row["mode"], row["source"]) == ("fits", True, "infer", "predicted")
        assert row["seq_len"] == row["largest"]
        assert row["memory_bytes"] == total(operator, Problem(row["largest"], 256, 8), impl=impl or None) <= LEFT
        assert row["beyond_bytes"] == total(operator, Problem(row["beyond"], 256, 8), impl=impl or None) > LEFT
        assert row["beyond"] <= 1.01 * row["largest"]
        parts = ("parameter_bytes", "gradient_bytes", "saved_bytes", "state_bytes", "working_bytes")
        assert sum(row[part] for part in parts) == row["memory_bytes"]
    assert found["softmax:sdpa"]["largest"] > 20 * found["softmax"]["largest"], "eager softmax holds N×N matrices"


def test_the_largest_batch_of_given_tokens() -> None:
    row = rows(*CPU, "--operators", "linear_transformer", "--seq-len", "1K", "--train")["linear_transformer"]
    one = total("linear_transformer", Problem(1024, 256, 8), "fwd_bwd")
    assert (row["axis"], row["mode"], row["seq_len"]) == ("batch", "train", 1024)
    assert row["batch"] == row["largest"] == LEFT // one
    side = rows(*CPU, "--operators", "linear_transformer", "--image-size", "32", "--train")["linear_transformer"]
    assert side["largest"] == row["largest"]
    assert (side["height"], side["width"]) == (32, 32)


def test_the_largest_image() -> None:
    found = rows(*CPU, "--operators", "lambda_layer,softmax,hyena", "--image")
    row = found["lambda_layer"]
    assert (row["height"], row["seq_len"]) == (row["largest"], row["largest"] ** 2)
    assert total("lambda_layer", Problem.image(row["largest"], row["largest"], 256, 8)) <= LEFT
    assert total("lambda_layer", Problem.image(row["largest"] + 1, row["largest"] + 1, 256, 8)) > LEFT


def test_a_step_of_decoding_holds_what_every_layer_keeps() -> None:
    words = (*CPU, "--mode", "decode", "--layers", "4", "--kv-heads", "2", "--operators")
    found = rows(*words, "softmax,gla,linformer")
    softmax = found["softmax"]
    kept = 2 * softmax["largest"] * 2 * 32 * 4  # keys and values of two heads
    assert softmax["state_bytes"] == 4 * kept
    assert (softmax["query_len"], softmax["causal"], softmax["largest_part"]) == (1, True, "state")
    assert (found["gla"]["outcome"], found["linformer"]["outcome"]) == ("undefined", "undefined")
    assert "shortening mixes all positions" in found["linformer"]["reason"]
    fixed = rows(*CPU, "--mode", "decode", "--operators", "gla")["gla"]
    assert fixed["at_bound"], "a state of fixed size fits at every N"
    assert "≥ 67108864" in run(*CPU, "--mode", "decode", "--operators", "gla")
    assert rows(*CPU, "--mode", "decode", "--operators", "reformer")["reformer"]["outcome"] == "undefined"


def stacked(form: Form, layers: int) -> Form:
    """Layers after each other, each with parameters of its own; outputs are given on."""

    def make_inputs(problem: Problem, params: Params, generator: torch.Generator) -> Any:
        each = [form.make_inputs(problem, params, generator) for _ in range(layers)]
        parameters = {f"{name}{i}": t for i, one in enumerate(each) for name, t in one.parameters.items()}
        return replace(each[0], parameters=parameters)

    def reference(problem: Problem, params: Params, x: Tensor, **tensors: Tensor) -> Tensor:
        for i in range(layers):
            own = {name.removesuffix(str(i)): t for name, t in tensors.items() if name.endswith(str(i))}
            x = form.reference(problem, params, x=x, **own)
        return x

    return replace(form, make_inputs=make_inputs, reference=reference)


@pytest.mark.parametrize("name", ["softmax", "linear_transformer", "local"])
def test_layers_are_counted_as_a_stack_of_them_holds(name: str) -> None:
    """In training the layers' gradients are alive at once, and the last layer's backward has those of none before it:
    what is counted is no less than what three layers hold, and more by no more than these."""
    operator = operators()[name].load()
    params, problem = resolve(operator, {}), Problem(256, 64, 4, batch=4, causal=True)
    form = operator.forms["layer"]
    for mode in ("fwd", "fwd_bwd"):
        one = predict(form, problem, params, mode)
        three = predict(stacked(form, 3), problem, params, mode)
        counted = need(one, 3, trained=mode == "fwd_bwd")
        held = three.total_bytes + three.cotangent_bytes
        assert held <= counted.total_bytes + 4 * 256 * 64 * 4, mode
        assert counted.total_bytes - held <= counted.gradient_bytes + 4 * 4 * 256 * 64 * 4, mode
        assert need(one, 2, trained=mode == "fwd_bwd").total_bytes < held or mode == "fwd", "the check sees a layer"


def test_what_is_kept_counts_once_per_layer_and_what_is_at_work_once() -> None:
    of = Footprint(1000, 100, 10, 4, state_bytes=0, cotangent_bytes=50, saved_bytes=300)
    counted = need(of, 5, trained=True)
    assert vars(counted) == {
        "parameter_bytes": 50,
        "gradient_bytes": 40,
        "saved_bytes": 1500,
        "state_bytes": 0,
        "working_bytes": 1000 + 100 + 4 + 50 - 300 + 16,
    }
    assert counted.largest_part == "saved"
    assert need(replace(of, saved_bytes=0, cotangent_bytes=0, state_bytes=7), 5, trained=False).total_bytes == (
        1000 + 100 + 4 + 5 * 10 + 5 * 7
    )


def test_of_a_gpu_the_context_and_a_twentieth_are_reserved_and_shown() -> None:
    words = ("--operators", "linear_transformer", "--memory", "8GiB")
    reserved = rows(*words)["linear_transformer"]
    assert reserved["limit_bytes"] == 8 * GIB - CONTEXT_BYTES - int(0.05 * 8 * GIB)
    assert rows(*words, "--device", "cpu")["linear_transformer"]["limit_bytes"] == 8 * GIB - LIBRARY_BYTES
    text = " ".join(run(*words).split())
    assert "of the 8.00GiB of a GPU: 640MiB are reserved for CUDA's context and 410MiB (5.0%) for" in text
    host = " ".join(run(*words, "--device", "cpu").split())
    assert "7.97GiB of the 8.00GiB of this machine: 32.0MiB are reserved for what libraries take inside a call" in host
    card = rows("--device", "H100", "--operators", "linear_transformer")["linear_transformer"]
    assert card["limit_bytes"] == 80 * GIB - CONTEXT_BYTES - int(0.05 * 80 * GIB)
    half = rows("--device", "H100", "--memory", "50%", "--operators", "linear_transformer")["linear_transformer"]
    assert half["limit_bytes"] == 40 * GIB - CONTEXT_BYTES - int(0.05 * 40 * GIB)


def test_params_that_differ_are_part_of_the_name() -> None:
    text = run(*CPU, "--operators", "linformer,softmax", "--param", "k=16,64")
    assert "linformer k=16 " in text
    assert "linformer k=64 " in text
    assert "softmax k" not in text


def test_reasons_why_nothing_fits() -> None:
    text = " ".join(run(*CPU, "--operators", "softmax,lambda_layer", "--seq-len", "64K").split())
    assert "— softmax: at 1, the smallest size, it needs" in text
    assert "— lambda_layer: defined on image only, not on a sequence." in text


@pytest.mark.parametrize("form", ["table", "csv", "markdown", "json"])
def test_every_format_holds_the_rows(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = (*CPU, "--operators", "softmax,lambda_layer", "--format", form)
    text, largest = run(*words), rows(*words[:-2])["softmax"]["largest"]
    assert str(largest) in text
    assert "defined on image only" in " ".join(text.split())
    assert max(len(line.rstrip()) for line in text.splitlines()) <= (80 if form == "table" else 3000)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--memory: missing? Give --memory 24GiB, or --device"),
        (("--memory", "24"), "--memory: '24'; allowed"),
        (("--memory", "50%"), "--memory: 50% of what?"),
        (("--memory", "500MiB"), "--memory 500MiB: 640MiB are reserved, and nothing is left"),
        (("--device", "cpu", "--memory", "30MiB"), "--memory 30MiB: 32.0MiB are reserved, and nothing is left"),
        (("--device", "H100", "--memory", "81GiB"), "--memory 81GiB: H100 has 80.0GiB. Give no more"),
        (("--device", "H1000"), "--device 'H1000': no such card (did you mean 'H100'?)"),
        ((*CPU, "--mode", "decod"), "--mode 'decod' (did you mean 'decode'?)"),
        ((*CPU, "--mode", "decode", "--train"), "--train and --mode decode: two modes"),
        ((*CPU, "--layers", "0"), "--layers: 0; allowed: a whole number from 1"),
        ((*CPU, "--seq-len", "1K", "--batch", "2"), "--seq-len and --batch: nothing is left to search"),
        ((*CPU, "--seq-len", "1K", "--image"), "--image and --seq-len: an image has sides"),
        ((*CPU, "--operators", "softmx"), "'softmx' is no operator (did you mean 'softmax'?)"),
        ((*CPU, "--heads", "3"), "is not divisible by heads 3"),
    ],
)
def test_bad_usage_is_told(words: Sequence[str], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        run(*words)
    assert message in str(caught.value)
