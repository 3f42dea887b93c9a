"""What machine code (SASS) tells of a kernel: which instructions multiply matrices, and how loops load their operands.

NVIDIA, CUDA Binary Utilities, "Instruction Set Reference", https://docs.nvidia.com/cuda/cuda-binary-utilities. HMMA:
mma of one warp; HGMMA: wgmma of four (sm_90); UTC…MMA: tcgen05, of a whole program (sm_100). LDGSTS (cp.async) and
UTMALDG (bulk tensor copies) write to shared memory while the program goes on; LDG is waited for where its registers are
used, which may be in the next step of a loop.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import triton

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)(.*)")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_TARGET = re.compile(r"\((\.L_x_\d+)\)")
_WGMMA_SIZE = re.compile(r"\.(\d+)x(\d+)x(\d+)")
_MMA_SIZE = re.compile(r"\.16(8)(\d+)")
_REGISTER = re.compile(r"\bR(\d+)\b")
_BITS = re.compile(r"\.(64|128)\b")


@dataclass(frozen=True)
class MachineCode:
    """Counts of instructions as they stand in the code, not as often as they are executed.

    Attributes:
        mma, wgmma: multiply-adds of one warp by mma, and its share of those by wgmma.
        tcgen05: products on sm_100, whose size the code does not show.
        copies: asynchronous copies to shared memory.
        waiting_loops: loops that multiply matrices and load from global memory, none of it asynchronously, and some of
            it without a product between the load and its first use.
        instructions: all, of which `looped` are in the innermost loops that multiply matrices.
    """

    mma: int
    wgmma: int
    tcgen05: int
    copies: int
    waiting_loops: int
    instructions: int
    looped: int

    @property
    def wgmma_share(self) -> float | None:
        """Of the multiply-adds of matrix products on sm_90; None: there are none."""
        return self.wgmma / (self.mma + self.wgmma) if self.mma + self.wgmma else None


@dataclass(frozen=True)
class _Instruction:
    name: str
    modifiers: str
    operands: str

    @property
    def multiply_adds(self) -> int:
        """Of one warp."""
        if self.name == "HGMMA" and (size := _WGMMA_SIZE.match(self.modifiers)):
            m, n, k = map(int, size.groups())
            return m * n * k // 4
        if self.name == "HMMA" and (size := _MMA_SIZE.match(self.modifiers)):
            n, k = map(int, size.groups())
            return 16 * n * k
        return 0

    @property
    def is_tcgen05(self) -> bool:
        return self.name.startswith("UTC") and self.name.endswith("MMA")

    @property
    def multiplies(self) -> bool:
        return self.multiply_adds > 0 or self.is_tcgen05

    @property
    def is_copy(self) -> bool:
        return self.name in ("LDGSTS", "UTMALDG", "UBLKCP")


def read(sass: str) -> MachineCode:
    """From the output of nvdisasm."""
    code, loops = _parsed(sass)
    multiplying = [body for body in _own_code(code, loops) if any(i.multiplies for i in body)]
    return MachineCode(
        mma=sum(i.multiply_adds for i in code if i.name == "HMMA"),
        wgmma=sum(i.multiply_adds for i in code if i.name == "HGMMA"),
        tcgen05=sum(i.is_tcgen05 for i in code),
        copies=sum(i.is_copy for i in code),
        waiting_loops=sum(_waits(body) for body in multiplying),
        instructions=len(code),
        looped=sum(map(len, multiplying)),
    )


def _parsed(sass: str) -> tuple[list[_Instruction], list[range]]:
    """The instructions, and the loops among them: from a label to the last branch back to it."""
    code: list[_Instruction] = []
    labels: dict[str, int] = {}
    ends: dict[int, int] = {}
    for line in sass.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(code)
        elif match := _INSTRUCTION.search(line):
            code.append(_Instruction(*match.groups()))
            target = _TARGET.search(match[3]) if match[1] == "BRA" else None
            if target and target[1] in labels:
                ends[labels[target[1]]] = len(code)
    return code, [range(start, end) for start, end in ends.items()]


def _own_code(code: Sequence[_Instruction], loops: Sequence[range]) -> Iterator[list[_Instruction]]:
    """Of each loop the instructions that are in no loop within it."""
    for loop in loops:
        within = [inner for inner in loops if inner != loop and inner.start >= loop.start and inner.stop <= loop.stop]
        yield [code[i] for i in loop if not any(i in inner for inner in within)]


def _waits(body: Sequence[_Instruction]) -> bool:
    """Whether a loop of these instructions multiplies only when something has come that it has loaded since a product.

    Loads that are used behind a later product, in the same step or in the next, are on their way meanwhile.
    """
    if any(instruction.is_copy for instruction in body):
        return False
    loads = [place for place, instruction in enumerate(body) if instruction.name == "LDG"]
    return any(_used_at_once(body[place], [*body[place + 1 :], *body[:place]]) for place in loads)


def _used_at_once(load: _Instruction, later: Iterable[_Instruction]) -> bool:
    """Whether one of these instructions names a register of a load, and none before it multiplies."""
    first = _REGISTER.search(load.operands)
    if first is None:  # what it loads is not kept
        return False
    bits = _BITS.search(load.modifiers)
    held = range(int(first[1]), int(first[1]) + (int(bits[1]) // 32 if bits else 1))
    for instruction in later:
        if any(int(number) in held for number in _REGISTER.findall(instruction.operands)):
            return True
        if instruction.multiplies:
            return False
    return False


def disassembled(cubin: bytes) -> str:
    """SASS of a cubin, by the nvdisasm that Triton has."""
    return run_tool("nvdisasm", cubin, "--print-code")


def run_tool(name: str, cubin: bytes, *options: str) -> str:
    """What a tool of Triton's prints about a cubin."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(tool), *options, file.name], capture_output=True, text=True, check=True).stdout
