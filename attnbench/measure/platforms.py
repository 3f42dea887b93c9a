"""Where attnbench can measure; what it has measured is read everywhere."""

from __future__ import annotations

import sys

from attnbench.errors import BadInput
from attnbench.modules import installed


def check_can_measure(verb: str) -> None:
    """Raises BadInput on a system without what workers are started, limited and ended by. verb: what it names."""
    if sys.platform == "win32" or not all(map(installed, ("fcntl", "resource"))):
        raise BadInput(
            f"attnbench {verb}: nothing can be measured on this system ({sys.platform}): that needs Linux (macOS is "
            "not tried). Measure there, or under WSL 2; show, plot, compare, roofline, estimate and list work here."
        )
