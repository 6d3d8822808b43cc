"""The kernel's classic BPF machine, as far as filters of system calls use it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from usbvfiod_core.sandbox.bpf import Instruction

_STEPS = 4096


def decide(program: Sequence[Instruction], architecture: int, number: int, *arguments: int) -> int:
    """What the filter returns for a call."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<iIQ6Q", number, architecture, 0, *(each & 0xFFFF_FFFF_FFFF_FFFF for each in padded))
    accumulator, at = 0, 0
    for _ in range(_STEPS):
        code, true, false, k = program[at]
        at += 1
        if code == 0x06:  # RET
            return k
        if code == 0x20:  # LD W ABS
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif code == 0x54:  # AND K
            accumulator &= k
        elif code == 0x05:  # JA
            at += k
        elif code == 0x15:  # JEQ K
            at += true if accumulator == k else false
        elif code == 0x35:  # JGE K
            at += true if accumulator >= k else false
        else:
            raise AssertionError(f"an instruction that is not used: {code:#x}")
    raise AssertionError("it does not end")
