"""The backend under the suites that every backend has to pass, against the kernel's usbip-host and Debian's usbipd."""

from __future__ import annotations

import pytest
from usbvfiod_usbip.backend import UsbipBackend
from usbvfiod_usbip.options import UsbipOptions

from tests.lab.exporting import Exported, Host
from tests.lab.gadgets import Gadget, keyboard
from usbvfiod_core import Device, Loop
from usbvfiod_core.testing.conformance import DeviceConformance

pytestmark = pytest.mark.long
"""Against a server in Python it is a test of every run: tests/unit/test_usbip_conformance.py."""


class Exporting:
    """A gadget that the tests of a class share, exported."""

    host: Host
    gadget: Gadget
    exported: Exported

    @classmethod
    def make_gadget(cls) -> Gadget:
        raise NotImplementedError

    @classmethod
    def setup_class(cls) -> None:
        cls.host = Host()
        cls.gadget = cls.make_gadget()
        cls.exported = cls.host.export(cls.gadget.bind())

    @classmethod
    def teardown_class(cls) -> None:
        cls.exported.__exit__(None, None, None)
        cls.gadget.remove()
        cls.host.__exit__(None, None, None)

    def make_device(self, loop: Loop) -> Device:
        self.exported.wait_free()  # the one before may still be on its way back
        return UsbipBackend().open(self.exported.address, UsbipOptions(), loop)

    def unplug(self, device: Device) -> None:
        self.gadget.unbind()
        self.gadget.bind()
        self.exported.bind()


class TestKeyboard(Exporting, DeviceConformance):
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
