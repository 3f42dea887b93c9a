"""What must be the same for numbers to belong together: names of environment.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnbench.contract import contract_parts
from attnbench.errors import BadInput

if TYPE_CHECKING:
    from attnbench.analysis.run import Run

HARDWARE = ("device", "system", "machine", "cpu", "cores", "gpu_name")

SOFTWARE = ("threads", "instruction_set", "torch")

MACHINE = (*HARDWARE, *SOFTWARE)
"""Between two runs, and for stored noise: what time and memory depend on whatever the code is."""

EXACT = ("device", "machine", "gpu_name", *SOFTWARE)
"""Between two runs: what bytes and operations depend on, which repeat on another processor of the same kind."""

ONE_RUN = (*MACHINE, "python", "allocator", "cuda", "cudnn", "tf32")
"""Within one run, with the digests of `measured_code`: nothing may be another after a resume."""


def differing(names: Iterable[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, before, after) of those that two environments do not agree in; a missing one is None."""
    pairs = [(name, before.get(name), after.get(name)) for name in names]
    return [(name, a, b) for name, a, b in pairs if a != b]


@dataclass(frozen=True)
class Circumstances:
    """What differs between the circumstances of two runs, as sentences.

    Args:
        hardware, software: of their environments.
        contract: of their measure settings.
        alike: whether bytes and operations repeat exactly between the two.
    """

    hardware: tuple[str, ...]
    software: tuple[str, ...]
    contract: tuple[str, ...]
    alike: bool


def differences(before: Run, after: Run) -> Circumstances:
    """Compares environments and contracts.

    Raises: BadInput where the stored numbers do not mean the same.
    """
    versions, settings = zip(*map(_contract, (before, after)), strict=True)
    empty = [run.folder for run in (before, after) if run.visits.empty]
    if len(empty) == 1:
        raise BadInput(
            f"{empty[0]}: nothing was measured in it, as where a run was ended at once. Name one that has measured "
            "something."
        )
    if versions[0] != versions[1]:
        raise BadInput(
            f"{before.folder} was measured under contract {versions[0] or 'unknown'}, {after.folder} under "
            f"{versions[1] or 'unknown'}: their numbers do not mean the same. Measure one of them again."
        )
    contract = () if settings[0] == settings[1] else (f"measure: {settings[0]} → {settings[1]}",)
    alike = not differing(EXACT, before.environment, after.environment)
    return Circumstances(_sentences(HARDWARE, before, after), _sentences(SOFTWARE, before, after), contract, alike)


def _sentences(names: Iterable[str], before: Run, after: Run) -> tuple[str, ...]:
    def text(value: Any) -> str:
        return "unknown" if value is None else str(value)

    pairs = differing(names, before.environment, after.environment)
    return tuple(f"{name.replace('_', ' ')}: {text(a)} → {text(b)}" for name, a, b in pairs)


def _contract(run: Run) -> tuple[str, str]:
    return contract_parts(next((str(text) for text in run.visits["contract"].unique() if text), ""))
