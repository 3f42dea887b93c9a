"""The analytic cost of operators as a pandas frame; nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attnbench.api import arguments, frames
from attnbench.api.problems import Sizes, problem_request

if TYPE_CHECKING:
    import pandas as pd


@arguments.named
def estimate(
    operators: str | Sequence[str] = (),
    *,
    dtype: str | Sequence[str] = "float32",
    causal: bool = False,
    mode: str = "infer",
    scope: str = "core",
    params: Mapping[str, Any] | None = None,
    operators_from: str | Sequence[str] = (),
    **sizes: Sizes,
) -> pd.DataFrame:
    """What operators cost at any size: FLOPs, traffic, state and peak memory from shapes; nothing is computed.

    Args:
        operators: their names; none: all.
        dtype: one or several, such as "bf16".
        causal: token i sees only tokens up to i.
        mode: "infer" (forward), or "train" (with gradients).
        scope: "core", "layer" (with the projections), or "block" (with norms, residuals and an MLP of width 4C too).
        params: by key, one or several values; for the operators that have the key.
        operators_from: .py files and packages of your own.
        sizes: by axis, one or several: `seq_len="32K"`, `head_dim=64`, `image_size="32x32"`.

    Returns: a row for each operator and size, with the columns of `attnbench estimate --format csv`, in base units;
        figures are missing, with the `reason`, outside an operator's definition.
    Raises: BadInput with all mistakes.
    """
    from attnbench.measure.estimates import estimate as estimated
    from attnbench.plan.problem_request import cells

    request = problem_request(
        operators, sizes, dtype, causal=causal, mode=mode, scope=scope, params=params, operators_from=operators_from
    )
    return frames.of_cells(estimated(*each) for each in cells(request))
