"""The backend under the suite that every backend has to pass, on devices that have what no gadget on dummy_hcd has:
alternate settings, isochronous endpoints, streams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from usbvfiod_usbfs.backend import UsbfsBackend

from tests.lab.machine import Machine
from tests.lab.uevents import Uevents
from tests.lab.usb_device import HostUsbDevice, wait_disk
from tests.lab.usbip import attach
from tests.lab.usbip_devices import INTERRUPT_IN, Fault, SourceSink
from usbvfiod_core import Device, Loop
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.testing.conformance import DeviceConformance


class TestSettings(DeviceConformance):
    """A device over USB/IP, with alternate settings and isochronous endpoints. It cannot be told to halt."""

    can_halt = False
    test_a_halt_stalls_until_it_is_cleared = None  # type: ignore[assignment]
    test_streams_wait_and_are_cancelled_one_by_one = None  # type: ignore[assignment]

    @pytest.fixture(autouse=True)
    def _attached(self) -> Iterator[None]:
        script = SourceSink("high")
        with attach(script) as self.plugged:
            script.faults[INTERRUPT_IN].extend([Fault("drop")] * 100)  # nothing happens on it
            yield

    def make_device(self, loop: Loop) -> Device:
        return UsbfsBackend().open(str(self.plugged.device.node), HostOptions(), loop)

    def unplug(self, device: Device) -> None:
        self.plugged.server.disconnect()


class TestStreams(DeviceConformance):
    """QEMU's UAS disk behind an xHCI controller."""

    machine: Machine
    disk: HostUsbDevice
    can_halt = False
    test_a_halt_stalls_until_it_is_cleared = None  # type: ignore[assignment]
    test_isochronous_packets_end_in_order = None  # type: ignore[assignment]
    test_isochronous_transfers_are_cancelled = None  # type: ignore[assignment]
    test_alternate_settings_are_chosen_one_by_one = None  # type: ignore[assignment]
    test_endpoints_are_those_of_the_alternate_setting = None  # type: ignore[assignment]

    @classmethod
    def setup_class(cls) -> None:
        cls.machine = Machine()
        cls.plug()

    @classmethod
    def teardown_class(cls) -> None:
        cls.machine.close()

    @classmethod
    def plug(cls) -> None:
        image = Path("/exchange/uas.img")
        image.write_bytes(bytes(1 << 20))
        with Uevents() as uevents:
            cls.disk = cls.machine.plug_drive(image, "usb-uas")
            # The host asks it what it is, long after its driver is bound. A command that is cut short leaves an answer.
            wait_disk(uevents, cls.disk)

    def make_device(self, loop: Loop) -> Device:
        return UsbfsBackend().open(str(self.disk.node), HostOptions(), loop)

    def unplug(self, device: Device) -> None:
        self.machine.unplug(self.disk)
        self.plug()
