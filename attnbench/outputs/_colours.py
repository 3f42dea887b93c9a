"""The colour of each operator: the same in every picture and report, and safe for colour-blind readers."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

INK = "#1A1A1A"
"""Of softmax. On a dark ground it is drawn in the colour of the text."""

GREY = "#B4B4B4"
"""Of what has no colour of its own in a picture."""

MOST_COLOURED = 8
"""Series in one panel that have a colour; the rest are grey."""

HUES: dict[str, tuple[str, ...]] = {
    "#54B4E4": ("linear_transformer", "compressed"),
    "#FC9000": ("performer", "strided", "pool"),
    "#248460": ("linformer", "sparse_transformer", "kda", "dsa"),
    "#FC246C": ("sinkhorn", "retention", "moba", "swin_window"),
    "#6054E4": ("local", "fnet", "gated_delta_net", "nsa"),
    "#C0A854": ("efficient", "big_bird", "mamba2", "external_attention"),
    "#9C3C24": ("hamburger", "gmlp", "mla", "axial"),
    "#F03CB4": ("kao_kv", "reformer", "gla", "criss_cross"),
    "#A86C00": ("kao_qkv", "longformer", "based", "lambda_layer"),
    "#9090FC": ("sliding_window", "mlp_mixer", "synthesizer", "softmax_pool"),
    "#844878": ("global_tokens", "non_local", "rwkv7"),
    "#A80CA8": ("rfa", "hyena", "nystromformer", "neighborhood"),
}
"""By colour, operators that have it; those that are often among the fastest of one panel have different ones. An
operator that is named nowhere has one by its name. Any two of the colours, INK and GREY are farther apart than those of
Okabe and Ito 2008 ("Color Universal Design", https://jfly.uni-koeln.de/color/) are, also for readers without one kind
of cone, and each stands out from white and from a dark ground."""

_COLOURS = {"softmax": INK, "identity": GREY} | {operator: hue for hue, named in HUES.items() for operator in named}


def colour(operator: str) -> str:
    """The colour of an operator, as `#rrggbb`: of one of a user's own as well, and the same in every run."""
    return _COLOURS.get(operator) or tuple(HUES)[zlib.crc32(operator.encode()) % len(HUES)]


def distinct(operators: Iterable[str]) -> list[str]:
    """Of some operators those whose colours differ: of two with the same one the first."""
    first: dict[str, str] = {}
    for operator in operators:
        first.setdefault(colour(operator), operator)
    return list(first.values())
