"""Tests of every variant of an operator, as one: pytest takes longer for a test of its own than most of them do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

Case = tuple[Any, ...]
"""A variant, and what else the test is called with."""
Test = Callable[..., None]


def by_operator(cases: Iterable[Case]) -> Callable[[Test], Test]:
    """A test that is called with a case → one for each operator, which is called for each of its cases. The first that
    fails is named; skipped is what all cases skip.
    """
    of_operator: dict[str, list[Case]] = {}
    for case in cases:
        of_operator.setdefault(case[0].name, []).append(case)

    def decorate(test: Test) -> Test:
        def test_cases(operator: str) -> None:
            skipped = []
            for case in of_operator[operator]:
                try:
                    test(*case)
                except pytest.skip.Exception as reason:
                    skipped.append(str(reason))
                except Exception as error:
                    raise AssertionError(" ".join(map(str, case))) from error
            if len(skipped) == len(of_operator[operator]):
                pytest.skip(skipped[0])

        test_cases.__name__, test_cases.__module__, test_cases.__doc__ = test.__name__, test.__module__, test.__doc__
        return pytest.mark.parametrize("operator", sorted(of_operator))(test_cases)

    return decorate
