"""Recordings that can be shared: without serial numbers, without what a drive holds and what somebody typed.

Lengths, times, statuses, descriptors and commands stay, so that a scrubbed recording can be looked at and replayed:

    serial numbers   every string descriptor that does not name a manufacturer, product, configuration or interface is
                     zeros ("000..."); so are container IDs, and serial numbers in a printer's IEEE 1284 identity
    drives           the data of commands are zeros, but those that say what kind of drive it is (`_TELLING`)
    keyboards        every key is the same one ("x"), without modifiers; reports of other forms are zeros

Where the descriptors that would tell what an endpoint is for are not in the recording, all its data are zeros. What
other devices say (a network adapter, a camera, a serial adapter's EEPROM) stays as it is.
"""

from __future__ import annotations

import re
from dataclasses import replace
from enum import Enum
from typing import Final, NamedTuple

from ..usb import descriptors, requests
from ..usb.descriptors import DescriptorError
from ..usb.requests import SetupPacket
from ..usb.transfer import TransferType
from .usbmon import COMPLETE, SUBMIT, Record

CLASS_HID: Final = 0x03
CLASS_STORAGE: Final = 0x08
PROTOCOL_BULK_ONLY: Final = 0x50
PROTOCOL_UAS: Final = 0x62
PIPE_USAGE: Final = 0x24
"""The descriptor type that says what an endpoint is to UAS (UAS 5.2.3.6); 3 and 4 are the data pipes."""

_CBW, _CBW_LENGTH = b"USBC", 31
_CSW, _CSW_LENGTH = b"USBS", 13
_TELLING: Final = {
    0x03: 18,  # REQUEST SENSE
    0x12: 36,  # INQUIRY, without what only its vendor knows
    0x1A: None,  # MODE SENSE(6)
    0x23: None,  # READ FORMAT CAPACITIES
    0x25: None,  # READ CAPACITY(10)
    0x5A: None,  # MODE SENSE(10)
    0x9E: None,  # SERVICE ACTION IN(16): READ CAPACITY(16)
    0xA0: None,  # REPORT LUNS
    0xA3: None,  # MAINTENANCE IN: what commands there are
}
"""Commands whose data stay, by operation code (SPC-4, SBC-3), and how many bytes of them; None for all."""
_TELLING_PAGES: Final = {0x00, 0xB0, 0xB1, 0xB2}
"""And the pages of vital product data that say nothing of the one drive."""

_KEY_X: Final = 0x1B
_BOOT_REPORT: Final = 8
_KEYBOARD_PAGE: Final = re.compile(rb"\x05\x07|[\x06\x07]\x07\x00|[\x06\x07].[\xf1\xff]", re.DOTALL)
"""Usage Page items for keys, or for what a vendor or a security key's application means by its own."""
_GET_REPORT: Final = (0xA1, 0x01)
_SET_REPORT: Final = (0x21, 0x09)
_GET_DEVICE_ID: Final = (0xA1, 0x00)
_SERIAL_IN_ID: Final = re.compile(rb"((?:SN|SERN|SERIALNUMBER):)([^;]*)", re.IGNORECASE)


class _Role(Enum):
    """What is done with an endpoint's data."""

    KEPT = 0
    INPUT = 1
    """Reports of a HID interface that is, or may be, a keyboard."""
    BULK_ONLY = 2
    ZEROED = 3


class Scrubber:
    """Takes the records of one file in order; each is given back as it may be shared: `scrubber.scrub(record)`.

    `record.data` has to have the data. What is given back is the same record if nothing of it changes.
    """

    def __init__(self) -> None:
        self._devices: dict[tuple[int, int], _Device] = {}

    def scrub(self, record: Record) -> Record:
        """The record to write in the place of this one. Raises nothing."""
        key = (record.bus, record.device)
        device = self._devices.get(key)
        if device is None:
            device = self._devices[key] = _Device()
        data = device.control(record) if record.type is TransferType.CONTROL else device.transfer(record)
        return record if data is None else replace(record, data=data)


