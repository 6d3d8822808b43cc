"""What is said to a server before there is a device, in a thread: what it exports, and that we want one of them."""

from __future__ import annotations

from typing import Final

from usbvfiod_core import DeviceAway, DeviceError, SetupPacket
from usbvfiod_core.remote import Link, LinkLost, Patience
from usbvfiod_core.usb import requests
from usbvfiod_core.usb.descriptors import CONFIGURATION, DEVICE, STRING, parse_string

from . import wire
from .turns import ServerAway
from .wire import Exported

_LANGUAGE: Final = 0x0409
_MOST_CONFIGURATIONS: Final = 8
_PIECE: Final = 64


class RequestFailed(Exception):
    """The device has refused a request; `status` is the negative errno."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Asking:
    """A conversation with the server behind a link. Every method raises ServerAway if nothing is the answer, DeviceAway
    if an end is, and DeviceError for one that makes no sense."""

    def __init__(self, link: Link, where: str, patience: Patience) -> None:
        self._link = link
        self._where = where
        self._patience = patience
        self.sequence = 0
        """The last sequence number that was used."""
        self._number = 0

    def exported(self) -> list[Exported]:
        """What the server exports. It ends the connection after that."""
        self._operation(wire.REQ_DEVLIST, b"", wire.REP_DEVLIST)
        (count,) = wire.COUNT.unpack(self._receive(wire.COUNT.size))
        if count > wire.MOST_DEVICES:
            raise DeviceError(f"{self._where} says that it exports {count} devices")
        found = []
        for _ in range(count):
            device = wire.exported(self._receive(wire.DEVICE.size))
            self._receive(wire.INTERFACE.size * device.interfaces)
            found.append(device)
        return found

    def take(self, busid: str) -> Exported:
        """Import a device: from now on the link is for its transfers."""
        status = self._operation(wire.REQ_IMPORT, wire.BUSID.pack(busid.encode()), wire.REP_IMPORT)
        if status:
            raise DeviceAway(f"{self._where}: {busid}: {wire.STATUS.get(status, f'refused with status {status}')}")
        device = wire.exported(self._receive(wire.DEVICE.size))
        if device.busid != busid:
            raise DeviceError(f"{self._where} gives {device.busid!r}, and was asked for {busid}")
        self._number = device.number
        return device

    def descriptors(self) -> bytes:
        """The device descriptor of the device that was taken, and all configurations behind it."""
        device = self._descriptor(DEVICE, 0, 18)
        if len(device) != 18 or device[1] != DEVICE:
            raise DeviceError(f"{self._where}: the device has no device descriptor")
        found = [device]
        for index in range(min(device[17], _MOST_CONFIGURATIONS)):
            try:
                head = self._descriptor(CONFIGURATION, index, 9)
                total = int.from_bytes(head[2:4], "little")
                if len(head) < 9 or total < 9:
                    break
                found.append(self._descriptor(CONFIGURATION, index, total))
            except RequestFailed:
                break  # its kernel reads no further either
        return b"".join(found)

    def string(self, index: int) -> str:
        """A string of the device, in English; empty if it has none."""
        if not index:
            return ""
        try:
            return parse_string(self._descriptor(STRING, index, 255, _LANGUAGE)).strip()
        except RequestFailed:
            return ""

    # -- own ---------------------------------------------------------------------------------------------------------

    def _operation(self, code: int, data: bytes, answer: int) -> int:
        """Ask, and return the status of the answer."""
        self._send(wire.OPERATION.pack(wire.VERSION, code, 0) + data)
        version, found, status = wire.OPERATION.unpack(self._receive(wire.OPERATION.size))
        if version != wire.VERSION:
            raise DeviceError(
                f"{self._where} speaks version {version >> 8:x}.{version >> 4 & 15:x}.{version & 15:x} of USB/IP, "
                "and this is 1.1.1"
            )
        if found != answer:
            raise DeviceError(f"{self._where} does not answer as a USB/IP server does (code {found:#06x})")
        if status and code == wire.REQ_DEVLIST:
            raise DeviceAway(f"{self._where}: {wire.STATUS.get(status, f'status {status}')}")
        return int(status)

    def _descriptor(self, kind: int, index: int, length: int, language: int = 0) -> bytes:
        setup = SetupPacket(requests.DIRECTION_IN, requests.GET_DESCRIPTOR, kind << 8 | index, language, length)
        self.sequence += 1
        head = (wire.CMD_SUBMIT, self.sequence, self._number, wire.IN, 0, 0, length, 0, 0, 0, setup.pack())
        self._send(wire.SUBMIT.pack(*head))
        command, sequence, _, _, _, status, actual, _, packets, _ = wire.RETURN.unpack(self._receive(wire.HEADER))
        if (command, sequence) != (wire.RET_SUBMIT, self.sequence) or packets not in wire.NO_PACKETS:
            raise DeviceError(f"{self._where} does not keep to the protocol: an answer to something else")
        if not 0 <= actual <= length:
            raise DeviceError(f"{self._where} does not keep to the protocol: {actual} bytes for {length}")
        data = self._receive(actual)
        if status:
            raise RequestFailed(status)
        return data

    def _send(self, data: bytes) -> None:
        self._patience.ask()
        try:
            self._link.send_all(data, self._patience)
        except LinkLost as error:
            raise self._away(error) from None

    def _receive(self, count: int) -> bytes:
        try:
            return self._link.receive_exactly(count, self._patience)
        except LinkLost as error:
            raise self._away(error) from None

    def _away(self, error: LinkLost) -> DeviceAway:
        kind = ServerAway if self._link.silent else DeviceAway
        return kind(f"{self._where}: {error}")
