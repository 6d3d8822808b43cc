"""`virtual:replay`: a device made of a recording; its options are `ReplayOptions`.

What it is comes from the recorded descriptors, and configurations, settings and halts go as the driver of now wants.
All else is answered as it was recorded:

    control requests   by the request, in order; the last answer again when there are no more (`replay_requests`)
    bulk and interrupt data of an IN endpoint in order, when as much has been sent as the recorded driver had
                       sent before; what is sent is compared (`replay_pipes`)
    isochronous        packet by packet, one a service interval
    bulk-only drives   command by command, whatever their order; reads of any blocks that were read (`replay_drive`)

What was never recorded is answered by a stall, and the log names what comes closest to it. A reset of the port begins
from the start.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..capture.recorded_device import CLASS_STORAGE, PROTOCOL_BULK_ONLY, PROTOCOL_UAS, RecordedDevice, choose
from ..capture.recording import Recording, read_recording
from ..errors import CaptureError, ConfigError
from ..host.descriptor_filter import without_settings
from ..options import SettingError, option
from ..state import pack, unpack
from ..usb import descriptors, requests
from ..usb.descriptors import Configuration, DeviceDescriptor, Interface
from ..usb.device import DeviceEvents, Loop
from ..usb.handover import CannotHandOver
from ..usb.requests import SetupPacket
from ..usb.speed import Speed
from ..usb.transfer import Transfer, TransferType
from .bulk_only import BULK_ONLY_RESET
from .device import VirtualDevice
from .endpoint import VirtualEndpoint
from .files import open_file
from .isochronous import IsochronousSchedule
from .options import SPEEDS, VirtualOptions
from .replay_drive import RecordedDrive, ReplayedDrive
from .replay_pipes import Pace, Packets, Pipes
from .replay_requests import Requests
from .replay_state import ReplayState

_log = logging.getLogger(__name__)

_STORAGE = (CLASS_STORAGE, PROTOCOL_BULK_ONLY)
_AT_ONCE = 1 << 20
"""Bytes of a recording that are read at once. Each read gives Python's lock away and takes it back at once; a thread
that waits for it begins its 5 ms anew each time, and with the usual 8 KiB the guest's waited for half a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions(VirtualOptions):
    """The options of `virtual:replay`. `serial` replaces the recorded serial number."""

    capture: Path = option(help="A recording, pcapng or pcap.", opens=lambda options: os.O_RDONLY)
    device: str = option("", "Which of its devices: 3.60 (bus and address), 046d:c52b, or an interface's name.")
    """Needed if there are several beside hubs."""
    timing: Literal["order", "real"] = option(
        "order", "When data come: at once in their order, or as they were recorded."
    )
    speed: Literal["auto", "full", "high", "super"] = option("auto", "How it is connected; auto is as it was recorded.")


