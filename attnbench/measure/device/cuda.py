"""A GPU that torch reaches through CUDA: its events, allocator, profiler and NVML's view of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from time import perf_counter
from typing import Any

import torch

from attnbench.kernels.library import graphs
from attnbench.kernels.library.fast_exact import fast_exact
from attnbench.kernels.support import tf32_allowed
from attnbench.measure.device import Call, Device, Sampler
from attnbench.measure.machine import identity, nvml
from attnbench.measure.machine.condition import Condition, gib
from attnbench.measure.machine.nvml import Gpu
from attnbench.registry import metrics

QUEUE_S = 0.02
"""The longest a launch is held back behind the sleep kernel."""

OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation, the `error_code` of a torch.AcceleratorError."""

MATMUL_SIDE = 8192
COPIED_BYTES = 1 << 32
AFFORDABLE_FLOPS = 2e13

ENERGY_STEP_J = 1e-3
"""NVML's counter is in whole millijoules."""


@cache
def gpu() -> Gpu:
    """The GPU that torch uses by default in this process. Starts CUDA."""
    p = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Gpu(str(p.uuid), p.L2_cache_size, p.total_memory, p.name, f"{p.major}.{p.minor}")


def why_not() -> str | None:
    """Why nothing can be measured on it here, or None."""
    return None if torch.cuda.is_available() else f"torch {torch.__version__} finds no usable GPU"


