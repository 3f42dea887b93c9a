"""What `import attnbench` costs: no library, until a name is used that needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import attnbench

HEAVY = ("torch", "pandas", "numpy", "scipy", "matplotlib", "rich", "typer", "yaml", "pytest")
"""Libraries that attnbench uses somewhere."""


def imported(code: str) -> set[str]:
    """The libraries that are imported once a fresh interpreter has run some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(HEAVY) & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("code", ["import attnbench", "from attnbench import BadInput", "import attnbench.api"])
def test_it_imports_no_library(code: str) -> None:
    assert imported(code) == set()


def test_reading_a_run_imports_no_torch_and_what_is_imported_is_noticed() -> None:
    code = "import attnbench\nrun = attnbench.load('results/reference/cpu-border')\nrun.results\nrun._repr_html_()"
    assert "torch" not in imported(code)
    assert "pandas" in imported(code)


def test_every_name_is_there_and_no_other() -> None:
    for name in attnbench.__all__:
        assert getattr(attnbench, name) is not None
        assert name in dir(attnbench)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = attnbench.laod
    assert attnbench.BadInput.__mro__[1] is Exception
