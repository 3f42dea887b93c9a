"""A suite measured from Python: what `attnbench run` does, by the same functions."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.api import arguments
from attnbench.api.stored_run import StoredRun, load

if TYPE_CHECKING:
    from attnbench.plan.suite import Suite


@arguments.named
def run(
    suite: str | Path | Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    device: str = "auto",
    operators: str | Sequence[str] = (),
    impls: str | Sequence[str] = (),
    rounds: int | None = None,
    budget: str | None = None,
    strict: bool = False,
    shard: str | None = None,
    progress: bool = True,
) -> StoredRun:
    """Measures a suite into a run folder, in worker processes, exactly as `attnbench run` does.

    What would disturb the numbers, and why a run ended before its plan did, is a Python warning. An interrupt leaves
    what was measured in the folder: `resume` continues it.

    Args:
        suite: the name of a shipped suite, a YAML file, or the same as a mapping. None: that of `resume`.
        out: the folder to write; None: a new one below results/.
        resume: the folder of a run to continue.
        device: "cpu", "cuda", or "auto".
        operators, impls: only these; none: the suite's.
        rounds: so many and no more; None: as many as the crossovers need.
        budget: time for this call, such as "5m"; None: the suite's.
        strict: refuse to run while others use the GPU.
        shard: one of several parts of the suite, such as "2/8"; None: the whole.
        progress: whether stderr shows how far it is.

    Returns: the stored run.
    Raises: BadInput.
    """
    from attnbench.measure.platforms import check_can_measure

    check_can_measure("run")
    from attnbench.measure.run_request import RunRequest, measure
    from attnbench.outputs import _progress as words

    begun = time.monotonic()
    request = RunRequest(
        suite=None if suite is None else _suite(suite),
        out=arguments.optional_folder("out", out),
        resume=arguments.optional_folder("resume", resume),
        operators=arguments.names("operators", operators),
        impls=arguments.names("impls", impls),
        device=device,
        rounds=rounds,
        budget=budget,
        strict=strict,
        shard=shard,
    )
    session = request.open(lambda text: warnings.warn(text, stacklevel=5))
    shown = words.progress() if progress else contextlib.nullcontext(words.Words(_nothing, _nothing))
    with shown as reported:
        ended = measure(session, reported, begun)
    if ended is not None:
        warnings.warn(f"the run ended: {ended}", stacklevel=3)
    return load(session.journal.folder)


def _suite(suite: str | Path | Mapping[str, Any]) -> Suite:
    from attnbench.errors import BadInput, printable
    from attnbench.plan import suite as suites
    from attnbench.units import quoted
    from attnbench.yaml_file import written

    if isinstance(suite, (str, Path)):
        return suites.load(str(Path(suite).expanduser()) if isinstance(suite, Path) else suite)
    if not isinstance(suite, Mapping):
        raise BadInput(f"suite = {quoted(suite)}; allowed: the name of a suite, a YAML file, or the same as a mapping.")
    import yaml

    try:
        text = written(_plain(suite))
    except yaml.YAMLError as error:
        raise BadInput(
            f"suite: what it holds is no YAML: {printable(error)}. Give texts, numbers, true and false, and lists and "
            "mappings of them."
        ) from None
    return suites.from_text(text, "the suite", Path.cwd())


def _plain(value: Any) -> Any:
    """Mappings, sequences, ranges and numpy's numbers as YAML has them."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [_plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _nothing(line: str) -> None:
    return
