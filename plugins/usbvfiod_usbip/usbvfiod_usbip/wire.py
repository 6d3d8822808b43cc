"""The messages of USB/IP, as tables: Linux's Documentation/usb/usbip_protocol.rst, version 1.1.1. All numbers are sent
with their big end first.

A connection is for one question (OP_REQ_DEVLIST) or for one device (OP_REQ_IMPORT, then transfers until it ends).
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from usbvfiod_core import Speed

PORT: Final = 3240

# -- before a device is imported

VERSION: Final = 0x0111
OPERATION: Final = Struct(">HHI")
"""version, code, status."""
REQ_DEVLIST: Final = 0x8005
REP_DEVLIST: Final = 0x0005
REQ_IMPORT: Final = 0x8003
REP_IMPORT: Final = 0x0003

BUSID: Final = Struct(">32s")
COUNT: Final = Struct(">I")
DEVICE: Final = Struct(">256s32sIIIHHHBBBBBB")
"""path, busid, busnum, devnum, speed, idVendor, idProduct, bcdDevice, bDeviceClass, bDeviceSubClass, bDeviceProtocol,
bConfigurationValue, bNumConfigurations, bNumInterfaces."""
INTERFACE: Final = Struct(">BBBx")
"""bInterfaceClass, bInterfaceSubClass, bInterfaceProtocol."""

MOST_DEVICES: Final = 1024
"""Devices of a list that are read."""

STATUS: Final = {
    1: "it is not available: another importer may have it",
    2: "another importer has it",
    3: "the server has an error with it",
    4: "it is not exported there, or another importer has it",
    5: "the server has an error",
}
"""What a reply's status means (tools/usb/usbip/libsrc/usbip_common.h); 0 is success."""

SPEEDS: Final = {
    1: Speed.LOW,
    2: Speed.FULL,
    3: Speed.HIGH,
    4: Speed.HIGH,
    5: Speed.SUPER,
    6: Speed.SUPER_PLUS,
}
"""enum usb_device_speed (include/uapi/linux/usb/ch9.h)."""

# -- with a device

CMD_SUBMIT: Final = 1
CMD_UNLINK: Final = 2
RET_SUBMIT: Final = 3
RET_UNLINK: Final = 4

HEADER: Final = 48
"""Bytes of each of the four."""
SUBMIT: Final = Struct(">IIIIIIIiiI8s")
"""command, seqnum, devid, direction, endpoint; transfer_flags, transfer_buffer_length, start_frame,
number_of_packets, interval, setup."""
UNLINK: Final = Struct(">IIIIII24x")
"""command, seqnum, devid, direction, endpoint; the seqnum to unlink."""
RETURN: Final = Struct(">IIIIIiiiii8x")
"""command, seqnum, devid, direction, endpoint; status, actual_length, start_frame, number_of_packets, error_count. Of
RET_UNLINK only the status counts; servers carry devid, direction and endpoint or zeroes."""
PACKET: Final = Struct(">IIIi")
"""offset, length, actual_length, status of a packet of an isochronous transfer."""

IN: Final = 1
OUT: Final = 0
ISO_ASAP: Final = 0x0002
MOST_PACKETS: Final = 1024
"""Packets of a transfer (USBIP_MAX_ISO_PACKETS)."""
NO_PACKETS: Final = (0, -1)
"""What servers call the number of packets of a transfer that has none."""


class Exported(NamedTuple):
    """A device that a server offers."""

    busid: str
    number: int
    """devid: bus and device number."""
    speed: Speed | None
    vendor_id: int
    product_id: int
    device_class: int
    configuration: int
    """bConfigurationValue as the server shows it; 0 mostly for none."""
    interfaces: int

    @property
    def identity(self) -> str:
        """`VID:PID`."""
        return f"{self.vendor_id:04x}:{self.product_id:04x}"


def exported(record: bytes) -> Exported:
    """Unpack DEVICE."""
    _, busid, bus, device, speed, vendor, product, _, kind, _, _, configuration, _, interfaces = DEVICE.unpack(record)
    name = busid.split(b"\0", 1)[0].decode("ascii", "backslashreplace")
    number = (bus & 0xFFFF) << 16 | device & 0xFFFF
    return Exported(name, number, SPEEDS.get(speed), vendor, product, kind, configuration, interfaces)
