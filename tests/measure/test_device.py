"""What is known of a kind of device stands in its file; no other code names one."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import attnbench
from attnbench.errors import BadInput
from attnbench.measure.device import available_devices, choose_device, cpu, cuda, device_names, device_of

PACKAGE = Path(attnbench.__file__).parent
DEVICES = PACKAGE / "measure" / "device"
OTHER_THINGS = {
    "analysis/compare/same_machine.py": "keys of environment.json",
    "analysis/cards.py": "a key of environment.json",
    "analysis/dispatch.py": "a key of environment.json",
    "analysis/merge/belonging.py": "a key of environment.json",
    "analysis/merge/joining.py": "keys of environment.json",
    "analysis/merge/parts.py": "keys of environment.json",
    "measure/machine/identity.py": "a key of environment.json",
    "store/privacy.py": "words that are no host's name",
    "measure/machine/host.py": "a key of environment.json, a control group's folder",
    "measure/machine/advice.py": "a key of environment.json",
    "outputs/_answer.py": "a key of environment.json",
    "outputs/_paper_listing.py": "counts the claims that stored runs without a GPU decide",
    "outputs/_export.py": "keys of environment.json",
    "outputs/github_benchmark.py": "a key of environment.json",
    "outputs/pytorch_benchmark.py": "keys of environment.json",
    "plan/cells.py": "an impl",
    "plan/schema.py": "an impl",
    "registry.py": "the device that an impl needs, asked here alone",
}
"""Files in which "cpu" or "cuda" is another thing's name."""

GPU_CODE = ("kernels", "operators")
"""Rooms whose code is for CUDA, and whose impls are called `cuda`: there a device is named by no comparison."""


def naming(source: str, names: list[str], *, comparisons: bool) -> Iterator[int]:
    """The lines that name a device as text, or ask torch for one kind; with `comparisons` only those that compare."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            named = any(isinstance(part, ast.Constant) and part.value in names for part in ast.walk(node))
        elif comparisons:
            named = False
        elif isinstance(node, ast.Attribute):
            named = node.attr == "is_cuda" or ast.unparse(node) == "torch.cuda"
        else:
            named = isinstance(node, ast.Constant) and node.value in names
        if named:
            yield node.lineno


def test_no_other_file_names_a_kind() -> None:
    lines = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if DEVICES not in path.parents and name not in OTHER_THINGS:
            comparisons = name.split("/")[0] in GPU_CODE
            lines[name] = list(naming(path.read_text(encoding="utf-8"), device_names(), comparisons=comparisons))
    assert len(lines) > 100
    assert not {name: found for name, found in lines.items() if found}


def test_a_file_that_names_a_kind_would_be_noticed() -> None:
    source = 'if device == "cuda":\n    torch.cuda.synchronize()\nLIMIT = {"cpu": 1}\nname = "cuda:flash"\n'
    assert list(naming(source, ["cpu", "cuda"], comparisons=True)) == [1]
    assert sorted(naming(source, ["cpu", "cuda"], comparisons=False)) == [1, 1, 2, 3]


def test_names_are_known_without_torch() -> None:
    code = (
        "import sys\nfrom attnbench.measure.device import device_names\n"
        "print(*device_names())\nsys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, device_names()), done.stderr


def test_auto_is_the_preferred_kind_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.torch.cuda, "is_available", lambda: True)
    assert available_devices()[:2] == ["cuda", "cpu"]
    assert choose_device("auto") == choose_device("cuda") == "cuda"
    monkeypatch.setattr(cuda.torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(BadInput, match=r"--device cuda: torch .* finds no usable GPU.*use --device cpu, or auto"):
        choose_device("cuda")


def test_a_kind_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    assert device_of("cpu") is cpu.DEVICE
    with pytest.raises(BadInput, match=r"device 'cdua'.*did you mean 'cuda'.*allowed: cpu, cuda, or auto"):
        device_of("cdua")
