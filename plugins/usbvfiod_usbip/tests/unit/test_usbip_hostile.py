"""A whole server, sandbox and all, whose device is at a hostile end: it costs that device, and nothing else."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from usbvfiod_usbip import wire

from tests.e2e.attacked import Attacked, flood
from tests.lab.replugging import gone
from tests.lab.usbip import Server, Urb
from tests.lab.usbip_devices import BULK_IN, SourceSink
from tests.lab.usbip_exporter import Exporter
from usbvfiod_core.testing.driver import DriverError
from usbvfiod_core.testing.limits import wait_until

LENGTH = 1 << 14
NOBODYS = 0x7FFF_0000
"""A number that no request has."""


def answer(
    sequence: int,
    data: bytes = b"",
    *,
    command: int = wire.RET_SUBMIT,
    status: int = 0,
    actual: int = 0,
    packets: int = 0,
) -> bytes:
    return struct.pack(">IIIIIiiiii8x", command, sequence, 0, 0, 0, status, actual, 0, packets, 0) + data


class Far(SourceSink):
    """While `wrong` is set, bulk IN is answered with it: bytes in which the request's number is put."""

    wrong: bytes | None = None

    def __init__(self) -> None:
        super().__init__("high")

    def submit(self, urb: Urb, server: Server) -> None:
        if urb.address == BULK_IN and self.wrong is not None:
            server._connection.sendall(self.wrong[:4] + urb.number.to_bytes(4, "big") + self.wrong[8:])
        else:
            super().submit(urb, server)


ENDS = {
    "2 GiB": answer(0, actual=0x7FFF_FFFF),
    "less than nothing": answer(0, actual=-1),
    "twice": answer(0, bytes(8), actual=8) + answer(1, bytes(8), actual=8),
    "an unknown message": answer(0, command=4711),
    "a request": answer(0, command=wire.CMD_SUBMIT),
    "packets of what has none": answer(0, actual=0, packets=1 << 20),
    "half a header, and no more": answer(0)[:20],
    "half of its data, and no more": answer(0, bytes(100), actual=LENGTH),
}
"""Answers to the first bulk transfer after which there is nothing that could be believed."""

FLOODS = {
    "answers to nothing": answer(NOBODYS, bytes(8), actual=8),
    "unlinked, though nobody has asked": answer(NOBODYS, command=wire.RET_UNLINK),
    "nothing but zeros": bytes(1 << 16),
}


@contextmanager
def attacked(directory: Path) -> Iterator[tuple[Attacked, Exporter]]:
    with (
        Exporter({"1-1": Far}) as exporter,
        Attacked(directory, f"usbip:{exporter.host}/1-1?timeout=2") as victim,
    ):
        yield victim, exporter


@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_is_wrong_ends_its_own_device(tmp_path: Path) -> None:
    """One after the other; each time it comes back as if nothing had been. What is silent in the middle ends when the
    guest wants to have its transfer back."""
    with attacked(tmp_path) as (victim, exporter):
        for name, wrong in ENDS.items():
            device, server = victim.take(), exporter.server
            assert len(device.bulk_in(BULK_IN, LENGTH)) == LENGTH
            Far.wrong = wrong
            try:
                reads = [device.submit_in(BULK_IN, LENGTH) for _ in range(4)]
                if name.endswith("no more"):
                    victim.check_delay()
                    with suppress(DriverError):
                        device.pipe(BULK_IN).flush()
                    server.disconnect()
                gone(device)
            finally:
                Far.wrong = None
            print(f"{name}: {[td.completion_code for td in reads]}")
        victim.take()
        print(f"what is wrong: {victim.check()}; idle: {victim.idle}")


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_keeps_nobody_waiting(tmp_path: Path, name: str) -> None:
    """It ends its device, which comes back, and is flooded again."""
    with attacked(tmp_path) as (victim, exporter):
        for _ in range(5):
            device = victim.take()
            with flood(exporter.server._connection, FLOODS[name]):
                gone(device)
                print(f"{name}: {victim.check_delay()}; idle: {victim.idle}")
        victim.take()
        print(f"{name}, afterwards: {victim.check()}")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_server_that_is_never_whole_is_asked_again_at_a_pace(tmp_path: Path) -> None:
    """Each import is cut, or goes on for ever; there is one for every connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    kept: list[socket.socket] = []
    with listener, Attacked(tmp_path, f"usbip:127.0.0.1:{listener.getsockname()[1]}/1-1?timeout=2") as victim:
        rounds = 0

        def connected() -> bool:
            nonlocal rounds
            with suppress(OSError):  # nobody has come, or has gone again
                stream, _ = listener.accept()
                kept.append(stream)
                rounds += 1
                head = wire.OPERATION.pack(wire.VERSION, wire.REP_IMPORT, 0)
                stream.sendall((head[:5], head + bytes(1 << 20), b"\xff" * 4096)[rounds % 3])
                if rounds % 3:
                    stream.close()
            return rounds >= 6

        wait_until(connected, "it does not connect")
        print(f"never whole: {victim.check_delay()}; idle: {victim.idle}")
        for stream in kept:
            stream.close()
        listener.close()
        print(f"never whole, afterwards: {victim.check()}")
