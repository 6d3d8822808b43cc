"""What `usbvfiod plugins new --kind backend` writes: a device with requests, an interrupt endpoint and words."""

from __future__ import annotations

CODE = '''\
"""The backend `$name`: a panel with eight lamps and a button, in plain Python.

A guest switches the lamps by vendor requests, and reads the button from an interrupt endpoint. On the host,
`usbvfiod send NAME press` presses the button, and `usbvfiod send NAME lamps` shows what is lit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from usbvfiod_core import Backend, Device, DeviceInfo, Loop, SetupPacket, Speed, TransferStatus, hookimpl, option
from usbvfiod_core.usb.descriptors import Configuration, Interface, interrupt_endpoint
from usbvfiod_core.virtual.device import VirtualDevice, Word
from usbvfiod_core.virtual.endpoint import VirtualEndpoint

usbvfiod_requires = ">=1,<2"

LAMPS = 8
GET_LAMPS = (0xC0, 1)
"""bmRequestType and bRequest: a vendor request that moves data in, a byte with a bit for each lamp."""
SET_LAMP = (0x40, 2)
"""A vendor request without data: wIndex is the lamp, and wValue whether it is lit."""
BUTTON = 0x81
"""The endpoint that has a byte each time the button is pressed: how often it was, modulo 256."""


class Panel(VirtualDevice):
    """Lamps and a button; `lit` are the lamps that are lit at first."""

    manufacturer = "Example"
    product = "Panel"
    product_id = 0x0001  # of vendor_id 0x1209, where these numbers are for experiments

    def __init__(self, lit: int = 0) -> None:
        super().__init__(Speed.HIGH)
        self.lit = lit
        self.pressed = 0
        self.unread: deque[int] = deque(maxlen=16)

    def describe(self, speed: Speed) -> list[Configuration]:
        """What the guest sees of it."""
        button = interrupt_endpoint(BUTTON, speed, packet_size=8, period=10)
        return [Configuration((Interface(0, class_code=0xFF, endpoints=(button,)),))]

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        """The guest's own requests. None is a STALL."""
        request = (setup.request_type, setup.request)
        if request == GET_LAMPS:
            return bytes([self.lit])
        if request == SET_LAMP and setup.index < LAMPS:
            lamp = 1 << setup.index
            self.lit = self.lit | lamp if setup.value else self.lit & ~lamp
            return b""
        return None

    def process(self, endpoint: VirtualEndpoint) -> None:
        """The guest reads the endpoint. What is left in the queue waits until the button is pressed."""
        while endpoint.queue and self.unread:
            transfer = endpoint.queue.popleft()
            transfer.complete(TransferStatus.COMPLETED, transfer.write(bytes([self.unread.popleft()])))

    def words(self) -> Mapping[str, Word]:
        """What `usbvfiod send` can say to it."""
        return {
            "press": Word("", self.press, most=0),
            "lamps": Word("", lambda: f"{self.lit:0{LAMPS}b}", most=0),
        }

    def press(self) -> None:
        """Press the button."""
        self.pressed = (self.pressed + 1) % 256
        self.unread.append(self.pressed)
        if BUTTON in self.endpoints:  # else the guest has not configured the device
            self.serve(self.endpoints[BUTTON])


@dataclass(frozen=True)
class PanelOptions:
    """What may be said of a panel: `$name:panel?lit=5`."""

    lit: int = option(0, "The lamps that are lit at first, a bit for each.", lowest=0, highest=2**LAMPS - 1)


class $cls(Backend):
    """Makes panels; `kinds` says what kinds of devices it has, and the options of each."""

    name = "$name"
    kinds = MappingProxyType({"panel": PanelOptions})

    def list_devices(self) -> list[DeviceInfo]:
        return [DeviceInfo(self.name, "panel", Panel.vendor_id, Panel.product_id, "Example Panel", speed=Speed.HIGH)]

    def open(self, address: str, options: PanelOptions, loop: Loop) -> Device:
        return Panel(options.lit)


@hookimpl
def usbvfiod_register_backends(register: Callable[[Backend], None]) -> None:
    """Called by usbvfiod."""
    register($cls())
'''

TESTS = '''\
"""The backend and its device, in the hands of a guest's driver and of usbvfiod's conformance tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from usbvfiod_core import Backend, ConfigError, Device, Loop
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.conformance import BackendConformance, DeviceConformance
from usbvfiod_core.testing.driver import DriverError, UsbDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.loop import StepLoop

$imports


def test_a_guest_switches_lamps(usb_plug: Callable[[Device], UsbDevice]) -> None:
    panel = Panel(lit=0b1000)
    usb = usb_plug(panel)
    assert usb.descriptor is not None
    assert usb.get_string(usb.descriptor.product) == "Panel"
    usb.control_out(*SET_LAMP, 1, 0)
    assert usb.control_in(*GET_LAMPS, 0, 0, 1) == bytes([0b1001])
    usb.control_out(*SET_LAMP, 0, 3)
    assert panel.command(["lamps"]) == "00000001"
    with pytest.raises(DriverError, match="Stall"):
        usb.control_out(*SET_LAMP, 1, LAMPS)


def test_a_guest_reads_the_button(usb_guest: Guest) -> None:
    panel = Panel()
    panel.command(["press"])
    usb = usb_guest.plug(panel)
    assert usb.interrupt_in(BUTTON, 8) == b"\\1"
    reading = usb.submit_in(BUTTON, 8)
    panel.command(["press"])
    assert reading.result() == b"\\2"


@pytest.mark.parametrize("lit", ["x", "-1", "", "256"])
def test_lamps_that_it_does_not_have(lit: str) -> None:
    with pytest.raises(ConfigError, match="lit is a whole number from 0 to 255"):
        open_device($cls(), "panel", {"lit": lit}, StepLoop())


class TestDevice(DeviceConformance):
    """The contract that every device has with usbvfiod."""

    idle_endpoint = BUTTON  # has no data unless somebody presses it

    def make_device(self, loop: Loop) -> Device:
        return Panel()


class TestBackend(BackendConformance):
    """The contract that every backend has with usbvfiod."""

    address = "panel"

    def make_backend(self) -> Backend:
        return $cls()
'''
