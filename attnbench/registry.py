"""Scans packages for operators and metrics; a file's name is the thing's name, and import errors are not caught."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from attnbench.errors import MOST_OF_A_REASON, BadInput, printable
from attnbench.files import is_file
from attnbench.metric import Metric
from attnbench.operator import Form, Impl, Operator, Param
from attnbench.problem import Cell, Mode, Params, ParamValue, Problem, Scope
from attnbench.units import suggestion, whole_size
from attnbench.user_code import user_errors


def scan(package: str) -> list[str]:
    """The module names in a package, sorted, without importing any of them."""
    path = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))


def metric_modules() -> dict[str, ModuleType]:
    """Every file of `attnbench/measure/metrics/` by the metric's name, imported; none of them imports torch."""
    package = "attnbench.measure.metrics"
    return {name: importlib.import_module(f"{package}.{name}") for name in scan(package)}


@cache
def metrics() -> Mapping[str, Metric]:
    """What every metric's file declares, by the metric's name."""
    return {name: module.METRIC for name, module in metric_modules().items()}


def placed_metrics() -> dict[str, Metric]:
    """The metrics that tables, crossovers and pictures are about, by `Metric.place`."""
    places = sorted((metric.place, name) for name, metric in metrics().items() if metric.place is not None)
    return {name: metrics()[name] for _, name in places}


def metrics_in_csv() -> dict[str, Metric]:
    """The metrics by `Metric.csv_place`, those without one last."""
    named = metrics().items()
    return dict(sorted(named, key=lambda item: (item[1].csv_place is None, item[1].csv_place or 0)))


def clocks(*, device_clock: bool) -> dict[str, Metric]:
    """The metrics with a clock, the placed ones first. device_clock: whether the device has one of its own."""
    return {
        name: metric
        for name, metric in {**placed_metrics(), **metrics()}.items()
        if metric.clock and (device_clock or not metric.needs_gpu)
    }


@dataclass(frozen=True)
class Source:
    """Where an operator is defined.

    Attributes:
        family: its folder's name; of a user's file "user".
        location: an importable module, or the path of a file.
    """

    family: str
    location: str

    @property
    def shipped(self) -> bool:
        """Whether it comes with attnbench, not from a user."""
        return self.location.startswith("attnbench.operators.")

    @property
    def file(self) -> Path | None:
        """Its file; None for a module of a user's package."""
        if self.shipped:
            return Path(__file__).parents[1].joinpath(*self.location.split(".")).with_suffix(".py")
        return Path(self.location) if self.location.endswith(".py") else None

    def load(self) -> Operator:
        """Imports the file, and torch with it; adds scope block. Raises BadInput where it has no OPERATOR or a user's
        file fails.
        """
        with nullcontext() if self.shipped else user_errors(self.location):
            module = _module(self.location)
        operator = getattr(module, "OPERATOR", None)
        if not isinstance(operator, Operator):
            raise BadInput(
                f"{self.location}: an operator file defines OPERATOR = Operator(...); "
                f"found {type(operator).__name__}. See CONTRIBUTING.md, 'Adding an operator'."
            )
        from attnbench.block import with_block  # torch, which the operator has imported

        return with_block(operator)


def _module(location: str) -> ModuleType:
    if not location.endswith(".py"):
        return importlib.import_module(location)
    path = Path(location).resolve()
    name = "attnbench_user_" + path.stem
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == str(path):
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{location}: not a Python file. Name a .py file or a package.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def operators(operators_from: Iterable[str] = ()) -> dict[str, Source]:
    """Every operator by name: the shipped ones, then the user's.

    Names are file names, so only the (empty) family packages and a user's package are imported.

    Args:
        operators_from: a user's .py files or packages.
    Raises: BadInput where a user's operator has the name of a shipped one, or a path does not exist.
    """
    root = "attnbench.operators"
    sources = {
        name: Source(family, f"{root}.{family}.{name}") for family in scan(root) for name in scan(f"{root}.{family}")
    }
    for place in operators_from:
        for name, source in _user_sources(place).items():
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise BadInput(
                    f"operators_from: {printable(place)}: an operator is named after its file, and {printable(name)!r} "
                    "is not a valid name; allowed: letters, digits, _ and -. Rename the file."
                )
            if name in sources:
                raise BadInput(
                    f"operators_from: {place} defines '{name}', which is already "
                    f"{sources[name].location}. Rename the file: its name is the operator's name."
                )
            sources[name] = source
    return sources


