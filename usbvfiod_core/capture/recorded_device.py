"""What a recording says a device is: identity, descriptors, speed, and what it was asked.

`RecordedDevice` is made of a device's traffic. `problems` is what keeps it from being replayed, `remarks` what a replay
lacks; both are for people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property

from ..errors import CaptureError
from ..usb import descriptors, requests
from ..usb.speed import Speed
from ..usb.told_speed import by_endpoint
from ..usb.transfer import TransferStatus, TransferType
from .recording import MAX_BYTES, Exchange, Recording, Traffic
from .usbmon import BITS_A_SECOND

CLASS_HUB = 0x09
CLASS_STORAGE = 0x08
PROTOCOL_BULK_ONLY = 0x50
PROTOCOL_UAS = 0x62

MAX_DESCRIPTORS = 4096
"""That are kept of a device, which has some dozens."""

_OF_PORTS = requests.TYPE_CLASS | requests.RECIPIENT_OTHER

_BY_SNAP_LENGTH = ", because of a snap length that is too short (262144 is enough)"

GET_DESCRIPTOR = (requests.DIRECTION_IN, requests.GET_DESCRIPTOR)


class RecordedDevice:
    """One device of a recording. The constructor raises nothing, whatever the device said."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self._descriptors: dict[tuple[int, int, int], tuple[bytes, int, int]] = {}
        """By type, index and language: the longest that was captured, of how many bytes, and how many were asked."""
        self.refused: set[tuple[int, int, int]] = set()
        """Descriptors that the device never had."""
        for exchange in traffic.exchanges:
            self._take_descriptor(exchange)
        self.device: descriptors.DeviceDescriptor | None = None
        self.configurations: list[bytes] = []
        """As they were answered; whole ones only, that can be read as such."""
        self.problems: list[str] = []
        self._take_identity()
        self._check_missing()

    def _check_missing(self) -> None:
        """Lengths cost nothing in a file, and zeros take the place of what is missing."""
        missing = sum(each.missing for each in self.traffic.exchanges)
        if missing > MAX_BYTES:
            self.problems.append(
                f"{missing >> 20} MiB of its data were not captured{_BY_SNAP_LENGTH}; {MAX_BYTES >> 20} MiB of zeros"
                " can take the place of what is missing"
            )

    def _take_descriptor(self, exchange: Exchange) -> None:
        setup = exchange.setup
        if setup is None or (setup.request_type, setup.request) != GET_DESCRIPTOR or exchange.status is None:
            return
        key = (setup.value >> 8, setup.value & 0xFF, setup.index)
        if key not in self._descriptors and len(self._descriptors) + len(self.refused) >= MAX_DESCRIPTORS:
            return
        if exchange.status is TransferStatus.STALL and key not in self._descriptors:
            self.refused.add(key)
        data = bytes(exchange.data)
        if exchange.status is TransferStatus.COMPLETED and len(data) > len(self._descriptors.get(key, (b"",))[0]):
            self._descriptors[key] = (data, exchange.moved, setup.length)
            self.refused.discard(key)

    def _take_identity(self) -> None:
        try:
            self.device = descriptors.DeviceDescriptor.unpack(self.descriptor(descriptors.DEVICE))
        except descriptors.DescriptorError:
            cut = self._cut(descriptors.DEVICE)
            self.problems.append(
                f"its device descriptor was cut{_BY_SNAP_LENGTH}: {cut}"
                if cut
                else "its device descriptor was not recorded; record from before it is plugged in, or with"
                " `usbvfiod capture`, which repeats its descriptors"
            )
            return
        for index in range(self.device.num_configurations):
            data, moved, asked = self._descriptors.get((descriptors.CONFIGURATION, index, 0), (b"", 0, 0))
            total = int.from_bytes(data[2:4], "little")
            if len(data) == moved < total <= asked:
                total = moved  # the device has less than it says, which systems take
            if len(data) >= max(total, 9) and _is_one(data[: max(total, 9)]):
                self.configurations.append(data[: max(total, 9)])
        if not self.configurations:
            cut = self._cut(descriptors.CONFIGURATION)
            self.problems.append(
                "no whole configuration descriptor was recorded" + (f"{_BY_SNAP_LENGTH}: {cut}" if cut else "")
            )

    def _cut(self, kind: int) -> str:
        """How much is there of descriptors of a type that were not captured whole; empty if there are none."""
        cut = sorted((key[1], data, moved) for key, (data, moved, _) in self._descriptors.items() if key[0] == kind)
        return ", ".join(
            f"{len(data)} of {moved} bytes" + (f" of number {index}" if index else "")
            for index, data, moved in cut
            if len(data) < moved
        )

    def descriptor(self, kind: int, index: int = 0, language: int | None = 0) -> bytes:
        """The longest answer for a descriptor, empty if there was none; any language's, with None."""
        if language is not None:
            return self._descriptors.get((kind, index, language), (b"",))[0]
        found = [data for (*key, _), (data, _, _) in self._descriptors.items() if key == [kind, index]]
        return max(found, key=len, default=b"")

    def string(self, index: int) -> str:
        """A text of the device, empty if it was not recorded."""
        return descriptors.parse_string(self.descriptor(descriptors.STRING, index, None)) if index else ""

    @cached_property
    def parsed(self) -> tuple[descriptors.Configuration, ...]:
        """The configurations."""
        return tuple(descriptors.Configuration.unpack(data) for data in self.configurations)

    def interfaces(self) -> Iterable[descriptors.Interface]:
        """Those of all configurations, each setting one."""
        return (interface for configuration in self.parsed for interface in configuration.interfaces)

    @property
    def is_hub(self) -> bool:
        """Whether it is one, which cannot be replayed and is mostly the host's own: its descriptors are seldom there,
        but what it is asked about its ports is (USB 2.0 11.24.2)."""
        if self.device is not None:
            return self.device.device_class == CLASS_HUB
        setups = (exchange.setup for exchange in self.traffic.exchanges)
        return any(setup is not None and setup.request_type & 0x7F == _OF_PORTS for setup in setups)

    @property
    def identity(self) -> str:
        """`vid:pid`, as lsusb has it; empty if it was not recorded."""
        return f"{self.device.vendor_id:04x}:{self.device.product_id:04x}" if self.device is not None else ""

    @property
    def name(self) -> str:
        """For people: manufacturer and product, as far as they were recorded."""
        if self.device is None:
            return "hub" if self.is_hub else "unknown device"
        texts = (self.string(self.device.manufacturer), self.string(self.device.product))
        return " ".join(text for text in texts if text) or self.identity

    @property
    def shown(self) -> str:
        """For people, to find it: `3.60 046d:c52b Logitech USB Receiver`."""
        return " ".join(filter(None, (self.traffic.where, self.identity, self.name)))

    # -- speed ---------------------------------------------------------------------------------------------------------

    @property
    def known_speed(self) -> Speed | None:
        """The speed, if the file says it or descriptors allow no other."""
        for speed, bits in BITS_A_SECOND.items():
            if self.traffic.interface.speed == bits:
                return min(speed, Speed.SUPER)
        if self.device is None:
            return None
        if self.device.usb_version >= 0x0300 and self.device.max_packet_size_0 == 9:
            return Speed.SUPER
        for endpoint in (endpoint for interface in self.interfaces() for endpoint in interface.endpoints):
            seen = by_endpoint(endpoint) or self._speed_of_interval(endpoint)
            if seen is not None:
                return seen
        if self.device.max_packet_size_0 in (8, 16, 32):  # 64 is the only one at high speed (USB 2.0 5.5.3)
            return Speed.FULL
        return None

    def _speed_of_interval(self, endpoint: descriptors.Endpoint) -> Speed | None:
        """Linux writes the interval of interrupt transfers in microframes at high speed, else in milliseconds, and
        often the power of two below."""
        interval = endpoint.interval
        if endpoint.type is not TransferType.INTERRUPT or interval < 3:
            return None
        seen = {each.first.interval for each in self.traffic.exchanges if each.first.endpoint == endpoint.address}
        if interval <= 16 and 1 << interval - 1 in seen:
            return Speed.HIGH
        return Speed.FULL if seen & {interval, 1 << interval.bit_length() - 1} else None

    @property
    def speed(self) -> Speed:
        """The speed, full where nothing tells."""
        return self.known_speed or Speed.FULL

    # -- what there is of it -------------------------------------------------------------------------------------------

    def cut(self, wanted: object = None) -> int:
        """How many transfers have data that were not captured; `wanted` chooses among them."""
        return sum(
            exchange.is_cut and (not callable(wanted) or bool(wanted(exchange))) for exchange in self.traffic.exchanges
        )

    @property
    def remarks(self) -> list[str]:
        """What a replay of it lacks."""
        if self.device is None:
            return []
        told = []
        missing = self.device.num_configurations - len(self.configurations)
        if missing and self.configurations:
            cut = self._cut(descriptors.CONFIGURATION)
            told.append(
                f"{missing} of its {self.device.num_configurations} configurations were not recorded"
                + (f" whole{_BY_SNAP_LENGTH}: {cut}" if cut else "")
            )
        if self.known_speed is None:
            told.append("its speed cannot be told; full is taken, unless speed= says otherwise")
        if self.traffic.unmatched:
            told.append(f"{self.traffic.unmatched} completions have no submission: records are missing")
        for address, count in sorted(
            Counter(each.first.endpoint for each in self.traffic.exchanges if each.is_cut).items()
        ):
            told.append(
                f"{count} transfers of endpoint {address:02x} were cut; zeros take the place of what is missing"
            )
        storage = {(each.protocol, each.number) for each in self.interfaces() if each.class_code == CLASS_STORAGE}
        for number in sorted(number for protocol, number in storage if protocol == PROTOCOL_UAS):
            if (PROTOCOL_BULK_ONLY, number) in storage:
                told.append("what was recorded by UAS is replayed by bulk-only")
            else:
                told.append("UAS is not replayed, and the drive has no bulk-only setting")
        return told


def _is_one(data: bytes) -> bool:
    try:
        descriptors.Configuration.unpack(data)
    except descriptors.DescriptorError:
        return False
    return True


def choose(recording: Recording, wanted: str) -> RecordedDevice:
    """The device to replay: the only one that is no hub, or the one that `wanted` names: `3.60`, `046d:c52b` or the
    name of its interface in the file. Raises CaptureError, which names those that there are."""
    devices = [RecordedDevice(traffic) for traffic in recording.devices if traffic.device]
    if wanted:
        found = [
            each
            for each in devices
            if wanted in (each.traffic.where, each.traffic.interface.name) or wanted.lower() == each.identity
        ]
    else:
        found = [each for each in devices if not each.is_hub and each.device is not None]
        if not found and len(devices) == 1:
            found = devices
    if len(found) == 1:
        return found[0]
    there = "; ".join(each.shown for each in devices) or "none"
    if not wanted and found:
        raise CaptureError(f"{len(found)} devices are in it; choose one with device=: {there}")
    what = "no device" if not found else f"{len(found)} devices"
    raise CaptureError(f"{what} {wanted} in it; there are: {there}" if wanted else f"no device can be told: {there}")
