"""Machine code is read for what it says: on excerpts of listings, each with one thing changed as its control."""

from __future__ import annotations

import pytest

triton = pytest.importorskip("triton")

from attnbench.kernels.building import Build, Configuration  # noqa: E402
from attnbench.kernels.machine_code import MachineCode, read  # noqa: E402

LOOP = """
        /*0cf0*/                   LDG.E.128 R20, desc[UR24][R32.64] ;
.L_x_1:
        /*0d30*/                   LDGSTS.E.BYPASS.128 [R33+0x4000], desc[UR24][R20.64], P5 ;
        /*0d80*/                   LDGDEPBAR ;
        /*1290*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT ;
        /*12e0*/              @!P0 HMMA.16816.F32.BF16 R24, R4, R8, R24 ;
        /*2980*/              @!P5 BRA `(.L_x_1) ;
.L_x_2:
        /*3ca0*/                   BRA `(.L_x_2);
"""


def changed(*pairs: tuple[str, str]) -> MachineCode:
    text = LOOP
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return read(text)


def test_multiply_adds_are_those_of_a_warp() -> None:
    code = read(LOOP)
    assert (code.wgmma, code.mma) == (64 * 64 * 16 // 4, 16 * 8 * 16)
    assert code.wgmma_share == pytest.approx(16384 / 18432)
    assert changed(("HMMA.16816.F32.BF16", "HMMA.1688.F32.TF32")).mma == 16 * 8 * 8
    assert changed(("HMMA.16816.F32.BF16", "FFMA")).wgmma_share == 1
    assert changed(("HGMMA.64x64x16.F32.BF16", "FFMA")).wgmma_share == 0
    assert changed(("HGMMA.64x64x16.F32.BF16", "FFMA"), ("HMMA.16816.F32.BF16", "FFMA")).wgmma_share is None
    assert changed(("HGMMA.64x64x16.F32.BF16", "UTCHMMA gdesc")).tcgen05 == 1


def test_a_loop_waits_for_operands_that_are_loaded_without_a_copy() -> None:
    copied = read(LOOP)
    assert (copied.copies, copied.waiting_loops) == (1, 0)
    waiting = changed(("LDGSTS.E.BYPASS.128 [R33+0x4000],", "LDG.E.128 R24,"))
    assert (waiting.copies, waiting.waiting_loops) == (0, 1)
    assert changed(("LDGSTS.E.BYPASS.128 [R33+0x4000],", "LDG.E.128 R22,")).waiting_loops == 1, "its third register"
    assert changed(("LDGSTS.E.BYPASS.128 [R33+0x4000],", "LDG.E.64 R22,")).waiting_loops == 0, "it has two"
    assert changed(("LDGSTS.E.BYPASS.128 [R33+0x4000],", "UTMALDG.2D [UR8],")).copies == 1


def test_a_loop_waits_for_no_load_that_is_used_behind_a_product() -> None:
    copy, last = "LDGSTS.E.BYPASS.128 [R33+0x4000],", "        /*2980*/              @!P5 BRA"
    assert changed((copy, "LDG.E.128 R4,")).waiting_loops == 0, "HGMMA, then HMMA with it"
    ahead = (last, f"/*2970*/ LDG.E.128 R40, desc[UR24][R2.64] ;\n{last}")
    assert changed((copy, "MOV R2,"), ahead, ("R24, gdesc[UR8]", "R24, R40, gdesc[UR8]")).waiting_loops == 1
    stored = ("@!P0 HMMA.16816.F32.BF16 R24, R4,", "STS [R1], R40 ;\n/*12e0*/ HMMA.16816.F32.BF16 R24, R4,")
    assert changed((copy, "MOV R2,"), ahead, stored).waiting_loops == 0, "in the next step, behind HGMMA"


def test_instructions_of_a_loop_that_multiplies_are_counted_apart() -> None:
    assert (read(LOOP).instructions, read(LOOP).looped) == (7, 5)
    other = changed(("HGMMA.64x64x16.F32.BF16", "FFMA"), ("HMMA.16816.F32.BF16", "FFMA"))
    assert (other.instructions, other.looped) == (7, 0)


def test_a_loop_that_loads_or_multiplies_nothing_waits_for_nothing() -> None:
    load = ("LDGSTS.E.BYPASS.128 [R33+0x4000],", "LDG.E.128 R24,")
    assert changed(("LDGSTS.E.BYPASS.128", "LDS.128")).waiting_loops == 0, "the load before the loop is none of its own"
    assert changed(load, ("HGMMA.64x64x16.F32.BF16", "FFMA"), ("HMMA.16816.F32.BF16", "FFMA")).waiting_loops == 0
    assert changed(load, ("@!P5 BRA `(.L_x_1)", "@!P5 BRA `(.L_x_2)")).waiting_loops == 0, "no branch goes back"


def test_a_loop_within_is_not_the_loop_around_it() -> None:
    load = ("LDGSTS.E.BYPASS.128 [R33+0x4000],", "LDG.E.128 R24,")
    inner = changed(
        load, ("        /*0d80*/", ".L_x_7:\n        /*0d80*/"), ("/*2980*/", "/*2970*/ BRA `(.L_x_7) ;\n/*2980*/")
    )
    assert inner.waiting_loops == 0


def built(share: float | None, rows: tuple[int, ...], dtype: str = "*bf16", capability: int = 90) -> Build:
    configuration = Configuration(None, {"x": dtype}, {}, 4, 2, "")
    build = Build(configuration, capability, b"", 128, 0, 0, rows)
    mma, wgmma = (0, 0) if share is None else (100 - round(100 * share), round(100 * share))
    build.__dict__["code"] = MachineCode(mma, wgmma, 0, 0, 0, 0, 0)
    return build


def test_tiles_of_64_rows_are_multiplied_by_wgmma() -> None:
    assert built(0.5, (64, 128)).misses_wgmma
    assert built(0, (32, 64)).misses_wgmma
    assert not built(1, (64,)).misses_wgmma
    assert not built(0.5, (32, 64)).misses_wgmma, "the product of 32 rows cannot be"
    assert not built(0, (32,)).misses_wgmma
    assert not built(None, ()).misses_wgmma
    assert not built(0, (64,), "*fp32").misses_wgmma
    assert not built(0, (64,), capability=80).misses_wgmma


def test_how_many_programs_a_multiprocessor_holds() -> None:
    def held(registers: int, shared_bytes: int, warps: int, capability: int = 90) -> int:
        configuration = Configuration(None, {}, {}, warps, 2, "")
        return Build(configuration, capability, b"", registers, shared_bytes, 0).programs

    assert held(128, 0, 4) == 4  # 65536 / (128 · 128)
    assert held(129, 0, 4) == 3  # allocated as 136
    assert held(32, 227 * 1024, 4) == 1
    assert held(32, 75 * 1024, 4) == 3
    assert held(32, 80 * 1024, 4, 80) == 2
    assert held(16, 0, 8) == 8  # of 64 warps
    assert held(16, 0, 1) == 32


def test_machine_code_of_a_build_is_read() -> None:
    """A forward of few_keys: every product by wgmma, its keys and values by asynchronous copies."""
    from attnbench.kernels.building import build
    from attnbench.kernels.few_keys.launch import configurations

    forward = next(c for c in configurations() if c.sample and c.kernel.__name__ == "few_keys_forward_kernel")
    made = build(forward, 90)
    assert made.product_rows == (forward.constexprs["BLOCK_N"],) * 2
    assert made.code.wgmma_share == 1
    assert made.code.copies
    assert not made.code.waiting_loops
