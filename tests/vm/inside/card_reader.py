"""In the guest: a program that talks CCID 1.1 to QEMU's card reader with the card of tests/lab/offers.py."""

from __future__ import annotations

import os
import struct

import usb.util  # type: ignore[import-untyped]

from tests.lab.card import ANSWER_TO_RESET
from tests.vm.inside.waiting import wait_usb_device

VENDOR, PRODUCT, NAME = 0x08E6, 0x4433, "QEMU USB CCID"
POWER_ON, TRANSFER = 0x62, 0x6F
LIMIT = 10_000  # milliseconds


def main() -> None:
    """Power the card, then commands of several lengths."""
    device = wait_usb_device(VENDOR, PRODUCT, NAME)
    interface = device.get_active_configuration()[0, 0]
    ends = {(usb.util.endpoint_direction(each.bEndpointAddress), each.bmAttributes & 3): each for each in interface}
    bulk_in, bulk_out = ends[usb.util.ENDPOINT_IN, 2], ends[usb.util.ENDPOINT_OUT, 2]

    def message(sequence: int, kind: int, data: bytes = b"") -> bytes:
        bulk_out.write(struct.pack("<BIBB3x", kind, len(data), 0, sequence) + data, LIMIT)
        answer = bytes(bulk_in.read(1024, LIMIT))
        _, length, _, answered, state, error, _ = struct.unpack_from("<BIBBBBB", answer)
        assert (answered, state, error) == (sequence, 0, 0)
        return answer[10 : 10 + length]

    assert message(1, POWER_ON) == ANSWER_TO_RESET
    for sequence, length in enumerate((5, 20, 200), start=2):
        command = os.urandom(length)
        assert message(sequence, TRANSFER, command) == command[::-1] + b"\x90\x00"


if __name__ == "__main__":
    main()
