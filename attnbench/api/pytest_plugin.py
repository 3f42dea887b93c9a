"""The fixture `attnbench_compare` of pytest: whether a function has become slower, as `compare_callables` finds it.

    def test_not_slower(attnbench_compare):
        attnbench_compare(old, new, (q, k, v)).check(max_slowdown="5%")

pytest loads this file wherever attnbench is installed, so it imports nothing that takes time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from attnbench.api.callables import CallablesComparison


@dataclass
class Comparing:
    """Two functions that are to be compared; `check` does so.

    Args:
        fn_a, fn_b, inputs, options: of `attnbench.compare_callables`.
    """

    fn_a: Callable[..., object]
    fn_b: Callable[..., object]
    inputs: Any
    options: dict[str, Any]
    _checked: bool = field(default=False, init=False)

    def check(
        self, max_slowdown: str | float = "5%", undecided: Literal["fail", "pass"] = "fail"
    ) -> CallablesComparison:
        """Fails the test where the second function is slower; see `CallablesComparison.check`.

        Args:
            max_slowdown: the slow-down that is looked for: `threshold` of `compare_callables`.
            undecided: whether what cannot be told fails too.
        """
        __tracebackhide__ = True
        from attnbench.api.callables import compare_callables
        from attnbench.errors import BadInput

        if "threshold" in self.options:
            raise BadInput("attnbench_compare: threshold is max_slowdown of .check(…). Give it there.")
        self._checked = True
        result = compare_callables(self.fn_a, self.fn_b, self.inputs, threshold=max_slowdown, **self.options)
        print(result)
        return result.check(undecided=undecided)

    @property
    def forgotten(self) -> bool:
        """Whether nothing was compared."""
        return not self._checked


PASSED = pytest.StashKey[bool]()
"""Whether a test itself, without its fixtures, has passed."""


@pytest.hookimpl(hookwrapper=True)  # what pytest 7 has, too
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, None]:
    """Keeps whether a test has passed: one that failed or was skipped on its way to `.check` has not forgotten it."""
    outcome = yield
    item.stash[PASSED] = outcome.excinfo is None


@pytest.fixture
def attnbench_compare(request: pytest.FixtureRequest) -> Iterator[Callable[..., Comparing]]:
    """Compares the times of two functions: attnbench_compare(old, new, inputs, …).check(max_slowdown="5%")."""
    begun: list[Comparing] = []

    def compare(
        fn_a: Callable[..., object], fn_b: Callable[..., object], inputs: Any = (), **options: Any
    ) -> Comparing:
        begun.append(Comparing(fn_a, fn_b, inputs, options))
        return begun[-1]

    yield compare
    if request.node.stash.get(PASSED, False) and any(each.forgotten for each in begun):
        pytest.fail("attnbench_compare(…) compares nothing by itself: call .check(max_slowdown=…) of what it returns")
