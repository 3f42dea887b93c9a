"""The timing contract: the version of what a stored time means, and the settings that it was measured with."""

from __future__ import annotations

CONTRACT = 3
"""The version under which times are measured today: raised by hand when the meaning of a stored number changes."""

TURNS_SINCE = 3
"""The contract since which the members of a block are measured in turns."""


def contract_parts(contract: str) -> tuple[str, str]:
    """The version of a contract and its settings but for the number of rounds; empty where none is stored."""
    version, *settings = contract.split() or [""]
    return version, " ".join(setting for setting in settings if not setting.startswith("rounds="))


def has_turns(contract: str) -> bool:
    """Whether blocks are measured in turns under a contract."""
    return _number(contract) >= TURNS_SINCE


def is_newer(contract: str) -> bool:
    """Whether a contract is of a later attnbench: what its times mean is not known here."""
    return _number(contract) > CONTRACT


def _number(contract: str) -> int:
    """The version of a contract as a number; 0 where it has none."""
    version, _ = contract_parts(contract)
    return int(version) if version.isdecimal() and len(version) < 10 else 0
