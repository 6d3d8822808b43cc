"""A whole server, sandbox and all, whose device is at a hostile end: it costs that device, and nothing else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from struct import pack as struct_pack
from typing import Any

import pytest
from redir_host import RedirHost
from usbvfiod_usbredir import messages as m
from usbvfiod_usbredir.messages import bulk_packet, pack
from usbvfiod_usbredir.spec import Type

from tests.e2e.attacked import Attacked, flood
from tests.lab.replugging import gone
from usbvfiod_core import Speed
from usbvfiod_core.virtual.loopback import Loopback

SOURCE = 0x81
ENDPOINTS = m.EndpointInfo(b"\xff" * 32, bytes(32), bytes(32), bytes(64), bytes(128))

FLOODS: dict[str, tuple[Any, int]] = {
    "statuses of streams": (m.IsoStreamStatus(0, 5), 0),
    "packets of an endpoint that there is not": (m.InterruptPacket(0x85, 0, 0), 0),
    "its endpoints": (ENDPOINTS, 0),
    "filters": (m.FilterFilter(), 14),
    "devices": (m.DeviceConnect(2, 0, 0, 0, 0x1209, 1, 1), 0),
    "interrupt packets of 64 KiB": (m.InterruptPacket(0x85, 0, 0xFFFF), 0xFFFF),
    "bulk packets of 64 KiB": (m.BufferedBulkPacket(0, 0xFFFF, SOURCE, 0), 0xFFFF),
}
"""Messages, with how many bytes of data."""


def _header(type: int, length: int) -> bytes:
    return struct_pack("<IIQ", type, length, 7)


ONCE: dict[str, Callable[[int], bytes]] = {
    "4 GiB": lambda common: _header(Type.BULK_PACKET, 0xFFFF_FFFF),
    "4 GiB of a filter": lambda common: _header(Type.FILTER_FILTER, 0xFFFF_FFFF),
    "less than its fields": lambda common: _header(Type.BULK_PACKET, 1),
    "more than it says": lambda common: _header(Type.BULK_PACKET, 20) + bytes([SOURCE, 0, 4, 0]) + bytes(16),
    "an unknown type": lambda common: _header(4711, 0),
    "hello again": lambda common: pack(m.Hello("again", 0)),
    "an answer to nothing": lambda common: pack(bulk_packet(SOURCE, 8), id=0xFFFF, common=common, data=bytes(8)),
    "what only guests send": lambda common: pack(m.Reset(), common=common),
    "half a header": lambda common: _header(Type.BULK_PACKET, 20)[:9],
    "half a packet": lambda common: _header(Type.FILTER_FILTER, 8000) + bytes(100),
}


class Ends:
    """Whoever connects finds a host with a device, which plays by the rules so far."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.hosts: list[RedirHost] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for host in self.hosts:
            host.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                stream = self._listener.accept()[0]
                self.hosts.append(RedirHost(stream, lambda loop: Loopback(loop, speed=Speed.HIGH)))


@contextmanager
def attacked(directory: Path) -> Iterator[tuple[Attacked, Ends]]:
    ends = Ends()
    try:
        with Attacked(directory, f"usbredir:{ends.address}?timeout=2") as victim:
            yield victim, ends
    finally:
        ends.close()


@pytest.mark.long
@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_keeps_nobody_waiting(tmp_path: Path, name: str) -> None:
    """Where a processor takes more of what nobody has asked for than any device sends, it ends its own device."""
    message, length = FLOODS[name]
    with attacked(tmp_path) as (victim, ends):
        device, host = victim.take(), ends.hosts[-1]
        with flood(host.stream, pack(message, common=host.parser.common, data=bytes(length))):
            for _ in range(5):
                print(f"{name}: {victim.check_delay()}; idle: {victim.idle}")
        with suppress(OSError):  # where the server has hung up before, the host's thread has ended
            host.stream.shutdown(socket.SHUT_RDWR)
        gone(device)
        victim.take()
        print(f"{name}, afterwards: {victim.check()}")


@pytest.mark.long
def test_what_is_wrong_ends_its_own_device(tmp_path: Path) -> None:
    """One after the other; each time it comes back as if nothing had been."""
    with attacked(tmp_path) as (victim, ends):
        for name, wrong in ONCE.items():
            device, host = victim.take(), ends.hosts[-1]
            assert len(device.bulk_in(SOURCE, 1 << 14)) == 1 << 14
            reads = [device.submit_in(SOURCE, 1 << 14) for _ in range(4)]
            host.call(partial(host.send_bytes, wrong(host.parser.common)))
            gone(device)
            assert all(td.done for td in reads), name
        victim.take()
        print(f"what is wrong: {victim.check()}; idle: {victim.idle}")
