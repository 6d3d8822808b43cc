"""Setup packets and the standard requests (USB 2.0 9.3 and 9.4, USB 3.2 9.4)."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

# bmRequestType (USB 2.0 table 9-2)
DIRECTION_IN = 0x80
TYPE_MASK = 0x60
TYPE_STANDARD = 0x00
TYPE_CLASS = 0x20
TYPE_VENDOR = 0x40
RECIPIENT_MASK = 0x1F
RECIPIENT_DEVICE = 0
RECIPIENT_INTERFACE = 1
RECIPIENT_ENDPOINT = 2
RECIPIENT_OTHER = 3

# bRequest (USB 2.0 table 9-4, USB 3.2 table 9-5)
GET_STATUS = 0
CLEAR_FEATURE = 1
SET_FEATURE = 3
SET_ADDRESS = 5
GET_DESCRIPTOR = 6
SET_DESCRIPTOR = 7
GET_CONFIGURATION = 8
SET_CONFIGURATION = 9
GET_INTERFACE = 10
SET_INTERFACE = 11
SYNCH_FRAME = 12
SET_SEL = 48
SET_ISOCH_DELAY = 49

# Feature selectors (USB 2.0 table 9-6, USB 3.2 table 9-7)
FEATURE_ENDPOINT_HALT = 0
FEATURE_FUNCTION_SUSPEND = 0
FEATURE_DEVICE_REMOTE_WAKEUP = 1
FEATURE_TEST_MODE = 2
FEATURE_U1_ENABLE = 48
FEATURE_U2_ENABLE = 49
FEATURE_LTM_ENABLE = 50

_SETUP = Struct("<BBHHH")


@dataclass(frozen=True, slots=True)
class SetupPacket:
    """The eight bytes that open a control transfer (USB 2.0 9.3): bmRequestType, bRequest, wValue, wIndex, wLength."""

    request_type: int
    request: int
    value: int
    index: int
    length: int

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> SetupPacket:
        """Decode eight bytes as they are on the wire."""
        return cls(*_SETUP.unpack(data))

    def pack(self) -> bytes:
        """Encode as the eight bytes on the wire."""
        return _SETUP.pack(self.request_type, self.request, self.value, self.index, self.length)

    @property
    def is_in(self) -> bool:
        """Whether the data stage goes to the driver; without a data stage it has no meaning (9.3.1)."""
        return bool(self.request_type & DIRECTION_IN)

    @property
    def kind(self) -> int:
        """TYPE_STANDARD, TYPE_CLASS or TYPE_VENDOR."""
        return self.request_type & TYPE_MASK

    @property
    def recipient(self) -> int:
        """RECIPIENT_DEVICE, RECIPIENT_INTERFACE, RECIPIENT_ENDPOINT or RECIPIENT_OTHER."""
        return self.request_type & RECIPIENT_MASK
