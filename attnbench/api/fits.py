"""The longest sequence, or the largest batch, that fits a memory, as a pandas frame; nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attnbench.api import arguments, frames
from attnbench.api.problems import Sizes, problem_request

if TYPE_CHECKING:
    import pandas as pd


@arguments.named
def fit(
    operators: str | Sequence[str] = (),
    *,
    memory: str | None = None,
    device: str | None = None,
    layers: int = 1,
    image: bool = False,
    dtype: str = "float32",
    causal: bool = False,
    mode: str = "infer",
    scope: str = "core",
    params: Mapping[str, Any] | None = None,
    operators_from: str | Sequence[str] = (),
    **sizes: Sizes,
) -> pd.DataFrame:
    """The longest sequence that fits a memory, per operator, predicted from shapes: `attnbench fit`.

    Args:
        operators: their names; none: all.
        memory: such as "24GiB", or a share of the device's, "80%".
        device: a card such as "H100"; "cpu" or "cuda": of this machine; None: a GPU of that memory.
        layers: of the operator.
        image: search the side of a square image.
        dtype, causal, scope, params, operators_from: as of `estimate`.
        mode: "train", "infer", or "decode" (one token after N).
        sizes: those that are given, as of `estimate`; with seq_len or image_size the largest batch is searched.

    Returns: a row for each operator and impl, with the columns of `attnbench fit --format csv`, in base units.
    Raises: BadInput with what is wrong.
    """
    from attnbench.measure.fit import budget, fits
    from attnbench.plan.fit_request import fit_request

    held = budget(memory, device)
    problem = problem_request(
        operators, sizes, dtype, causal=causal, mode=mode, scope=scope, params=params, operators_from=operators_from
    )
    return frames.of_cells(fits(fit_request(problem, str(layers), image), held.left_bytes))
