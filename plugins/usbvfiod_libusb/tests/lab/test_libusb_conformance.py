"""The backend under the suites that every backend has to pass, on the kernel's gadgets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from usbvfiod_libusb.backend import LibusbBackend

from tests.lab.gadgets import Gadget, gadget_zero, keyboard
from usbvfiod_core import Device, Loop
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.testing.conformance import BackendConformance, DeviceConformance, SourceSinkConformance
from usbvfiod_core.testing.conformance.source_sink import Setting


class Plugged:
    """A gadget that the tests of a class share."""

    gadget: Gadget

    def make_device(self, loop: Loop) -> Device:
        assert self.gadget.device is not None
        return LibusbBackend().open(str(self.gadget.device.node), HostOptions(), loop)


class TestKeyboard(Plugged, DeviceConformance):
    """A device with an endpoint that has nothing to say. It has no other settings, and the backend has no streams."""

    test_alternate_settings_are_chosen_one_by_one = None  # type: ignore[assignment]
    test_endpoints_are_those_of_the_alternate_setting = None  # type: ignore[assignment]
    test_isochronous_packets_end_in_order = None  # type: ignore[assignment]
    test_isochronous_transfers_are_cancelled = None  # type: ignore[assignment]
    test_streams_wait_and_are_cancelled_one_by_one = None  # type: ignore[assignment]

    def unplug(self, device: Device) -> None:
        self.gadget.unbind()
        self.gadget.bind()

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _plugged(cls) -> Iterator[None]:
        with Gadget([keyboard()]) as cls.gadget:
            cls.gadget.bind()
            yield


class HighSpeed(Plugged, SourceSinkConformance):
    """Gadget zero. What it does not have on dummy_hcd (isochronous and interrupt endpoints, and so settings) is tried
    on a device over USB/IP in test_libusb_transfers.py."""

    speed = "high"
    submit_limit = 1.0  # the kernel copies OUT data when it is submitted, and QEMU translates every instruction of that

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _plugged(cls) -> Iterator[None]:
        with gadget_zero(cls.speed) as cls.gadget:
            cls.gadget.bind()
            yield

    def unplug(self, device: Device) -> None:
        self.gadget.unbind()
        self.gadget.bind()

    @pytest.mark.parametrize("length", [1, 8, 63, 64, 65, 512, 1000, 4095, 4096])
    def test_control_data_goes_both_ways(self, setting: Setting, length: int) -> None:
        super().test_control_data_goes_both_ways(setting, length)

    test_isochronous_packets_keep_time = None  # type: ignore[assignment]
    test_data_goes_on_in_every_alternate_setting = None  # type: ignore[assignment]
    test_interrupt_endpoints_give_and_take = None  # type: ignore[assignment]


class TestHighSpeed(HighSpeed):
    pass


@pytest.mark.long
class TestSuperSpeed(HighSpeed):
    speed = "super"


@pytest.mark.long
class TestFullSpeed(HighSpeed):
    speed = "full"


class TestBackend(BackendConformance):
    @pytest.fixture(autouse=True)
    def _plugged(self) -> Iterator[None]:
        with Gadget([keyboard()]) as gadget:
            self.address = str(gadget.bind().node)
            yield

    def make_backend(self) -> LibusbBackend:
        return LibusbBackend()
