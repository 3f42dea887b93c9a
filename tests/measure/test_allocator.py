"""Workers keep their heap: calls fault no pages in, unless the user has chosen an allocator."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from attnbench.measure.machine import allocator

FAULTS = """
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def call():
    held = [libc.malloc(40 << 20) for _ in range(3)]
    for block in held:
        ctypes.memset(block, 1, 40 << 20)
    for block in held:
        libc.free(block)
for _ in range(8):
    call()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    call()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 4)
"""


def faults(environment: dict[str, str]) -> int:
    """Page faults of a call that fills blocks larger than any that glibc keeps, in a process of this environment."""
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_call_in_a_worker_faults_no_pages_in() -> None:
    own = {*allocator.chosen(os.environ), *allocator.SETTLED}
    plain = {name: value for name, value in os.environ.items() if name not in own}
    assert faults({**plain, **allocator.variables(plain)}) < 100
    assert faults(plain) > 1000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_give_back_returns_what_is_free() -> None:
    code = (
        "import ctypes, resource\n"
        "from attnbench.measure.machine.allocator import give_back\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.malloc.restype = ctypes.c_void_p\n"
        "libc.free.argtypes = [ctypes.c_void_p]\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
        "held = libc.malloc(1 << 24)\n"
        "ctypes.memset(held, 1, 1 << 24)\n"
        "libc.free(held)\n"
        "kept = resident()\n"
        "give_back()\n"
        "print((kept - resident()) >> 20)\n"
    )
    environment = {**os.environ, **allocator.SETTLED}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 15


@pytest.mark.parametrize(
    "own",
    [
        {"MALLOC_ARENA_MAX": "1"},
        {"MALLOC_MMAP_MAX_": "7"},
        {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"},
        {"LD_PRELOAD": "libjemalloc.so"},
    ],
)
def test_a_users_choice_is_left_and_named(own: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert allocator.variables(own) == {}
    for name in allocator.SETTLED:
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    assert next(iter(own)) in allocator.described()


def test_nothing_chosen() -> None:
    assert allocator.variables({"PATH": "x", "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2"}) == allocator.SETTLED
    assert allocator.variables(allocator.SETTLED) == allocator.SETTLED


def test_the_environment_names_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in the process that starts workers, which is not settled itself, and in a worker."""
    for name in (*allocator.chosen(os.environ), *allocator.SETTLED):
        monkeypatch.delenv(name, raising=False)
    told = "glibc, settled" if platform.libc_ver()[0] == "glibc" else "the system's"
    assert allocator.described() == told
    for name, value in allocator.SETTLED.items():
        monkeypatch.setenv(name, value)
    assert allocator.described() == told
