"""Our capture beside the kernel's usbmon, of the same traffic: record by record the same but for numbers of buses,
devices and transfers, times, and flags that only the host's driver knows.

The devices are virtual ones, plugged into the lab's Linux over USB/IP (see usbip_virtual.py).
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.lab.test_gadgets import read_exactly
from tests.lab.test_replay import EVENT, keys, where
from tests.lab.usb_device import HostUsbDevice
from tests.lab.usbfs import BULK, ISOCHRONOUS, UsbfsHandle
from tests.lab.usbip import attach
from tests.lab.usbip_virtual import Exported
from tests.lab.usbmon_recording import UsbmonRecording
from tests.unit.capture.rig import Rig, opened, records
from usbvfiod_core.capture.taps import DeviceTap, Interface
from usbvfiod_core.capture.usbmon import COMPLETE, SUBMIT, Record
from usbvfiod_core.options import from_text
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.usb.device import Loop
from usbvfiod_core.usb.requests import SET_ADDRESS, SetupPacket
from usbvfiod_core.usb.transfer import Transfer, TransferType
from usbvfiod_core.virtual.device import VirtualDevice
from usbvfiod_core.virtual.keyboard import open_keyboard
from usbvfiod_core.virtual.loopback import ISOCHRONOUS_IN, ISOCHRONOUS_OUT, LoopbackOptions, open_loopback
from usbvfiod_core.virtual.options import SlowOptions

TAKEN_BACK = (-errno.ENOENT, -errno.ECONNRESET, -errno.ESHUTDOWN)
"""Which of them it is depends on how the host's driver takes a transfer back."""


class Beside:
    """A device that is captured by us while the kernel's usbmon records what it is asked."""

    def __init__(self, directory: Path) -> None:
        self.ours, self.theirs = directory / "ours.pcapng", directory / "theirs.pcapng"
        self.rig = Rig(opened(self.ours))
        self.name = ""

    def capture(self, make: Callable[[Loop], VirtualDevice], use: Callable[[HostUsbDevice], object]) -> None:
        def tapped(loop: Loop) -> VirtualDevice:
            device = make(loop)
            recorder = self.rig.recorder
            tap = DeviceTap(device.speed)
            tap.interfaces.append(Interface(recorder, recorder.interface("it", "it", device.speed), 1))
            below, routes = device.submit, {}

            def submit(transfer: Transfer) -> None:
                key = transfer.endpoint, transfer.type
                if key not in routes:
                    routes[key] = tap(*key, below)
                routes[key](transfer)

            device.submit = submit  # type: ignore[method-assign]
            return device

        with UsbmonRecording(self.theirs), attach(Exported(tapped)) as attachment:
            device = attachment.wait()
            self.name = where(device)
            use(device)
        assert self.rig.finish() == ""
        self.rig.close()

    def transfers(self) -> tuple[dict[int, list[object]], dict[int, list[object]]]:
        """By endpoint, what ours and the kernel's say of each transfer that came back."""
        bus, address = (int(part) for part in self.name.split("."))
        ours = [record for _, record in records(self.ours)]
        theirs = [record for _, record in records(self.theirs) if record.bus == bus and record.device in (0, address)]
        return by_endpoint(ours), by_endpoint(theirs)


def by_endpoint(found: list[Record]) -> dict[int, list[object]]:
    waiting: dict[int, Record] = {}
    made: dict[int, list[object]] = defaultdict(list)
    for record in found:
        if record.kind == SUBMIT:
            waiting[record.id] = record
            continue
        assert record.kind == COMPLETE
        submitted = waiting.pop(record.id, None)
        if submitted is None:
            continue
        if submitted.setup is not None and SetupPacket.unpack(submitted.setup).request == SET_ADDRESS:
            continue  # which the host controller does
        made[submitted.endpoint].append([described(submitted), described(record)])
    return made


def described(record: Record) -> dict[str, object]:
    status = "taken back" if record.status in TAKEN_BACK else record.status
    isochronous = record.type is TransferType.ISOCHRONOUS
    return {
        "type": record.type,
        "status": status,
        "length": record.length,
        "setup": record.setup,
        "data": bytes(record.data),
        "flag": record.data_flag,
        "interval": record.interval,
        "packets": [tuple(each) for each in record.packets] if isochronous else None,
        "errors": record.errors,
    }


def counted(count: int, packet: int) -> bytes:
    """What gadget zero wants to be sent with pattern 1."""
    return bytes(index % packet % 63 for index in range(count))


def test_gadget_zero_beside_usbmon(tmp_path: Path) -> None:
    """Control, bulk and isochronous transfers both ways, and a stall."""

    def use(device: HostUsbDevice) -> None:
        interface = next(device.path.glob("*:*.0"))
        with suppress(OSError):
            (interface / "driver/unbind").write_text(interface.name)
        with UsbfsHandle(device.node) as handle:
            handle.claim(0)
            handle.transfer(BULK, 0x81, 5000)
            handle.transfer(BULK, 0x01, counted(3000, 512))
            handle.claim(0, alternate=1)
            handle.transfer(ISOCHRONOUS, ISOCHRONOUS_IN, 8 * 100, 8)
            handle.transfer(ISOCHRONOUS, ISOCHRONOUS_OUT, counted(8 * 100, 100), 8)
            with suppress(OSError):
                handle.control(0xC0, 0x77, 0, 0, 8)

    beside = Beside(tmp_path)
    options = from_text(LoopbackOptions, {"speed": "high", "pattern": "1"})
    beside.capture(lambda loop: open_loopback(options, loop), use)
    ours, theirs = beside.transfers()
    assert ours.keys() == theirs.keys()
    assert len(ours) == 6, ours.keys()
    for endpoint, expected in theirs.items():
        assert ours[endpoint] == expected, hex(endpoint)
    assert "-32" in str(ours[0x80])


def test_a_keyboard_beside_usbmon(tmp_path: Path) -> None:
    """The kernel's own driver: what it asks, a key's way, and a transfer that is taken back."""
    made: list[VirtualDevice] = []

    def make(loop: Loop) -> VirtualDevice:
        made.append(open_keyboard(SlowOptions(), loop))
        return made[-1]

    def use(device: HostUsbDevice) -> None:
        assert device.drivers == {0: "usbhid"}
        with keys(device) as events:
            made[0].command(["tap", "a"])
            assert len(read_exactly(events, EVENT.size, PATIENCE)) == EVENT.size
        interface = next(device.path.glob("*:1.0"))
        (interface / "driver/unbind").write_text(interface.name)

    beside = Beside(tmp_path)
    beside.capture(make, use)
    ours, theirs = beside.transfers()
    assert ours[0x81] == theirs[0x81]
    assert "taken back" in str(ours[0x81])
    assert ours[0x80] == theirs[0x80]
    assert ours[0] == theirs[0]
