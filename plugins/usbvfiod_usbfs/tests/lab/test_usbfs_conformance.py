"""The backend under the suites that every backend has to pass, on gadgets and on devices over USB/IP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from usbvfiod_usbfs.backend import UsbfsBackend

from tests.lab.gadgets import Gadget, gadget_zero, keyboard
from usbvfiod_core import Device, Loop
from usbvfiod_core.testing.conformance import BackendConformance, DeviceConformance, SourceSinkConformance


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
        return UsbfsBackend().open(str(self.gadget.device.node), {}, loop)


class TestKeyboard(Plugged, DeviceConformance):
    """A device with an endpoint that has nothing to say."""

    can_halt = False

    @classmethod
    def make_gadget(cls) -> Gadget:
        return Gadget([keyboard()])

    test_a_halt_stalls_until_it_is_cleared = None  # type: ignore[assignment]


class HighSpeed(Plugged, SourceSinkConformance):
    """Gadget zero at high speed."""

    speed = "high"
    submit_limit = 1.0  # the kernel copies OUT data when it is submitted, and QEMU translates every instruction of that

    @classmethod
    def make_gadget(cls) -> Gadget:
        return gadget_zero(cls.speed)

    def unplug(self, device: Device) -> None:
        self.gadget.unbind()
        self.gadget.bind()

    # dummy_hcd has no isochronous endpoints, so gadget zero has no alternate settings; it has no interrupt ones at all.
    test_isochronous_packets_keep_time = None  # type: ignore[assignment]
    test_data_goes_on_in_every_alternate_setting = None  # type: ignore[assignment]
    test_interrupt_endpoints_give_and_take = None  # type: ignore[assignment]
    test_control_data_goes_both_ways = None  # type: ignore[assignment]


class TestHighSpeed(HighSpeed):
    pass


class TestSuperSpeed(HighSpeed):
    speed = "super"


class TestFullSpeed(HighSpeed):
    speed = "full"


class TestBackend(BackendConformance):
    @pytest.fixture(autouse=True)
    def _plugged(self) -> Iterator[None]:
        with Gadget([keyboard()]) as gadget:
            self.address = str(gadget.bind().node)
            yield

    def make_backend(self) -> UsbfsBackend:
        return UsbfsBackend()
