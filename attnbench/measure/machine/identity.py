"""An anonymous id of a device: the same in every run on it, and nothing by which anybody could tell whose it is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnbench.measure.machine import host

DIGITS = 12
"""Of an id: among a million devices two are alike with a probability of 0.2 %."""

MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
"""Where Linux keeps 128 random bits that were drawn when it was installed."""

STABLE = ("system", "machine", "cpu", "cores", "memory_bytes")
"""Facts of a host that stay the same, where it has no id. Two machines of one kind are then taken for one."""


def anonymous(unique: str) -> str:
    """The id of what a text tells from all others, such as the UUID of a GPU.

    It is a hash, salted so that it equals no other program's; what it is made of has 128 random bits, or is stored in
    environment.json anyway.
    """
    return hashlib.blake2b(unique.encode(), salt=b"attnbench device"[:16], digest_size=DIGITS // 2).hexdigest()


def of_host(facts: Mapping[str, Any] | None = None) -> str:
    """The id of this machine's processor. facts: as `host.facts`; None: of this machine."""
    for path in MACHINE_IDS:
        text = host.first_line(path)
        if text and len(text) == 32:
            return anonymous(f"machine {text}")
    known = host.facts() if facts is None else facts
    return anonymous(" ".join(str(known.get(name)) for name in STABLE))