def source_of(name: str, operators_from: Sequence[str] = ()) -> Source:
    """Where one operator is defined; what is wrong with the files and packages of others is no matter.

    Raises: BadInput where a place that may define it cannot be looked into.
    """
    wrong: BadInput | None = None
    files_first = sorted(operators_from, key=lambda place: not place.endswith(".py"))  # packages are imported
    for places in ((), *((place,) for place in files_first)):
        try:
            found = operators(places)
        except BadInput as error:
            wrong = wrong or error
            continue
        if name in found:
            return found[name]
    raise wrong or BadInput(f"operators_from: none of {', '.join(operators_from)} defines '{name}' any more.")


def _user_sources(place: str) -> dict[str, Source]:
    if place.endswith(".py"):
        try:
            exists = is_file(Path(place))
        except BadInput as error:
            raise BadInput(f"operators_from: {error}") from None
        if not exists:
            raise BadInput(
                f"operators_from: {place} does not exist. Give the path of a .py file, relative to the suite."
            )
        return {Path(place).stem: Source("user", str(Path(place).resolve()))}
    try:
        with user_errors(place, ModuleNotFoundError):
            names = scan(place)
    except ModuleNotFoundError as error:
        if error.name is None or not (place == error.name or place.startswith(error.name + ".")):
            with user_errors(place):
                raise
        raise BadInput(
            f"operators_from: no package '{place}' can be imported. "
            "Install it in this environment, or give the path of a .py file."
        ) from None
    return {name: Source(place, f"{place}.{name}") for name in names}


def resolve(operator: Operator, params: Mapping[str, Any]) -> dict[str, ParamValue]:
    """Params with every default filled in, in the operator's order. Raises ValueError, with what is allowed."""
    unknown = sorted(set(params) - set(operator.params))
    if unknown:
        allowed = ", ".join(operator.params) or "none: it takes no parameters"
        raise ValueError(
            f"unknown parameter '{unknown[0]}'{suggestion(unknown[0], operator.params)}; allowed: {allowed}"
        )
    return {name: _checked(name, param, params.get(name, param.default)) for name, param in operator.params.items()}


def _checked(name: str, param: Param, value: ParamValue) -> ParamValue:
    if any(value == choice and type(value) is type(choice) for choice in param.choices):
        return value
    numeric = isinstance(param.default, (int, float)) and not isinstance(param.default, bool)
    numeric = numeric or param.minimum is not None or param.maximum is not None
    if numeric and isinstance(value, str):
        with suppress(ValueError):
            value = whole_size(0, 2**53)(value)  # 4K
    if isinstance(param.default, bool):
        if isinstance(value, bool):
            return value
    elif numeric and isinstance(value, (int, float)) and not isinstance(value, bool):
        integral = not isinstance(param.default, float)
        low = param.minimum is None or value >= param.minimum
        high = param.maximum is None or value <= param.maximum
        if low and high and (not integral or value == int(value)):
            return int(value) if integral else float(value)
    elif not param.choices and type(value) is type(param.default):
        return value
    near = suggestion(value, list(map(str, param.choices)))
    raise ValueError(f"{name} = {value!r}{near}; allowed: {allowed_values(param)}")


def allowed_values(param: Param) -> str:
    """The values that a parameter may have, as text for messages and `attnbench list operators`."""
    parts = [str(choice) for choice in param.choices]
    if isinstance(param.default, bool):
        parts = ["true", "false"]
    elif param.minimum is not None or param.maximum is not None or not parts:
        kind = "a number" if isinstance(param.default, float) else "a whole number"
        kind = "text" if isinstance(param.default, str) and param.minimum is None else kind
        low = "" if param.minimum is None else f" ≥ {param.minimum:g}"
        high = "" if param.maximum is None else f" ≤ {param.maximum:g}"
        parts.append(f"{kind}{low}{high}")
    return ", ".join(parts)


