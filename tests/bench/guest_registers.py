"""A guest's reads of a register, in turn: functions of several servers, and QEMU's own controller, in one guest."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from tests.bench.programs import FREESTANDING, compiled
from tests.bench.rows import Missing, alternating
from tests.vm.guest import Guest

FIRST_SLOT = 0x10
PROGRAM = "/tmp/register_reads"
RELAXED = "iomem=relaxed"
"""For the kernel's command line: what has a driver may be mapped too."""


def at_slot(number: int, socket: Path | None = None) -> list[str]:
    """QEMU's arguments for a function in the place `number`: behind `socket`, or QEMU's own controller."""
    place = f"{FIRST_SLOT + number:#x}"
    if socket is None:
        return ["-device", f"qemu-xhci,id=reference,addr={place}"]
    device = {"driver": "vfio-user-pci", "addr": place, "socket": {"type": "unix", "path": str(socket)}}
    return ["-device", json.dumps(device)]


class RegisterReads:
    """The program that reads, in a guest. Raises Missing where it cannot be compiled."""

    def __init__(self, guest: Guest, directory: Path) -> None:
        program = compiled("register_reads", directory, *FREESTANDING)
        text = base64.encodebytes(program.read_bytes()).decode()
        guest.run(f"base64 -d > {PROGRAM} <<'END'\n{text}END\nchmod 755 {PROGRAM}")
        self._guest = guest

    def nanoseconds(self, number: int, count: int) -> float:
        """What one read takes, of the function in the place `number`."""
        function = f"/sys/bus/pci/devices/0000:00:{FIRST_SLOT + number:02x}.0"
        output = self._guest.run(
            f"[ $(cat {function}/enable) != 0 ] || echo 1 > {function}/enable; {PROGRAM} {function}/resource0 {count}"
        )
        if not output.strip().isdigit():
            raise Missing(f"the guest cannot read the registers at {function}: {output.strip()}")
        return float(output)


def in_turn(reads: RegisterReads, numbers: range, rounds: int, count: int) -> list[list[float]]:
    """Nanoseconds for the functions in these places, round by round."""
    return alternating(rounds, *[lambda number=number: reads.nanoseconds(number, count) for number in numbers])
