"""The C library's heap: one for all threads, and given back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from usbvfiod_core.daemon import heap

pytestmark = pytest.mark.skipif(heap._malloc_trim is None, reason="the C library is not glibc")

THREADS = 6
HEAPS = f"""
import sys, threading
from usbvfiod_core.daemon import heap
if sys.argv[1] == "shared":
    heap.share()
everybody = threading.Barrier({THREADS} + 1)
def work():
    kept = bytes(50_000)
    everybody.wait()
    everybody.wait()
threads = [threading.Thread(target=work) for _ in range({THREADS})]
for each in threads:
    each.start()
everybody.wait()
# A heap of a thread's own is the beginning of 64 MiB that are reserved.
ranges = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in open("/proc/self/maps")]
print(sum(start % (64 << 20) == 0 and end - start < 64 << 20 for start, end in ranges))
everybody.wait()
"""

GIVEN = """
from pathlib import Path
from usbvfiod_core.daemon import heap
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
# Written to: of zeros the C library touches only what it has not just got from the kernel.
blocks = [b"x" * 100_000 for _ in range(400)]
last = b"x" * 100_000
del blocks[1::2]
before = resident()
heap.give_back()
print(before - resident())
"""


def run(program: str, *arguments: str) -> int:
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return int(result.stdout)


def test_threads_share_one_heap() -> None:
    assert run(HEAPS, "own") >= THREADS - 1
    assert run(HEAPS, "shared") <= 1  # another map that looks like one


def test_what_is_free_between_what_is_used_is_given_back() -> None:
    assert run(GIVEN) > 15_000_000
