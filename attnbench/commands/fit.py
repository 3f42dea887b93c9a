"""attnbench fit: the longest sequence, or the largest batch, that fits a memory; from shapes, nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from attnbench.commands._options import (
    CHOOSE_ONLY,
    DECIDE,
    PROBLEM,
    ProblemOptions,
    format_option,
    grouped,
    operators_option,
    size_options,
)
from attnbench.outputs import _formats as formats


@dataclass(frozen=True)
class FitOptions(ProblemOptions):
    """The problem beside its sizes; it may be a step of decoding."""

    mode: Annotated[
        str | None,
        typer.Option(
            help="infer, the default; train: with gradients; decode: one token after N.", rich_help_panel=PROBLEM
        ),
    ] = None


PANEL = DECIDE


@grouped
def command(
    *,
    memory: Annotated[
        str | None, typer.Option(help="24GiB, or a share of the device's, such as 80%.", show_default=False)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="A card such as H100; cpu or cuda: of this machine. Default: a GPU of that memory."),
    ] = None,
    operators: Annotated[list[str] | None, operators_option(CHOOSE_ONLY)] = None,
    layers: Annotated[str, typer.Option(help="Layers of the operator.")] = "1",
    problem: FitOptions,
    sizes: Annotated[dict[str, list[str] | None], size_options(list[str] | None)],
    image: Annotated[bool, typer.Option("--image", help="Search the side of a square image.")] = False,
    form: Annotated[str, format_option("rows", "json: one object per operator and impl.")] = "table",
) -> None:
    """Find the longest sequence, or largest batch, that fits a memory.

    Per operator: the longest N; with --seq-len or --image-size the largest batch.

    Predicted from shapes alone; nothing is computed. Counted for L layers of the operator: in train, parameters and
    their gradients, what each layer keeps for its backward, and the most that one layer holds at once; in infer,
    parameters, and the most that one layer holds at once; in decode, parameters and what is kept of N tokens (a cache,
    or a state), and the most that one step of a layer holds at once. Not counted: optimizer states and the rest of a
    model. Of a GPU the context of CUDA and 5% for fragmentation are reserved, of a CPU 32 MiB for its libraries.

    Example: attnbench fit --memory 24GiB --mode train --head-dim 64 --dtype bf16 --causal

    Example: attnbench fit --device H100 --mode decode --layers 32 --seq-len 32K --operators softmax,mla,mamba2
    """
    from attnbench.measure.fit import budget, fits
    from attnbench.outputs._fit_listing import listing
    from attnbench.plan.fit_request import fit_request

    held = budget(memory, device)
    request = fit_request(problem.request(operators or (), sizes), layers, image)
    formats.show("rows", listing(fits(request, held.left_bytes), held), form)
