"""Two builds beside each other in one Linux guest, with a drive on each, and the server that answers constants."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from tests.bench.against_kit import image
from tests.bench.builds import Build
from tests.bench.guest_registers import RELAXED, RegisterReads, at_slot, in_turn
from tests.bench.guests import LARGE, SMALL, Subject
from tests.bench.programs import compiled, serving
from tests.bench.rows import Missing, Row, alternating
from tests.vm.guest import Guest, GuestError
from tests.vm.guest_usb import wait_disks
from tests.vm.server import ServerError, UsbvfiodServer

SIZES = (64 << 20, 72 << 20)
"""By these the guest's drives are told apart; the build's, and the other one's."""
NOT_SLOWER = 0.97


def rows() -> list[Row]:
    """What is measured here."""
    return [
        Row("guest register read: time, of a server in C that answers constants", 1.2, most=True),
        Row("guest, drives as they are by default: 4 KiB reads, by their mean", 1.5),
        Row("guest, the same: 4 KiB writes", NOT_SLOWER),
        Row("guest, the same: 1 MiB reads", NOT_SLOWER),
        Row("guest, the same: 1 MiB writes", NOT_SLOWER),
    ]


def measure(found: list[Row], new: Build, old: Build, directory: Path, rounds: int, count: int) -> None:
    """Boot the guest and fill in the rows."""
    try:
        _measure(found, new, old, directory, rounds, count)
    except (GuestError, ServerError) as error:
        raise Missing(f"the guest: {error}") from None


def _measure(found: list[Row], new: Build, old: Build, directory: Path, rounds: int, count: int) -> None:
    with ExitStack() as stack:
        arguments = []
        for number, (build, size) in enumerate(zip((new, old), SIZES, strict=True)):
            path = image(directory, f"{number}.img", size)
            path.write_bytes(os.urandom(1 << 20) * (size >> 20))
            server = stack.enter_context(UsbvfiodServer([f"virtual:flash?image={path}"], python=build.python))
            arguments += at_slot(number, server.socket_path)
        try:
            program = compiled("constant_server", directory)
            stack.enter_context(serving([str(program), str(directory / "c.sock")], directory / "c.sock"))
            arguments += at_slot(len(SIZES), directory / "c.sock")
        except Missing as error:
            found[0].missing = str(error)
        guest = stack.enter_context(Guest(directory, arguments, kernel_arguments=RELAXED))
        disks = {disk.size: disk.path for disk in wait_disks(guest, len(SIZES))}
        if not found[0].missing:
            reads = RegisterReads(guest, directory)
            ours, _, constants = in_turn(reads, range(len(SIZES) + 1), rounds, 4 * count)
            found[0].compare(ours, constants)
        subjects = [Subject(guest, disks[size]) for size in SIZES]
        for row, block, write in zip(found[1:], (SMALL, SMALL, LARGE, LARGE), (False, True) * 2, strict=True):
            accesses = count if block == SMALL else max(count // 4, 1)
            row.compare(
                *alternating(
                    rounds,
                    *[lambda s=s, b=block, n=accesses, w=write: n / s.seconds(b, n, write=w) for s in subjects],
                )
            )
