"""Setup packets and the standard requests (USB 2.0 9.3 and 9.4, USB 3.2 9.4)."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

# bmRequestType (USB 2.0 table 9-2)
DIRECTION_IN: Final = 0x80
TYPE_MASK: Final = 0x60
TYPE_STANDARD: Final = 0x00
TYPE_CLASS: Final = 0x20
TYPE_VENDOR: Final = 0x40
RECIPIENT_MASK: Final = 0x1F
RECIPIENT_DEVICE: Final = 0
RECIPIENT_INTERFACE: Final = 1
RECIPIENT_ENDPOINT: Final = 2
RECIPIENT_OTHER: Final = 3

# bRequest (USB 2.0 table 9-4, USB 3.2 table 9-5)
GET_STATUS: Final = 0
CLEAR_FEATURE: Final = 1
SET_FEATURE: Final = 3
SET_ADDRESS: Final = 5
GET_DESCRIPTOR: Final = 6
SET_DESCRIPTOR: Final = 7
GET_CONFIGURATION: Final = 8
SET_CONFIGURATION: Final = 9
GET_INTERFACE: Final = 10
SET_INTERFACE: Final = 11
SYNCH_FRAME: Final = 12
SET_SEL: Final = 48
SET_ISOCH_DELAY: Final = 49

# Feature selectors (USB 2.0 table 9-6, USB 3.2 table 9-7)
FEATURE_ENDPOINT_HALT: Final = 0
FEATURE_FUNCTION_SUSPEND: Final = 0
FEATURE_DEVICE_REMOTE_WAKEUP: Final = 1
FEATURE_TEST_MODE: Final = 2
FEATURE_U1_ENABLE: Final = 48
FEATURE_U2_ENABLE: Final = 49
FEATURE_LTM_ENABLE: Final = 50

_SETUP: Final = Struct("<BBHHH")


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
