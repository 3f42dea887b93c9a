"""Problems as keyword arguments name them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attnbench.api import arguments

if TYPE_CHECKING:
    from attnbench.plan.problem_request import ProblemRequest

Sizes = int | str | Sequence[int | str]
"""One or several; `"32K"` is 32768."""


def problem_request(
    operators: str | Sequence[str],
    sizes: Mapping[str, Sizes],
    dtype: str | Sequence[str],
    *,
    causal: bool,
    mode: str,
    scope: str,
    params: Mapping[str, Any] | None,
    operators_from: str | Sequence[str],
) -> ProblemRequest:
    """The same arguments as the words of a command line. Raises BadInput for what is no axis, and for an argument
    of another type."""
    from attnbench.axes import AXES
    from attnbench.errors import BadInput
    from attnbench.plan.problem_request import ProblemRequest
    from attnbench.units import quoted, suggestion

    for name in sizes:
        if name not in AXES:
            raise BadInput(f"{quoted(name)} is no size{suggestion(name, AXES)}; allowed: {', '.join(AXES)}.")
    if params is not None and not isinstance(params, Mapping):
        raise BadInput(f"params = {quoted(params)}; allowed: a mapping of keys to one or several values.")
    return ProblemRequest(
        operators=arguments.names("operators", operators),
        sizes={name: _words(values) for name, values in sizes.items()},
        dtype=_words(dtype),
        causal=arguments.truth("causal", causal),
        mode=mode,
        scope=scope,
        params=[f"{key}={','.join(_words(values))}" for key, values in (params or {}).items()],
        operators_from=arguments.names("operators_from", operators_from),
    )


def _words(values: Any) -> list[str]:
    """One or several values as a command line has them."""
    several = values if isinstance(values, Iterable) and not isinstance(values, str) else [values]
    return [str(value).lower() if isinstance(value, bool) else str(value) for value in several]
