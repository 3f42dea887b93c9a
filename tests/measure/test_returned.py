"""What an operator of one's own returns is held against its cell, before anything is timed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pandas import Series

from attnbench.analysis.run import Run
from attnbench.measure.protocol import FinishRequest, PrepareRequest, SampleRequest
from attnbench.measure.worker.block import Block
from attnbench.measure.worker.returned import misfit_of_inputs, misfit_of_output, not_finite
from attnbench.problem import DTYPES, Cell, Mode, Problem
from attnbench.registry import operators, outside_definition, resolve
from tests.running import measured, plan
from tests.variants import SCOPES

INPUTS = {
    "right": None,
    "whole_choice": None,
    "parameter_class": None,
    "flattened": None,
    "half_data": "data 'x' as torch.float16 [2, 12, 8] on cpu; expected torch.float32, the cell's dtype",
    "double_data": "data 'x' as torch.float64 [2, 12, 8] on cpu; expected torch.float32",
    "half_parameters": "parameters 'w' as torch.float16 [1] on cpu; expected torch.float32",
    "double_choice": "choices 'c' as torch.float64 [1] on cpu; expected torch.float32, or whole numbers",
    "whole_data": "data 'x' as torch.int32 [2, 12, 8] on cpu; expected torch.float32",
    "other_device": "parameters 'w' as torch.float32 [1] on meta; expected it on cpu",
    "transposed": "[2, 12, 8] on cpu, not contiguous (strides [96, 1, 12]); expected a contiguous one",
    "expanded": "not contiguous (strides [96, 0, 1]); expected a contiguous one",
    "fewer_tokens": "another size: 'x' [2, 6, 8]; expected one at least with the dimensions 2 (batch) and 12 (tokens)",
    "nan": "'w' (torch.float32 [1] on cpu) with values that are NaN or infinite",
    "infinite": "'x' (torch.float32 [2, 12, 8] on cpu) with values that are NaN or infinite",
    "requires_grad": "without requires_grad",
    "twice": "'x' in data and in parameters; expected each name once",
    "list": "data 'x' as list; expected a plain torch.Tensor",
    "tuple": "returns tuple; expected attnbench.operator.Inputs",
    "none": "no data tensor; expected at least one",
}

OUTPUTS = {
    "same": None,
    "transposed_output": None,
    "other_dtype": "the output is torch.float64 [2, 63, 8] on cpu; expected torch.float32",
    "other_device": "[2, 63, 8] on meta; expected it on cpu",
    "sparse": "torch.sparse_coo and not stored as its values; expected a strided tensor",
    "subclass": "the output is a tests.misfit.misfits.Labelled; expected a plain torch.Tensor",
    "pair": "the output is a builtins.tuple; expected a plain torch.Tensor",
    "nothing": "the output is a builtins.NoneType",
    "array": "the output is a numpy.ndarray",
}


def cell(kind: str = "right", impl: str = "same", mode: Mode = "fwd") -> Cell:
    return Cell("misfits", impl, "core", mode, Problem(12, 8, batch=2), {"kind": kind})


CELLS = {
    **{f"inputs {kind}": cell(kind) for kind in INPUTS},
    "inputs reference": cell("half_data", "reference"),
    **{f"output {impl}": cell(impl=impl) for impl in OUTPUTS},
    "output detached": cell(impl="detached", mode="fwd_bwd"),
    "output differentiable": cell(mode="fwd_bwd"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("returned") / "run"
    return measured(folder, plan(list(CELLS.values()), operators_from=("tests.misfit",)))


def row(run: Run, name: str) -> Series:
    return run.results.set_index("key").loc[CELLS[name].key]


@pytest.mark.parametrize("kind", [*INPUTS, "reference"])
def test_inputs_that_do_not_fit_the_cell_are_an_error_that_names_them(run: Run, kind: str) -> None:
    found, expected = row(run, f"inputs {kind}"), INPUTS["half_data" if kind == "reference" else kind]
    if expected is None:
        assert (found["status"], found["cause"]) == ("ok", ""), found["reason"]
        assert found["wall_time_s"] > 0
    else:
        assert (found["status"], found["cause"]) == ("error", "bad_inputs")
        assert expected in found["reason"].replace("[2, 63, 8]", "[2, 12, 8]")
        assert not found["wall_time_s"] > 0


@pytest.mark.parametrize("impl", OUTPUTS)
def test_outputs_that_do_not_fit_the_cell_are_wrong(run: Run, impl: str) -> None:
    found, expected = row(run, f"output {impl}"), OUTPUTS[impl]
    if expected is None:
        assert (found["status"], found["cause"]) == ("ok", ""), found["reason"]
    else:
        assert (found["status"], found["cause"]) == ("wrong", "wrong")
        assert expected in found["reason"]
        assert not found["wall_time_s"] > 0


def test_a_call_without_a_gradient_is_wrong_where_gradients_are_asked_for(run: Run) -> None:
    assert row(run, "output differentiable")["status"] == "ok"
    found = row(run, "output detached")
    assert (found["status"], found["cause"]) == ("wrong", "wrong")
    assert "[2, 63, 8] on cpu) has no gradient" in found["reason"]


@pytest.mark.parametrize("name", operators())
def test_every_shipped_operator_fits(name: str) -> None:
    operator = operators()[name].load()
    kinds = [{}, *({param: choice} for param, what in operator.params.items() for choice in what.choices)]
    causal = operator.full is not True
    sizes = [Problem(48, 32, 2, batch=3, causal=causal), Problem.image(8, 6, 32, 2, batch=3, causal=causal)]
    checked = 0
    for size in [replace(size, dtype=dtype) for size in sizes for dtype in DTYPES]:
        for scope, params in [(scope, resolve(operator, given)) for scope in SCOPES for given in kinds]:
            if outside_definition(operator, size, params, scope) is not None:
                continue
            inputs = operator.forms[scope].make_inputs(size, params, torch.Generator().manual_seed(0))
            assert misfit_of_inputs(inputs, size, "cpu") is None
            assert not_finite(inputs) is None
            output = operator.forms[scope].reference(size, params, **inputs.tensors())
            assert misfit_of_output(output, size, "cpu", differentiable=False) is None
            other = replace(size, dtype="float16" if size.dtype != "float16" else "float32")
            assert misfit_of_inputs(inputs, other, "cpu") is not None
            checked += 1
    assert checked


def test_an_output_may_be_a_view_of_its_input_while_that_is_written_to() -> None:
    """identity returns its values; every eighth sample is checked behind a write."""
    source = operators(())["identity"]
    cell = Cell("identity", "reference", "core", "fwd", Problem(64, 64, 4), resolve(source.load(), {}))
    block = Block()
    assert block.prepare(PrepareRequest(cell, "cpu", (), 2**30, None)).status == "ok"
    answers = [block.sample(SampleRequest(cell.key)) for _ in range(24)]
    ended = block.finish(FinishRequest(cell.key))
    assert {answer.reason for answer in (*answers, ended)} == {""}
