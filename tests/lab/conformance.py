"""The suites that every backend has to pass, on the kernel's gadgets: what of them the lab's devices have.

class TestKeyboard(KeyboardConformance):
    def make_device(self, loop):
        return MyBackend().open(str(self.plugged.node), MyOptions(), loop)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.lab.gadgets import Gadget, gadget_zero, keyboard
from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core import Device
from usbvfiod_core.testing.conformance import BackendConformance, DeviceConformance, SourceSinkConformance
from usbvfiod_core.testing.conformance.on_bench import OnBench
from usbvfiod_core.testing.conformance.source_sink import Setting


class OnGadget(OnBench):
    """A gadget that the tests of a class share, as binding one takes longer than most of them."""

    gadget: Gadget

    @classmethod
    def make_gadget(cls) -> Gadget:
        """The gadget, not yet bound. Called once for each class."""
        raise NotImplementedError

    @classmethod
    def offered(cls, device: HostUsbDevice) -> contextlib.AbstractContextManager[object]:
        """Who offers the bound gadget to the backend; a backend of this host's devices finds it by itself."""
        return contextlib.nullcontext()

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _plugged(cls) -> Iterator[None]:
        with cls.make_gadget() as cls.gadget, cls.offered(cls.gadget.bind()):
            yield

    @property
    def plugged(self) -> HostUsbDevice:
        """The gadget as the host sees it."""
        assert self.gadget.device is not None
        return self.gadget.device

    def unplug(self, device: Device) -> None:
        self.gadget.unbind()
        self.gadget.bind()


class KeyboardConformance(OnGadget, DeviceConformance):
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


class GadgetZeroConformance(OnGadget, SourceSinkConformance):
    """Gadget zero at `speed`: "full", "high" or "super"."""

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


class HostBackendConformance(BackendConformance):
    """A backend of this host's devices, whose addresses are their nodes; the device is a keyboard."""

    @pytest.fixture(autouse=True)
    def _plugged(self) -> Iterator[None]:
        with Gadget([keyboard()]) as gadget:
            self.address = str(gadget.bind().node)
            yield
