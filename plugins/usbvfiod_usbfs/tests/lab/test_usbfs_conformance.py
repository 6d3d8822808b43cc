"""The backend under the suites that every backend has to pass, on the kernel's gadgets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from usbvfiod_usbfs.backend import UsbfsBackend

from tests.lab.gadgets import Gadget, gadget_zero, keyboard
from usbvfiod_core import Device, Loop
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.testing.conformance import BackendConformance, DeviceConformance, SourceSinkConformance
from usbvfiod_core.testing.conformance.source_sink import Setting


class Plugged:
    """A gadget that the tests of a class share."""

    gadget: Gadget

    @classmethod
    def make_gadget(cls) -> Gadget:
        raise NotImplementedError

    @classmethod
    def setup_class(cls) -> None:
        cls.gadget = cls.make_gadget()
        cls.gadget.bind()

    @classmethod
    def teardown_class(cls) -> None:
        cls.gadget.remove()

    def make_device(self, loop: Loop) -> Device:
        assert self.gadget.device is not None
        return UsbfsBackend().open(str(self.gadget.device.node), HostOptions(), loop)

    def unplug(self, device: Device) -> None:
        self.gadget.unbind()
        self.gadget.bind()


class TestKeyboard(Plugged, DeviceConformance):
    """A device with an endpoint that has nothing to say."""

    @classmethod
    def make_gadget(cls) -> Gadget:
        return Gadget([keyboard()])

    # It has one setting, and neither isochronous endpoints nor streams.
    test_alternate_settings_are_chosen_one_by_one = None  # type: ignore[assignment]
    test_endpoints_are_those_of_the_alternate_setting = None  # type: ignore[assignment]
    test_isochronous_packets_end_in_order = None  # type: ignore[assignment]
    test_isochronous_transfers_are_cancelled = None  # type: ignore[assignment]
    test_streams_wait_and_are_cancelled_one_by_one = None  # type: ignore[assignment]


class TestHighSpeed(Plugged, SourceSinkConformance):
    """Gadget zero."""

    speed = "high"
    submit_limit = 1.0  # the kernel copies OUT data when it is submitted, and QEMU translates every instruction of that

    @classmethod
    def make_gadget(cls) -> Gadget:
        return gadget_zero(cls.speed)

    @pytest.mark.parametrize("length", [1, 8, 63, 64, 65, 512, 1000, 4095, 4096])
    def test_control_data_goes_both_ways(self, setting: Setting, length: int) -> None:
        super().test_control_data_goes_both_ways(setting, length)

    # dummy_hcd has no isochronous endpoints, so gadget zero has no alternate settings; interrupt ones it never has.
    test_isochronous_packets_keep_time = None  # type: ignore[assignment]
    test_data_goes_on_in_every_alternate_setting = None  # type: ignore[assignment]
    test_interrupt_endpoints_give_and_take = None  # type: ignore[assignment]


class TestSuperSpeed(TestHighSpeed):
    speed = "super"


class TestBackend(BackendConformance):
    @pytest.fixture(autouse=True)
    def _plugged(self) -> Iterator[None]:
        with Gadget([keyboard()]) as gadget:
            self.address = str(gadget.bind().node)
            yield

    def make_backend(self) -> UsbfsBackend:
        return UsbfsBackend()
