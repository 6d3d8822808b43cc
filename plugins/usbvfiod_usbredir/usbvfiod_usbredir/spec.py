"""The numbers of the USB redirection protocol, version 0.7. Names are the protocol's, in the spelling of Python."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

from usbvfiod_core import Speed, TransferStatus

HEADER: Final = Struct("<III")
"""type, length of what follows, id. Hello has it always, all else unless both sides have `Capability.IDS_64_BITS`."""
HEADER_64: Final = Struct("<IIQ")

ENDPOINTS: Final = 32
"""Places in the tables of endpoints: OUT 0 to 15, then IN 0 to 15. Those of interfaces have as many."""


class Type(IntEnum):
    """What a packet is."""

    HELLO = 0
    DEVICE_CONNECT = 1
    DEVICE_DISCONNECT = 2
    RESET = 3
    INTERFACE_INFO = 4
    EP_INFO = 5
    SET_CONFIGURATION = 6
    GET_CONFIGURATION = 7
    CONFIGURATION_STATUS = 8
    SET_ALT_SETTING = 9
    GET_ALT_SETTING = 10
    ALT_SETTING_STATUS = 11
    START_ISO_STREAM = 12
    STOP_ISO_STREAM = 13
    ISO_STREAM_STATUS = 14
    START_INTERRUPT_RECEIVING = 15
    STOP_INTERRUPT_RECEIVING = 16
    INTERRUPT_RECEIVING_STATUS = 17
    ALLOC_BULK_STREAMS = 18
    FREE_BULK_STREAMS = 19
    BULK_STREAMS_STATUS = 20
    CANCEL_DATA_PACKET = 21
    FILTER_REJECT = 22
    FILTER_FILTER = 23
    DEVICE_DISCONNECT_ACK = 24
    START_BULK_RECEIVING = 25
    STOP_BULK_RECEIVING = 26
    BULK_RECEIVING_STATUS = 27
    CONTROL_PACKET = 100
    BULK_PACKET = 101
    ISO_PACKET = 102
    INTERRUPT_PACKET = 103
    BUFFERED_BULK_PACKET = 104


class Capability(IntEnum):
    """What a side says of itself in its hello: the number of a bit. It holds where both sides have it."""

    BULK_STREAMS = 0
    CONNECT_DEVICE_VERSION = 1
    FILTER = 2
    DEVICE_DISCONNECT_ACK = 3
    EP_INFO_MAX_PACKET_SIZE = 4
    IDS_64_BITS = 5
    BULK_LENGTH_32_BITS = 6
    BULK_RECEIVING = 7

    @property
    def mask(self) -> int:
        """As a bit."""
        return 1 << self


ALL_CAPABILITIES: Final = sum(each.mask for each in Capability)


class Status(IntEnum):
    """How a request ended. A number that is not here is an error, too."""

    SUCCESS = 0
    CANCELLED = 1
    INVAL = 2
    IOERROR = 3
    STALL = 4
    TIMEOUT = 5
    BABBLE = 6


_TRANSFER_STATUS: Final[dict[int, TransferStatus]] = {
    Status.SUCCESS: TransferStatus.COMPLETED,
    Status.CANCELLED: TransferStatus.CANCELLED,
    Status.STALL: TransferStatus.STALL,
    Status.BABBLE: TransferStatus.BABBLE,
}


def transfer_status(status: int) -> TransferStatus:
    """What a guest's transfer ends with."""
    return _TRANSFER_STATUS.get(status, TransferStatus.ERROR)


SPEEDS: Final[dict[int, Speed]] = {0: Speed.LOW, 1: Speed.FULL, 2: Speed.HIGH, 3: Speed.SUPER}
"""Of DEVICE_CONNECT; 255 is a speed that the far side does not know."""

NO_TYPE: Final = 255
"""In the table of endpoints: there is none."""


def endpoint_index(address: int) -> int:
    """The place of an endpoint in the tables and bit masks of endpoints."""
    return (address & 0x0F) + (16 if address & 0x80 else 0)
