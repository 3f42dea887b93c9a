"""attnbench: at which size does O(N²) attention stop paying on this hardware, and what should replace it?

From Python: `load` a stored run, `run` a suite, `choose` an operator, `estimate` what it costs, `fit` a memory,
`compare_callables`. Each is imported when it is first used: `import attnbench` alone imports no library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnbench.api.callables import CallablesComparison, compare_callables
    from attnbench.api.choices import choose
    from attnbench.api.estimates import estimate
    from attnbench.api.fits import fit
    from attnbench.api.measuring import run
    from attnbench.api.merging import merge
    from attnbench.api.stored_run import StoredRun, load
    from attnbench.errors import BadInput

__version__ = "0.1.0"

__all__ = [
    "BadInput",
    "CallablesComparison",
    "StoredRun",
    "__version__",
    "choose",
    "compare_callables",
    "estimate",
    "fit",
    "load",
    "merge",
    "run",
]

_HOMES = {
    "BadInput": "attnbench.errors",
    "CallablesComparison": "attnbench.api.callables",
    "StoredRun": "attnbench.api.stored_run",
    "choose": "attnbench.api.choices",
    "compare_callables": "attnbench.api.callables",
    "estimate": "attnbench.api.estimates",
    "fit": "attnbench.api.fits",
    "load": "attnbench.api.stored_run",
    "merge": "attnbench.api.merging",
    "run": "attnbench.api.measuring",
}
"""By name, the module that has it."""


if not TYPE_CHECKING:  # a type checker knows the names above, and no other

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'attnbench' has no attribute '{name}'")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
