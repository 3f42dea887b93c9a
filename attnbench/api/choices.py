"""Operators ranked for one problem, as a pandas frame."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attnbench.api import arguments
from attnbench.api.problems import Sizes, problem_request

if TYPE_CHECKING:
    import pandas as pd


@arguments.named
def choose(
    operators: str | Sequence[str] = (),
    *,
    need: str | Sequence[str] = (),
    memory: str | None = None,
    run: str | os.PathLike[str] | None = None,
    device: str | None = None,
    dtype: str = "float32",
    causal: bool = False,
    mode: str = "infer",
    scope: str = "core",
    params: Mapping[str, Any] | None = None,
    operators_from: str | Sequence[str] = (),
    **sizes: Sizes,
) -> pd.DataFrame:
    """What to use for one problem, under constraints: `attnbench choose`.

    Args:
        operators: to choose from; none: all.
        need: properties that a choice must have, such as "all_pairs, decode": `attnbench list properties`.
        memory: the most that a call may need, such as "24GiB", or "80%" of the device's; None: all of it.
        run: a run, or its folder, whose times are taken where it has any; None: rooflines alone.
        device: without a run, a card such as "H100" by its data sheet, or "cpu", "cuda": this machine's, measured.
        dtype, causal, mode, scope, params, operators_from, sizes: of one problem, as of `estimate`.

    Returns: a row for each operator and impl, best first. `status`: "ranked", or "out", with why, unmet and reason.
        `rank`: those that cannot be told apart have the same; `level`: those that cannot be told from the first of
            their group.
        `time_s` with its `time_source`: "measured"; "interpolated" between the run's sizes; "analytic": the roofline,
            the least that any implementation takes, ranked as a group of their own.
        `properties`: those that it has. The other columns are those of `attnbench choose --format csv`.
    Raises: BadInput with what is wrong.
    """
    import pandas as pd

    from attnbench.measure.candidates import choose as chosen
    from attnbench.outputs import _choice as view
    from attnbench.plan.choice_request import ChoiceRequest

    problem = problem_request(
        operators, sizes, dtype, causal=causal, mode=mode, scope=scope, params=params, operators_from=operators_from
    )
    place, device = arguments.optional_folder("run", run), arguments.text("device", device)
    choice = chosen(ChoiceRequest(problem, arguments.names("need", need), memory, place, device))
    rows = [{**row, "properties": _those(row["properties"])} for row in view.listing(choice).rows]
    return pd.DataFrame(rows).convert_dtypes()


def _those(properties: Mapping[str, bool] | None) -> str | None:
    """The names of those that it has."""
    return None if properties is None else ", ".join(name for name, has in properties.items() if has)