class _Hid(NamedTuple):
    """A HID interface that may be a keyboard."""

    inputs: list[int]
    """Its IN endpoints."""
    length: int
    """Bytes of its report descriptor."""


class _Device:
    """What is known of one device so far. Methods give the data to write, None for those that there are."""

    def __init__(self) -> None:
        self._setups: dict[int, SetupPacket] = {}
        self._identity: descriptors.DeviceDescriptor | None = None
        self._forget()

    def _forget(self) -> None:
        """Another device has the address now."""
        self._named: set[int] | None = None
        """Indices of strings that may stay; None before any descriptor says."""
        self._serial = 0
        self._roles: dict[int, _Role] = {}
        self._hid: dict[int, _Hid] = {}
        """The interfaces that are keyboards as far as is known."""
        self._storage: dict[int, _BulkOnly] = {}

    # -- endpoint 0 ----------------------------------------------------------------------------------------------------

    def control(self, record: Record) -> bytes | None:
        if record.kind == SUBMIT:
            setup = record.request
            if setup is not None:
                self._setups[record.id] = setup
                if (setup.request_type, setup.request) == _SET_REPORT and len(record.data) > 1:
                    return bytes(len(record.data))  # more than the lights
            return None
        setup = self._setups.pop(record.id, None)
        data = bytes(record.data)
        if not data:
            return None
        if setup is None:
            return bytes(len(data))
        request = (setup.request_type, setup.request)
        if setup.request == requests.GET_DESCRIPTOR and setup.request_type & requests.TYPE_MASK == 0:
            return self._descriptor(setup, data)
        if request == _GET_REPORT:
            return bytes(len(data)) if self._hid_secret(setup.index & 0xFF) else None
        if request == _GET_DEVICE_ID:
            return _SERIAL_IN_ID.sub(lambda match: match[1] + b"0" * len(match[2]), data)
        return None

    def _descriptor(self, setup: SetupPacket, data: bytes) -> bytes | None:
        kind, index = setup.value >> 8, setup.value & 0xFF
        if kind == descriptors.DEVICE:
            self._take_device(data)
        elif kind == descriptors.CONFIGURATION:
            self._take_configuration(data)
        elif kind == descriptors.STRING and index:
            if self._named is None or index not in self._named or index == self._serial:
                return data[:2] + (b"0\0" * len(data))[: len(data) - 2]
        elif kind == descriptors.BOS:
            return _without_container(data)
        elif kind == descriptors.HID_REPORT and setup.recipient == requests.RECIPIENT_INTERFACE:
            self._take_reports(setup.index & 0xFF, data)
        return None

    def _take_reports(self, number: int, data: bytes) -> None:
        """A HID interface's report descriptor: no keyboard if it is whole and has no keys."""
        hid = self._hid.get(number)
        if hid is not None and len(data) >= hid.length and not _KEYBOARD_PAGE.search(data):
            del self._hid[number]
            self._roles.update((address, _Role.KEPT) for address in hid.inputs)

    def _take_device(self, data: bytes) -> None:
        try:
            device = descriptors.DeviceDescriptor.unpack(data)
        except DescriptorError:
            return
        if self._identity not in (None, device):
            self._forget()
        self._identity = device
        self._serial = device.serial_number
        self._named = {device.manufacturer, device.product} | (self._named or set())

    def _take_configuration(self, data: bytes) -> None:
        try:
            configuration = descriptors.Configuration.unpack(data)
        except DescriptorError:
            return
        self._named = (self._named or set()) | {configuration.name}
        for interface in configuration.interfaces:
            self._named.add(interface.name)
            inputs = [endpoint.address for endpoint in interface.endpoints if endpoint.is_in]
            if interface.class_code == CLASS_HID and any(address not in self._roles for address in inputs):
                self._hid[interface.number] = _Hid(inputs, _report_length(interface))
            storage = _BulkOnly()
            for endpoint in interface.endpoints:
                role = _role(interface, endpoint)
                if endpoint.address not in self._roles or role.value > self._roles[endpoint.address].value:
                    self._roles[endpoint.address] = role
                    self._storage[endpoint.address] = storage

    def _hid_secret(self, interface: int) -> bool:
        return self._named is None or interface in self._hid

    # -- the others ----------------------------------------------------------------------------------------------------

    def transfer(self, record: Record) -> bytes | None:
        if not record.data:
            return None
        role = self._roles.get(record.endpoint)
        if role is _Role.KEPT:
            return None
        if role is _Role.INPUT:
            return _typed(bytes(record.data)) if record.is_in else None
        if role is _Role.BULK_ONLY:
            return self._storage[record.endpoint].data(record)
        return bytes(len(record.data))


