"""What a launch does is counted from a few of its programs, as by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

from attnbench.kernels.few_keys import launch as few_keys
from attnbench.kernels.margins import launch as margins
from attnbench.kernels.sorted_chunks import launch as sorted_chunks
from benchmarks.kernel_launches import LAUNCHES, TORCH, Launch, Operators, install


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for owner, names in (
        (InterpreterBuilder, ("create_masked_load", "create_masked_store", "unary_op", "create_dot")),
        (GridExecutor, ("__call__",)),
        (interpreter, ("_patch_lang",)),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, getattr(owner, name))
    install()
    LAUNCHES.clear()
    yield
    LAUNCHES.clear()


def launched() -> Launch:
    (launch,) = (launch for launch in LAUNCHES if launch.kernel != TORCH)
    return launch


def test_a_map_is_read_once_and_its_margins_are_written() -> None:
    x = torch.randn(1, 6, 100, 64).bfloat16()
    margins.launch_margins(x, 1.0, 1.0)
    launch = launched()
    bands = 2  # of 64 rows
    assert launch.programs == 6 * bands
    assert launch.loaded == 50 * 64 * 2  # programs 0, 3, 6 and 11: bands of 64 rows and of 36
    assert launch.memory_bytes == x.nbytes + 6 * 164 * 2 + 6 * bands * 64 * 4
    assert launch.arguments["BLOCK_W"] == 64
    assert launch.arguments["x"] == ["*bf16", True]


def test_products_and_exponentials_of_a_program_are_counted() -> None:
    q, k, v = (torch.randn(1, 2, n, 64).bfloat16() for n in (256, 96, 96))
    few_keys.attend(q, k, v, 1.0)
    launch = launched()
    assert launch.programs == 2 * 2
    assert launch.products == 2 * 2  # tiles of 64 keys
    assert launch.flops == launch.most_flops == 2 * 2 * 128 * 64 * (64 + 64)
    assert launch.loaded == (128 + 96 + 96) * 64 * 2
    assert launch.stored == 128 * 64 * 2
    assert launch.exponentials == 2 * (128 * 64 + 128)
    few_keys.attend(q, k[:, :, :64].contiguous(), v[:, :, :64].contiguous(), 1.0)
    assert LAUNCHES[-1].products == 2, "half the keys"


def test_a_program_that_reads_beyond_its_tensors_is_found() -> None:
    q, k, v = (torch.randn(1, 2, n, 64).bfloat16() for n in (256, 64, 64))
    few_keys.attend(q, k, v, 1.0)
    with pytest.raises(Exception, match="outside the tensors"):
        few_keys.attend(q, k, v[:, :, :1].clone(), 1.0)  # as many values as keys are read


def test_operators_of_torch_between_launches_are_one_entry() -> None:
    x = torch.zeros(64, 32)
    with Operators():
        y = (x @ x.t()).exp()
    (entry,) = LAUNCHES
    assert y.shape == (64, 64)
    assert entry.kernel == TORCH
    assert entry.flops == 2 * 64 * 32 * 64
    assert entry.memory_bytes == (2 * x.nbytes + y.nbytes) + 2 * y.nbytes


def test_what_makes_an_order_is_executed_whole() -> None:
    tokens = 5 * sorted_chunks.PLACES  # of five programs four would be a sample
    seeing = sorted_chunks.Seeing(64, causal=False, corrected=True, by_bucket=True)
    order, _ = sorted_chunks.lines(torch.zeros(1, 1, 1, tokens, dtype=torch.int32), 2, seeing)
    assert torch.equal(order.flatten(), torch.arange(tokens, dtype=torch.int32))
