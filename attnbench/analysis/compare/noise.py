"""Stored noise: what `attnbench calibrate` found on this machine, and what the gate plans with."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.analysis.compare.same_machine import MACHINE, differing
from attnbench.errors import BadInput
from attnbench.files import replace, storing
from attnbench.store.trusted_json import parse_object, read_text
from attnbench.units import count

if TYPE_CHECKING:
    from attnbench.analysis.compare.tier1_paired import Noise


@dataclass(frozen=True)
class Calibration:
    """Noise as it is stored.

    Args:
        noise: of one pair.
        machine: MACHINE of the environment in which it was measured.
        suite: its name.
    """

    noise: Noise
    machine: Mapping[str, Any]
    suite: str


def default_path(suite: str) -> Path:
    """Where the noise of a suite is stored unless the user says otherwise."""
    return Path("results") / "noise" / f"{suite}.json"


def write(path: Path, calibration: Calibration) -> None:
    """Stores a calibration.

    Raises: BadInput where the file cannot be written.
    """
    from attnbench.analysis.compare.tier1_paired import TURNS

    data = {
        "suite": calibration.suite,
        "turns": TURNS,
        "machine": dict(calibration.machine),
        "pairs": calibration.noise.pairs,
        "shared": calibration.noise.shared,
        "own": dict(calibration.noise.own),
    }
    with storing(path, "Make room, or name another file: --out."):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def read(path: Path) -> Calibration:
    """A stored calibration.

    Raises: BadInput where the file holds none.
    """
    from attnbench.analysis.compare.tier1_paired import TURNS, Noise

    data = parse_object(read_text(path), str(path))
    own, shared = data.get("own"), data.get("shared")
    sound = isinstance(own, dict) and isinstance(data.get("machine"), dict) and isinstance(data.get("pairs"), int)
    numbers = [shared, *(own.values() if isinstance(own, dict) else ())]
    if not sound or shared is None or not all(_is_sd(value) for value in numbers):
        raise BadInput(f"{path}: not noise that `attnbench calibrate` wrote. Remove it and calibrate again.")
    if data.get("turns") != TURNS:
        raise BadInput(f"{path}: its pairs were not of {TURNS} turns, as the gate's are now. Calibrate again.")
    assert isinstance(own, dict)
    return Calibration(Noise(own, float(shared), data["pairs"]), data["machine"], str(data.get("suite", "")))


def _is_sd(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 10 and math.isfinite(value)


def machine_of(environment: Mapping[str, Any]) -> dict[str, Any]:
    """MACHINE of an environment."""
    return {name: environment.get(name) for name in MACHINE}


def noise_for(path: Path, environment: Mapping[str, Any], *, required: bool) -> tuple[Noise, str]:
    """The noise to plan with, and a sentence about where it comes from.

    Args:
        path: where it is stored.
        environment: of the machine that measures.
        required: whether a missing file, or one of another machine, is an error: the user has named it.

    Raises: BadInput.
    """
    from attnbench.analysis.compare.tier1_paired import ASSUMED, ASSUMED_SD

    assumed = (
        f"not calibrated here: {ASSUMED_SD:.0%} from process to process is assumed; `attnbench calibrate` measures it"
    )
    if not os.path.isfile(path) and not required:
        return ASSUMED, assumed
    calibration = read(path)
    for name, there, here in differing(MACHINE, calibration.machine, environment)[:1]:
        reason = f"{path} is of another machine ({name} {there}, here {here})"
        if required:
            raise BadInput(f"{reason}. Calibrate here, or leave --noise out.")
        return ASSUMED, f"{reason}; {assumed}"
    noise = calibration.noise
    return (
        noise,
        f"noise from {count(noise.pairs, 'pair')}: {noise.typical:.1%} per cell, {noise.shared:.1%} shared",
    )
