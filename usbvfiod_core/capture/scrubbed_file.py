"""A recording on its way from one file to another, scrubbed: packet by packet, also while it is still being made."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from ..errors import CaptureError
from . import usbmon
from .pcapng import Buffer, Reader, Writer
from .scrub import Scrubber

_MOST = (1 << 32) - 1
"""The length of a packet is a number of 32 bits; the header of a record in the short form has become longer."""


def scrub_file(source: BinaryIO, write: Callable[[bytes], object]) -> None:
    """Read a recording to its end; `write` is called with the bytes of the scrubbed one, packet by packet. Packets that
    are no records of USB are left out.

    May block as `source` does. Raises CaptureError for what is no recording, and what `write` raises.
    """
    reader, writer = Reader(source), Writer()
    scrubbers: list[Scrubber] = []
    numbers: dict[int, int] = {}
    begun = False
    start = last = 0

    def interfaces() -> None:
        nonlocal begun
        out = b"" if begun else writer.section(reader.application)
        for interface in reader.interfaces[len(scrubbers) :]:
            numbers[id(interface)] = len(scrubbers)
            scrubbers.append(Scrubber())
            out += writer.interface(
                usbmon.LINK_TYPE,
                snap_length=interface.snap_length,
                name=interface.name,
                description=interface.description,
                speed=interface.speed,
            )
        begun = True
        if out:
            write(out)

    for packet in reader:
        interfaces()
        start, last = start or packet.time, packet.time
        try:
            record = usbmon.parse(packet.data, packet.interface.link_type, packet.order, packet.time)
        except CaptureError:
            continue
        number = numbers[id(packet.interface)]
        scrubbed = scrubbers[number].scrub(record)
        head, data = scrubbed.header(), bytes(scrubbed.data)
        cut = max(packet.length - len(packet.data), 0)
        out: list[Buffer] = []
        size = len(head) + len(data)
        writer.packet(
            out,
            number,
            packet.time,
            (head, data),
            size,
            min(size + cut, _MOST),
            dropped=packet.dropped,
            comment=packet.comment,
        )
        write(b"".join(out))
    interfaces()
    for number, interface in enumerate(reader.interfaces):
        if interface.received is not None:
            write(
                writer.statistics(
                    number, last, start=start, received=interface.received, dropped=interface.dropped or 0
                )
            )