def why_not(operator: Operator, cell: Cell, device: str) -> str | None:
    """The reason that a cell cannot run on a device, or None.

    Args:
        device: torch's type of the device, such as "cpu".
    """
    outside = undefined(operator, cell)
    return _impl_why_not(operator.forms[cell.scope], cell, device) if outside is None else outside


def undefined(operator: Operator, cell: Cell) -> str | None:
    """The reason that a cell is outside its operator's definition, or its mode is, whatever the impl; or None."""
    outside = outside_definition(operator, cell.problem, cell.params, cell.scope)
    if outside is None and cell.mode != "fwd" and cell.problem.past:
        outside = "query_len < seq_len is fwd only: no gradient goes back through what is kept of earlier tokens"
    return outside


def outside_definition(operator: Operator, problem: Problem, params: Params, scope: Scope) -> str | None:
    """The reason a problem is outside an operator's definition, whatever the impl; or None."""
    if scope not in operator.forms:
        return f"no scope {scope}: it has {', '.join(operator.forms)}"
    if problem.domain not in operator.domains:
        here = "an image" if problem.domain == "image" else f"a {problem.domain}"
        return f"defined on {' and '.join(operator.domains)} only, not on {here}"
    if problem.causal and operator.causal is not True:
        return _sentence(operator.causal, "causal")
    if not problem.causal and operator.full is not True:
        return _sentence(operator.full, "full")
    if problem.group > 1 and operator.grouped is not True:
        return _sentence(operator.grouped, "grouped")
    if problem.past and operator.continues is not True:
        return _sentence(operator.continues, "continues")
    if problem.dtype not in operator.dtypes:
        return f"{problem.dtype} is not supported: {', '.join(operator.dtypes)}"
    reason = _sentence(operator.why_not(problem, params, scope), "why_not")
    if scope != "block" or reason is not None:
        return reason
    from attnbench.block import too_narrow

    return too_narrow(problem.channels) or _sentence(operator.why_not(problem, params, "layer"), "why_not")


def device_type_of(impl: str) -> str | None:
    """torch's type of the only device that an impl runs on: CUDA for `cuda` and its variants; None: it can be any."""
    return "cuda" if impl.split(":")[0] == "cuda" else None


def compiles(impl: str) -> bool:
    """Whether the first call of an impl may wait for a compiler: torch's, or Triton."""
    return impl == "compiled" or device_type_of(impl) is not None


def _impl_why_not(form: Form, cell: Cell, device: str) -> str | None:
    if cell.impl in ("reference", "compiled"):
        return None
    impl: Impl | None = form.impls.get(cell.impl)
    if impl is None:
        return f"has no impl {cell.impl}"
    if device_type_of(cell.impl) not in (None, device):
        return "needs a CUDA device"
    return why_not_impl(impl, cell.impl, cell.problem, cell.params, cell.mode, device)


def why_not_impl(impl: Impl, name: str, problem: Problem, params: Params, mode: Mode, device: str) -> str | None:
    """The reason that an impl cannot compute a problem of its operator, with its gradients where the mode needs them.

    name: for the message of a TypeError.
    """
    if problem.group > 1 and not impl.grouped:
        return "it takes as many heads of keys and values as of queries"
    if problem.past and not impl.continues:
        return "it takes all tokens at once, and continues from no state"
    reason = _sentence(impl.why_not(problem, params, device), f"why_not of {name}")
    if reason is None and mode != "fwd":
        reason = _sentence(impl.why_not_backward(problem, params, device), f"why_not_backward of {name}")
    return reason


def _sentence(reason: object, name: str) -> str | None:
    """A reason as it can be stored. Raises TypeError for anything but a non-empty string or None."""
    if reason is None or (isinstance(reason, str) and reason):
        return None if reason is None else printable(reason, MOST_OF_A_REASON)
    raise TypeError(f"{name} returns {printable(repr(reason), 60)}; allowed: a sentence, or None where it can run")
