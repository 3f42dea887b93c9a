"""What graphics cards can do at best, by their makers' data sheets: dense products by dtype, memory rate, memory size.

FLOP/s are those of products without sparsity: half precision on tensor cores with sums in float32; float32 as torch
multiplies it unless it is told otherwise, without TF32; float64 on tensor cores where there are any for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attnbench.errors import BadInput
from attnbench.naming import option
from attnbench.problem import Dtype
from attnbench.units import quoted, shown, suggestion

GIB = 2**30


@dataclass(frozen=True)
class Rates:
    """What some hardware does at best.

    Args:
        of: the hardware.
        origin: where the rates are from, as a sentence names it.
        matmul_flops_per_s: of dense products, by dtype; a dtype without a rate is absent.
        copy_bytes_per_s: read and written together.
        memory_bytes: of the device; None: not known.
    """

    of: str
    origin: str
    matmul_flops_per_s: Mapping[str, float]
    copy_bytes_per_s: float
    memory_bytes: int | None = None


def _card(
    name: str, sheet: str, memory_gib: int, copy_gb: float, half: float, single: float, double: float | None = None,
    bfloat16: bool = True,
) -> tuple[str, Rates]:  # fmt: skip
    """A row of CARDS, in TFLOP/s and GB/s as data sheets have them. half: of bfloat16 too, unless it has none."""
    tera: dict[Dtype, float | None] = {"float64": double, "float32": single, "float16": half}
    tera |= {"bfloat16": half if bfloat16 else None}
    matmul = {str(dtype): rate * 1e12 for dtype, rate in tera.items() if rate is not None}
    return name, Rates(name, f"the data sheet ({sheet})", matmul, copy_gb * 1e9, memory_gib * GIB)


CARDS: Mapping[str, Rates] = dict(
    (
        _card("H100", "NVIDIA H100 Tensor Core GPU, SXM", 80, 3350, 989.4, 67, 67),
        _card("H100 PCIe", "NVIDIA H100 Tensor Core GPU, PCIe", 80, 2000, 756, 51, 51),
        _card("H100 NVL", "NVIDIA H100 Tensor Core GPU, NVL", 94, 3900, 835.5, 60, 60),
        _card("H200", "NVIDIA H200 Tensor Core GPU, SXM", 141, 4800, 989.4, 67, 67),
        _card("B200", "NVIDIA Blackwell architecture technical brief, HGX B200", 180, 8000, 2250, 80, 40),
        _card("A100", "NVIDIA A100 Tensor Core GPU, SXM 80 GB", 80, 2039, 312, 19.5, 19.5),
        _card("A100 40GB", "NVIDIA A100 Tensor Core GPU, SXM 40 GB", 40, 1555, 312, 19.5, 19.5),
        _card("A10", "NVIDIA A10 Tensor Core GPU", 24, 600, 125, 31.2),
        _card("A6000", "NVIDIA RTX A6000; Ampere GA102 white paper", 48, 768, 154.8, 38.7),
        _card("L40S", "NVIDIA L40S GPU", 48, 864, 362.05, 91.6),
        _card("L4", "NVIDIA L4 Tensor Core GPU", 24, 300, 121, 30.3),
        _card("V100", "NVIDIA V100 Tensor Core GPU, SXM2 32 GB", 32, 900, 125, 15.7, 7.8, bfloat16=False),
        _card("T4", "NVIDIA T4 Tensor Core GPU", 16, 320, 65, 8.1, bfloat16=False),
        _card("RTX 3090", "NVIDIA Ampere GA102 white paper", 24, 936, 71, 35.6),
        _card("RTX 4090", "NVIDIA Ada GPU architecture white paper", 24, 1008, 165.2, 82.6),
        _card("RTX 5090", "NVIDIA RTX Blackwell GPU architecture white paper", 32, 1792, 209.5, 104.8),
    )
)
"""By the name that `--device` takes."""

MEASURED: Mapping[str, Rates] = {
    "H100": Rates(
        "NVIDIA H100 80GB HBM3",
        "measured in results/reference/h100-first and h100-prefill",
        {"bfloat16": 792.1e12},
        3.012e12,
        85017493504,
    ),
}
"""What some of these cards reached in runs of ours: of two runs the better rate."""


def find_card(name: str) -> Rates | None:
    """A card by its name, however it is written: `rtx4090`, `RTX-4090`; None where there is none."""
    return {_plain(each): card for each, card in CARDS.items()}.get(_plain(name))


def card(name: str, others: tuple[str, ...] = ()) -> Rates:
    """A card by its name. Raises BadInput where there is none; others: what an option takes beside cards."""
    named = find_card(name)
    if named is not None:
        return named
    allowed = [*CARDS, *others]
    near = suggestion(name, allowed) or suggestion(name.upper(), allowed)
    raise BadInput(
        f"{option('device')} {quoted(name)}: no such card{near}. Allowed: {', '.join(CARDS)}"
        f"{'; ' if others else ''}{', '.join(others)}. Give one of them, or {option('run')} with a run of that machine."
    )


def check_holds(size: str | None, limit: int | None, of: str, present: int | None) -> None:
    """Nothing where a device has as much memory as is given, or its own is not known.

    Args:
        size: as it was given; limit: its bytes, None of a share.
        of: what the device is called; present: its memory in bytes.

    Raises: BadInput.
    """
    if limit is not None and present is not None and limit > present:
        raise BadInput(
            f"{option('memory')} {size}: {of} has {shown(present, 'bytes')}. Give no more, or leave {option('device')} "
            "out."
        )


def _plain(name: str) -> str:
    letters = "".join(each for each in name.lower() if each.isalnum())
    for word in ("nvidia", "geforce"):
        letters = letters.replace(word, "")
    return letters.removesuffix("sxm")


def hardware(environment: Mapping[str, Any]) -> str:
    """What a run was measured on: the GPU's name or the processor's; empty: it says neither."""
    return str(environment.get("gpu_name") or environment.get("cpu") or environment.get("device") or "")


def memory_bytes(environment: Mapping[str, Any]) -> int | None:
    """Of the GPU that a run was measured on, or of the machine; None: not known."""
    gpu = environment.get("gpu")
    memory = gpu.get("memory_bytes") if isinstance(gpu, dict) else environment.get("memory_bytes")
    return memory if isinstance(memory, int) and memory > 0 else None


def rates_of(environment: Mapping[str, Any]) -> Rates | None:
    """What a run measured of its hardware; None where it measured none."""
    stored = environment.get("rates")
    if not isinstance(stored, dict) or not stored.get("copy_bytes_per_s"):
        return None
    return Rates(
        hardware(environment),
        "measured in the run",
        {name: rate for name, rate in stored.get("matmul_flops_per_s", {}).items() if rate},
        float(stored["copy_bytes_per_s"]),
        memory_bytes(environment),
    )