class Replay(VirtualDevice):
    """A device that does what a recorded one did; see the module."""

    def __init__(
        self,
        recorded: RecordedDevice,
        loop: Loop,
        *,
        speed: Speed | None = None,
        serial: str = "",
        real_time: bool = False,
    ) -> None:
        assert recorded.device is not None
        self.recorded = recorded
        self.serial = serial
        name = f"{recorded.name} (replayed)"
        self.drives = _drives(name, recorded)
        self._raw = self._configurations()
        super().__init__(speed or recorded.speed)
        self.name = name
        self.device_descriptor: DeviceDescriptor = recorded.device
        self._requests = Requests(self.name, recorded)
        self._pipes = Pipes(self.name, recorded, Pace(loop, self.serve, real_time=real_time), self.drives)
        self._packets = Packets(recorded)
        exchanges = recorded.traffic.exchanges
        self._extent = len(exchanges), sum(len(each.data) for each in exchanges)
        self._loop = loop
        self.schedule = IsochronousSchedule(self.speed, loop, self._interval_over)

    def _configurations(self) -> list[bytes]:
        """As the driver sees them. A drive does not offer UAS beside bulk-only."""
        hidden = {
            (interface.number, interface.alternate)
            for interface in self.recorded.interfaces()
            if (interface.class_code, interface.protocol) == (CLASS_STORAGE, PROTOCOL_UAS)
            and interface.number in self.drives
        }
        raw = self.recorded.configurations
        return [without_settings(each, lambda *key: key in hidden) for each in raw] if hidden else raw

    def describe(self, speed: Speed) -> list[Configuration]:
        return [Configuration.unpack(each) for each in self._raw]

    @property
    def control_packet_size(self) -> int:
        return super().control_packet_size if self.speed.is_usb3 else self.device_descriptor.max_packet_size_0 or 64

    def attach(self, events: DeviceEvents) -> None:
        super().attach(events)
        self.schedule.attach(events)

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        self.schedule.forget(address for address in self._paced if address not in self.endpoints)
        if self.configuration is None:
            self._requests.rewind()
            self._pipes.rewind()
            for drive in self.drives.values():
                drive.rewind()
        for endpoint in endpoints:
            if endpoint.descriptor.type is TransferType.ISOCHRONOUS:
                self.schedule.forget((endpoint.address,))
                self._packets.rewind(endpoint.address)
        self._connect()

    @property
    def _paced(self) -> set[int]:
        return {
            endpoint.address
            for interface in self.recorded.interfaces()
            for endpoint in interface.endpoints
            if endpoint.type is TransferType.ISOCHRONOUS
        }

    def _connect(self) -> None:
        """Tell drives and pipes which endpoints there are."""
        current = [
            each for number, alternate in self.alternates.items() if (each := self._interface(number, alternate))
        ]
        for number, drive in self.drives.items():
            drive.connect({}, None)
            for interface in current:
                if interface.number == number and (interface.class_code, interface.protocol) == _STORAGE:
                    drive.connect(self.endpoints, interface)
        self._pipes.connect(self.endpoints)

    # -- requests ------------------------------------------------------------------------------------------------------

    def standard_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        if setup.request == requests.GET_DESCRIPTOR and setup.request_type == requests.DIRECTION_IN:
            return self._descriptor(setup)
        if self._requests.refuses(setup):
            return None
        answer = super().standard_request(setup, data)
        if answer is not None:
            self._requests.passed(setup)
        return answer

    def _descriptor(self, setup: SetupPacket) -> bytes | None:
        kind, index = setup.value >> 8, setup.value & 0xFF
        if kind == descriptors.DEVICE and index == 0:
            return self.device_descriptor.pack()
        if kind == descriptors.CONFIGURATION:
            recorded = self.recorded.descriptor(kind, index)
            for raw, shown in zip(self.recorded.configurations, self._raw, strict=True):
                if raw == recorded[: len(raw)]:
                    return shown
            return None
        if kind == descriptors.STRING:
            if self.serial and index and index == self.device_descriptor.serial_number:
                return descriptors.string_descriptor(self.serial)
            return (
                self.recorded.descriptor(kind, index, setup.index)
                or self.recorded.descriptor(kind, index, None)
                or None
            )
        return self.recorded.descriptor(kind, index, setup.index) or None

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        number = setup.index & 0xFF
        if (setup.request_type, setup.request) == BULK_ONLY_RESET and number in self.drives:
            self.drives[number].forget()
            return b""
        return self._requests.answer(setup, data)

    # -- transfers -----------------------------------------------------------------------------------------------------

    def process(self, endpoint: VirtualEndpoint) -> None:
        if endpoint.descriptor.type is TransferType.ISOCHRONOUS:
            self.schedule.process(endpoint)
            return
        for drive in self.drives.values():
            if drive.process(endpoint):
                return
        for other in self._pipes.process(endpoint):
            self.serve(other)

    def _interval_over(self, endpoint: VirtualEndpoint, transfer: Transfer) -> None:
        self._packets.move(endpoint.address, transfer)

    # -- going on in another process -----------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        state = ReplayState(
            *self._extent,
            self._requests.state(),
            self._pipes.state(),
            self._packets.state(),
            self.schedule.state(),
            {str(number): drive.state() for number, drive in self.drives.items()},
        )
        return pack(state)

    def take_own_state(self, state: dict[str, Any]) -> None:
        given = unpack(ReplayState, state)
        drives = {str(number): drive for number, drive in self.drives.items()}
        if (given.exchanges, given.bytes) != self._extent or set(given.drives) != set(drives):
            raise CannotHandOver(f"{self.name}: its recording is not what it was when it was opened")
        self._requests.take_state(given.requests)
        self._pipes.take_state(given.pipes)
        self._packets.take_state(given.packets)
        self.schedule.take_state(given.schedule)
        for number, drive in drives.items():
            drive.take_state(given.drives[number])

    def forgotten(self) -> None:
        self.schedule.close()
        self._pipes.close()

    def closed(self) -> None:
        self.forgotten()
        self._loop.run_blocking(self._let_go, lambda result: None)

    def _let_go(self) -> None:
        """Of all that was recorded, in a thread; nobody asks for it any more."""
        self._requests.let_go()
        self._pipes.let_go()
        self._packets.let_go()
        for drive in self.drives.values():
            drive.let_go()


