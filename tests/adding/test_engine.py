"""Adding an engine is adding its file: a fleet finds it by its name."""

from __future__ import annotations

from pathlib import Path

from tests.adding.tree import attnbench, tree_with

ENGINE = '''"""An engine without devices."""

from __future__ import annotations

from attnbench.errors import BadInput
from attnbench.measure.engines import Connection


def connect(request: Connection):
    """Says what it is asked for."""
    raise BadInput(f"{request.devices} devices, {dict(request.options)}")
'''


def test_an_engine_is_one_file(tmp_path: Path) -> None:
    words = ("fleet", "quick", "--on", "nobody", "--devices", "3", "--option", "queue=long")
    tree = tree_with(tmp_path / "with", "attnbench/measure/engines/nobody.py", ENGINE)
    done = attnbench(tree, *words)
    assert (done.returncode, done.stderr) == (2, "attnbench: 3 devices, {'queue': 'long'}\n")
    tree = tree_with(tmp_path / "without", "attnbench/measure/engines/_nobody.py", ENGINE)
    done = attnbench(tree, *words)
    assert done.returncode == 2
    assert "'nobody'; allowed: ray, slurm" in done.stderr