def _report_length(interface: descriptors.Interface) -> int:
    """Bytes of a HID interface's report descriptor; more than any has if the interface does not say."""
    for kind, part in descriptors.walk(interface.extra):
        if kind == descriptors.HID:
            try:
                return max(length for each, length in descriptors.parse_hid(part) if each == descriptors.HID_REPORT)
            except (DescriptorError, ValueError):
                break
    return 0x10000


def _role(interface: descriptors.Interface, endpoint: descriptors.Endpoint) -> _Role:
    if interface.class_code == CLASS_HID:
        return _Role.INPUT
    if interface.class_code != CLASS_STORAGE:
        return _Role.KEPT
    if interface.protocol == PROTOCOL_BULK_ONLY:
        return _Role.BULK_ONLY
    if interface.protocol == PROTOCOL_UAS:
        pipes = (part for kind, part in descriptors.walk(endpoint.extra) if kind == PIPE_USAGE and len(part) > 2)
        return _Role.KEPT if all(part[2] in (1, 2) for part in pipes) and endpoint.extra else _Role.ZEROED
    return _Role.ZEROED


class _BulkOnly:
    """One bulk-only interface: which command the data at hand belong to."""

    def __init__(self) -> None:
        self._shown: int | None = 0
        """Bytes of the data phase that stay; None for all."""

    def data(self, record: Record) -> bytes | None:
        """See `_Device`."""
        data = bytes(record.data)
        if not record.is_in and data[:4] == _CBW and record.length == _CBW_LENGTH:
            self._shown = _shown(data[15:])
            return None
        if record.is_in and data[:4] == _CSW and record.length == _CSW_LENGTH and record.kind == COMPLETE:
            self._shown = 0
            return None
        if self._shown is None:
            return None
        kept, self._shown = data[: self._shown], max(self._shown - record.length, 0)
        return kept + bytes(len(data) - len(kept))


def _shown(command: bytes) -> int | None:
    """How many bytes of a command's data stay; None for all."""
    code = command[0] if command else 0
    if code == 0x12 and len(command) > 2 and command[1] & 1:
        return None if command[2] in _TELLING_PAGES else 4
    return _TELLING.get(code, 0)


def _typed(report: bytes) -> bytes:
    """A report of a keyboard without what was typed: who looks sees that keys went down and up."""
    if len(report) != _BOOT_REPORT or report[1]:
        return bytes(len(report))
    return bytes(2) + bytes(_KEY_X if key > 3 else key for key in report[2:])


def _without_container(data: bytes) -> bytes:
    """A BOS descriptor whose container ID, if there is one, is zeros."""
    parts, start = bytearray(data), data[0] if data else 0
    for kind, part in descriptors.walk(data[start:]):
        if kind == descriptors.DEVICE_CAPABILITY and part[2:3] == bytes([descriptors.CAPABILITY_CONTAINER_ID]):
            parts[start + 4 : start + len(part)] = bytes(max(len(part) - 4, 0))
        start += len(part)
    return bytes(parts[: len(data)])
