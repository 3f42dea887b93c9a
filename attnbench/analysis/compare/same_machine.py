"""What must be the same for numbers to belong together: names of environment.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnbench.errors import BadInput

if TYPE_CHECKING:
    from attnbench.analysis.run import Run

HARDWARE = ("device", "system", "machine", "cpu", "cores", "gpu_name")

SOFTWARE = ("threads", "instruction_set", "torch")

MACHINE = (*HARDWARE, *SOFTWARE)
"""Between two runs, and for stored noise: what time and memory depend on whatever the code is."""

ONE_RUN = (*MACHINE, "python", "allocator", "cuda", "cudnn", "tf32")
"""Within one run, with the digests of `measured_code`: nothing may be another after a resume."""


def differing(names: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, before, after) of those that two environments do not agree in; a missing one is None."""
    pairs = [(name, before.get(name), after.get(name)) for name in names]
    return [(name, a, b) for name, a, b in pairs if a != b]


@dataclass(frozen=True)
class Circumstances:
    """What differs between two runs' environments. hardware, software: sentences. contract: measure settings."""

    hardware: tuple[str, ...]
    software: tuple[str, ...]
    contract: tuple[str, ...]

    @property
    def alike(self) -> bool:
        """Whether bytes and operations repeat exactly between the two."""
        return not self.software and not any(text.startswith(("device", "machine", "gpu")) for text in self.hardware)


def circumstances(before: Run, after: Run) -> Circumstances:
    """Compares environments and contracts. Raises BadInput where the stored numbers do not mean the same."""
    contracts = [_contract(run) for run in (before, after)]
    if contracts[0][:1] != contracts[1][:1]:
        versions = ["".join(c[:1]) or "unknown" for c in contracts]
        raise BadInput(
            f"{before.folder} was measured under contract {versions[0]}, {after.folder} under {versions[1]}: "
            "their numbers do not mean the same. Measure one of them again."
        )
    settings = [tuple(word for word in c[1:] if not word.startswith("rounds=")) for c in contracts]
    measured = () if settings[0] == settings[1] else (f"measure: {' '.join(settings[0])} → {' '.join(settings[1])}",)
    return Circumstances(_sentences(HARDWARE, before, after), _sentences(SOFTWARE, before, after), measured)


def _sentences(names: Sequence[str], before: Run, after: Run) -> tuple[str, ...]:
    pairs = differing(names, before.environment, after.environment)
    return tuple(f"{name.replace('_', ' ')}: {_plain(a)} → {_plain(b)}" for name, a, b in pairs)


def _contract(run: Run) -> tuple[str, ...]:
    found = [str(text) for text in run.visits["contract"].unique() if text]
    return tuple(found[0].split()) if found else ()


def _plain(value: Any) -> str:
    return "unknown" if value is None else str(value)
