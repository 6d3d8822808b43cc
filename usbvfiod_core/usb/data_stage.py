"""The data stage of a control transfer for which a driver has less room than its request says, or none, or more.

The length of the Data Stage TD should be wLength, but a driver may break that rule for the sake of a device (xHCI
4.11.2.2). A controller sends the setup packet as it is and moves as many packets as there is room for:

- IN: a packet that is longer than the room that is left is a Babble. Where whole packets fill the room, the status
  stage follows early, which a device has to accept (USB 2.0 8.5.3). Without a data stage, a USB 2 device puts its data
  where the empty packet of the status stage is expected, while a USB 3 device is told of the stage.
- OUT: the device gets what there is.

A device is not asked for more than wLength, and takes no more. Linux refuses a request with another length, and a
USB/IP server then gives up the device.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from .transfer import Transfer, TransferStatus, part

_USB3_PACKET: Final = 512


def received(sent: int, room: int, packet_size: int) -> tuple[TransferStatus, int]:
    """How an IN data stage ends, and how many bytes of it are moved, if the device has `sent` bytes and the driver has
    room for `room`. `packet_size` is that of endpoint 0."""
    babbles = sent > room and (room % packet_size or (not room and packet_size < _USB3_PACKET))
    return TransferStatus.BABBLE if babbles else TransferStatus.COMPLETED, min(sent, room)


def answer(transfer: Transfer, data: bytes, packet_size: int) -> None:
    """Complete an IN control transfer with the `data` that a device has for it; it sends at most wLength of it."""
    assert transfer.setup is not None
    status, moved = received(min(len(data), transfer.setup.length), transfer.length, packet_size)
    transfer.write(data[:moved])
    transfer.complete(status, moved)


def fit(transfer: Transfer, packet_size: int) -> None:
    """Change a control transfer with less room than wLength, or more, so that a host's kernel accepts it: the room, or
    wLength (OUT, if there is less), is another one until the transfer is completed, and then as before."""
    setup = transfer.setup
    if setup is None or transfer.length == setup.length:
        return
    windows, room, tell = transfer.windows, transfer.length, transfer.on_complete
    if room > setup.length:
        transfer.windows = part(windows, 0, setup.length) if setup.length else []
        transfer.length = setup.length
    elif setup.is_in:
        transfer.windows, transfer.length = [memoryview(bytearray(setup.length))], setup.length
    else:
        transfer.setup = replace(setup, length=room)

    def ended(transfer: Transfer) -> None:
        if room > setup.length:
            transfer.windows, transfer.length = windows, room
            if not transfer.is_in and transfer.status is TransferStatus.COMPLETED:
                transfer.actual = room
        elif setup.is_in:
            data = transfer.windows[0]
            transfer.windows, transfer.length = windows, room
            status, moved = received(transfer.actual, room, packet_size)
            if transfer.status is TransferStatus.COMPLETED:
                transfer.status = status
            transfer.actual = moved
            transfer.write(data[:moved])
        transfer.setup = setup
        tell(transfer)

    transfer.on_complete = ended