def _is_uas(interface: Interface, number: int) -> bool:
    return interface.number == number and (interface.class_code, interface.protocol) == (CLASS_STORAGE, PROTOCOL_UAS)


def _drives(name: str, recorded: RecordedDevice) -> dict[int, ReplayedDrive]:
    """By interface number."""
    found: dict[int, ReplayedDrive] = {}
    for interface in recorded.interfaces():
        if (interface.class_code, interface.protocol) == _STORAGE and interface.number not in found:
            uas = next((each for each in recorded.interfaces() if _is_uas(each, interface.number)), None)
            drive = RecordedDrive(interface, recorded.traffic, uas)
            if drive.commands:
                found[interface.number] = ReplayedDrive(name, drive)
    return found


@contextmanager
def read_replay(options: ReplayOptions) -> Iterator[tuple[Recording, RecordedDevice]]:
    """The recording and the device in it that `options` name; its traffic is let go of when leaving `with`. Raises
    SettingError."""
    what = f"capture {options.capture}"
    try:
        with os.fdopen(open_file(str(options.capture), os.O_RDONLY, what=what), "rb", _AT_ONCE) as file:
            recording = read_recording(file)
    except (OSError, ValueError) as error:
        raise SettingError("capture", f"{what} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except (CaptureError, ConfigError) as error:
        raise SettingError("capture", f"{what} cannot be replayed: {error}") from None
    try:
        yield recording, _chosen(recording, options, what)
    finally:
        recording.let_go()


def _chosen(recording: Recording, options: ReplayOptions, what: str) -> RecordedDevice:
    """Raises SettingError."""
    try:
        recorded = choose(recording, options.device)
    except (CaptureError, ConfigError) as error:
        raise SettingError("capture", f"{what} cannot be replayed: {error}") from None
    problems = list(recorded.problems)
    if recorded.is_hub:
        problems.append("it is a hub, and what is plugged in there is not in its recording")
    if problems:
        raise SettingError("capture", f"{what} cannot be replayed: {recorded.shown}: {'; '.join(problems)}")
    assert recorded.device is not None
    if options.serial and not recorded.device.serial_number:
        raise SettingError("serial", f"{recorded.shown} has no serial number, so it cannot have another one")
    return recorded


def check_replay(options: ReplayOptions) -> Speed:
    """What would be wrong with the recording that `options` name; the device's speed. Raises SettingError."""
    with read_replay(options) as (_, recorded):
        return SPEEDS.get(options.speed) or recorded.speed


def open_replay(options: ReplayOptions, loop: Loop) -> Replay:
    """Open `virtual:replay`. Raises ConfigError."""
    with read_replay(options) as (recording, recorded):
        device = Replay(
            recorded,
            loop,
            speed=SPEEDS.get(options.speed),
            serial=options.serial,
            real_time=options.timing == "real",
        )
        for remark in (*recording.remarks, *recorded.remarks):
            _log.warning("%s: %s", device.name, remark)
        return device