def facts() -> dict[str, Any]:
    """What environment.json says of the GPU and of torch's CUDA."""
    return {
        "gpu": gpu().facts(),
        "gpu_name": gpu().name,
        "device_id": identity.anonymous(f"GPU {gpu().uuid}"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": tf32_allowed(),
        "fast_exact": fast_exact(torch.cuda.get_device_capability()[0]),
        "nvml_missing": nvml.nvml_missing(),
    }


def memory_limit(fraction: float, environment: Mapping[str, Any]) -> int:
    """Bytes that a cell may need: a fraction of the GPU's memory."""
    return int(fraction * environment["gpu"]["memory_bytes"])


def memory() -> tuple[str, int | None]:
    """All that the GPU has."""
    return torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory


def copied_bytes() -> int:
    """What one copy reads: beyond every cache, and at most a quarter of what is free."""
    return int(min(COPIED_BYTES, torch.cuda.mem_get_info()[0] // 4))


def synchronise() -> None:
    """Waits for all streams."""
    torch.cuda.synchronize()


def synchronise_stream() -> None:
    """Waits for the current stream; other streams may be at work."""
    torch.cuda.current_stream().synchronize()


def empty_cache() -> None:
    """Returns what the allocator holds and nobody uses."""
    torch.cuda.empty_cache()


def seed(number: int) -> None:
    """Seeds the generators of all GPUs, where CUDA has been started."""
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


def current() -> tuple[int, bool]:
    """The number of the current GPU, and whether its current stream is the default one."""
    if not torch.cuda.is_initialized():
        return 0, True
    stream = torch.cuda.current_stream()
    return torch.cuda.current_device(), stream == torch.cuda.default_stream()


@cache
def _beyond_cache(board: Gpu) -> Any:
    """A tensor that fills the last cache twice: one for all cells that are alive together."""
    return torch.empty(2 * board.l2_bytes // 4, dtype=torch.int32, device="cuda")


def clock(estimate: float, synchronises: bool) -> Sampler:
    """Times calls between CUDA events: L2 flushed before, launches queued behind a bounded sleep kernel.

    A sample whose launches took longer than the sleep is flagged "gaps": launch gaps may be in it.

    Args:
        estimate: seconds of one call, synchronised: the sleep is a little longer, so that the device starts only when
            all launches are queued.
        synchronises: whether the impl synchronises inside a call; it is then not held back.
    """
    board = gpu()
    flush = _beyond_cache(board)
    hold = 0.0 if synchronises else min(QUEUE_S, 1.5 * estimate + 2e-5)
    cycles = int(hold * board.max_sm_clock_hz)

    def sample(call: Call) -> tuple[float, list[str]]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        flush.zero_()
        begun = perf_counter()
        if cycles:
            torch.cuda._sleep(cycles)
        start.record()
        outputs = call()
        end.record()
        queued = perf_counter() - begun
        torch.cuda.synchronize()
        del outputs
        gaps = ["gaps"] if queued > hold and not synchronises else []
        return start.elapsed_time(end) / 1e3, gaps + board.flags()

    return sample


def peak_memory(call: Call) -> dict[str, int]:
    """From the caching allocator, emptied before; what NVML says of the process beside it. A graph is captured anew."""
    torch.cuda.synchronize()
    graphs.forget()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs = call()
    columns = {
        "peak_memory_bytes": torch.cuda.max_memory_allocated() - before,
        "reserved_memory_bytes": torch.cuda.max_memory_reserved(),
    }
    process = gpu().process_memory_bytes()
    del outputs
    return columns if process is None else {**columns, "process_memory_bytes": process}


def launched_kernels(call: Call) -> dict[str, int]:
    """How often each kernel is launched, by torch's profiler; copies and fills are none. The longest comes first."""
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
    time: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset")):
            time[event.name] += event.device_time_total
            count[event.name] += 1
    return {name: count[name] for name, _ in time.most_common()}


def out_of_memory(error: BaseException) -> bool:
    """Whether CUDA itself could not allocate."""
    return isinstance(error, torch.AcceleratorError) and getattr(error, "error_code", None) == OUT_OF_MEMORY


def is_lost() -> bool:
    """Whether an error stays in the CUDA context: every later call in this process would give it."""
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def other_users() -> tuple[list[str], str | None]:
    """Who else computes on the GPU in use; and why that is unknown, or None."""
    try:
        return nvml.others_in_use(os.environ), None
    except nvml.Unknown as unknown:
        return [], str(unknown)


def conditions(environment: Mapping[str, Any], users: Sequence[str], unknown: str | None = None) -> list[Condition]:
    """The GPU in use.

    Args:
        environment: environment.json of a run on it.
        users: who else computes on it.
        unknown: why that is unknown, or None.
    """
    board: Mapping[str, Any] = environment.get("gpu") or {}
    name = f"{board.get('name')}, {gib(board.get('memory_bytes'))}, capability {board.get('capability')}"
    versions = f"torch's CUDA {environment.get('cuda')}, cuDNN {environment.get('cudnn')}"
    lines = [
        Condition("GPU", "good", name),
        Condition("driver", "good", f"{board.get('driver') or 'unknown'}, {versions}"),
        *_exact_kernels(environment.get("fast_exact") or {}),
    ]
    missing_nvml = environment.get("nvml_missing")
    if missing_nvml:
        todo = (
            "Install nvidia-ml-py and the driver's NVML; without it there is no energy, and throttling and other "
            "processes go unseen."
        )
        return [*lines, Condition("NVML", "warning", missing_nvml, todo)]
    lines += [Condition("NVML", "good", "answers"), _persistence(board.get("persistence")), _clock_rates(board)]
    if users:
        todo = "Stop them; `attnbench run --strict` refuses to measure beside them."
        return [*lines, Condition("other processes", "warning", "; ".join(users), todo)]
    if unknown is not None:
        todo = "nvidia-smi may list them; `attnbench run --strict` refuses to measure unless there are none."
        return [*lines, Condition("other processes", "note", f"unknown: {unknown}", todo)]
    return [*lines, Condition("other processes", "good", "none on the GPU in use")]


def _exact_kernels(fast_exact: Mapping[str, str]) -> list[Condition]:
    """Those that a comparison with exact softmax should not go without; fast_exact: as environment.json has it."""
    absent = [f"{impl}: {reason}" for impl, reason in fast_exact.items() if reason]
    there = [impl for impl, reason in fast_exact.items() if not reason]
    lines = [Condition("exact softmax", "good", f"{', '.join(there)} can be measured")] if there else []
    return lines + [Condition("exact softmax", "note", f"a faster one is missing: {each}") for each in absent]


def _persistence(mode: int | None) -> Condition:
    todo = "As root: nvidia-smi --persistence-mode 1."
    if mode is None:
        return Condition("persistence", "note", "not stated", todo)
    if not mode:
        return Condition("persistence", "note", "off: the first use after a pause is slow", todo)
    return Condition("persistence", "good", "on")


def _clock_rates(board: Mapping[str, Any]) -> Condition:
    now, most, power = (board.get(name) for name in ("sm_clock_mhz", "max_sm_clock_mhz", "power_limit_w"))
    if now is None and most is None:
        return Condition("clocks", "warning", "not stated", "Throttling goes unseen: compare within one run only.")
    rates = f"SM {now or 'unknown'} of {most or 'unknown'} MHz" + (f", power limit {power:g} W" if power else "")
    todo = "For the smallest noise, as root: nvidia-smi --lock-gpu-clocks to a clock it can hold."
    return Condition("clocks", "good", rates, todo)


def missing() -> list[Condition]:
    """Why torch finds no GPU, by what NVML lists."""
    built_for = torch.version.cuda
    try:
        count, used = len(nvml.listed()), nvml.in_use(os.environ)
    except nvml.Unknown as unknown:
        return [no_gpu(built_for, None, str(unknown), None)]
    return [no_gpu(built_for, count, None, None if used else os.environ.get("CUDA_VISIBLE_DEVICES"))]


def no_gpu(built_for: str | None, listed: int | None, why: str | None, visible: str | None) -> Condition:
    """Why torch finds no GPU.

    Args:
        built_for: torch's CUDA version; None: built without CUDA.
        listed: how many NVML lists; None: unknown.
        why: why that is unknown, or None.
        visible: CUDA_VISIBLE_DEVICES where that names none of them.
    """
    if listed and built_for is None:
        todo = "Install a build of torch for CUDA (https://pytorch.org/get-started/locally)."
        return Condition("GPU", "missing", f"NVML lists {listed}, but this torch is built without CUDA", todo)
    if listed and visible is not None:
        hidden = f"hidden by CUDA_VISIBLE_DEVICES='{visible}', which names none of the {listed} that NVML lists"
        return Condition("GPU", "missing", hidden, "Unset CUDA_VISIBLE_DEVICES, or name one that is there.")
    if listed:
        todo = f"A driver older than torch's CUDA {built_for} is the usual reason: see nvidia-smi, update the driver."
        return Condition("GPU", "missing", f"NVML lists {listed}, but torch finds no usable one", todo)
    absent = f"none that torch's CUDA {built_for} can use"
    if built_for is None:
        absent = "none" if listed == 0 else "this torch is built without CUDA; whether there is one is unknown"
    names = ", ".join(name for name, metric in metrics().items() if metric.needs_gpu)
    todo = f"{names} and impl cuda need one; everything else is measured on the CPU."
    return Condition("GPU", "missing", absent + (f" ({why})" if why else ""), todo)


DEVICE = Device(
    type="cuda",
    preference=1,
    is_host=False,
    memory_limit=memory_limit,
    memory=memory,
    is_started=torch.cuda.is_initialized,
    peak_memory=peak_memory,
    unmeasured="this GPU or NVML has no counter for it",
    matmul_side=MATMUL_SIDE,
    copied_bytes=copied_bytes,
    affordable_flops=AFFORDABLE_FLOPS,
    why_not=why_not,
    facts=facts,
    synchronise=synchronise,
    synchronise_stream=synchronise_stream,
    empty_cache=empty_cache,
    seed=seed,
    settings={"the current CUDA device or stream": current},
    clock=clock,
    clock_mhz=lambda: gpu().sm_clock_mhz(),
    flags=lambda: gpu().flags(),
    energy_j=lambda: gpu().energy_j(),
    energy_step_j=ENERGY_STEP_J,
    launched_kernels=launched_kernels,
    out_of_memory=out_of_memory,
    is_lost=is_lost,
    tf32=tf32_allowed,
    other_users=other_users,
    conditions=conditions,
    missing=missing,
)
