"""What the tests of the controller share: a rig of controller, driver and scripted device, and register names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.driver import Command, Event, GuestDriver, Pipe, Trb, UsbDevice
from usbvfiod_core.testing.driver import trb as make
from usbvfiod_core.testing.fake_device import BULK_IN, BULK_OUT, FakeDevice
from usbvfiod_core.usb.descriptors import Configuration, Interface, bulk_endpoint
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.xhci import registers as reg
from usbvfiod_core.xhci import spec

USBCMD = reg.OPERATIONAL_BASE + spec.USBCMD
USBSTS = reg.OPERATIONAL_BASE + spec.USBSTS
CRCR = reg.OPERATIONAL_BASE + spec.CRCR
DCBAAP = reg.OPERATIONAL_BASE + spec.DCBAAP
CONFIG = reg.OPERATIONAL_BASE + spec.CONFIG
MFINDEX = reg.RUNTIME_BASE + spec.MFINDEX

CHAIN, IOC, ISP = spec.TRB_CH, spec.TRB_IOC, spec.TRB_ISP

STREAMS = 16
"""Streams of each bulk endpoint of `stream_device`."""


def stream_device() -> FakeDevice:
    """A SuperSpeed device with sixteen streams on both bulk endpoints."""
    endpoints = []
    for address in (BULK_IN, BULK_OUT):
        endpoint = bulk_endpoint(address, Speed.SUPER)
        assert endpoint.companion is not None
        endpoints.append(replace(endpoint, companion=replace(endpoint.companion, attributes=4)))
    interface = Interface(0, class_code=0xFF, endpoints=tuple(endpoints))
    return FakeDevice(Speed.SUPER, configurations=[Configuration((interface,))], max_streams=STREAMS)


class Rig:
    """A controller in this process, its driver, and one scripted device, enumerated unless `configure` says how.

    `device` is the device's side, `usb` the driver's; `driver_options` go to the `GuestDriver`.
    """

    def __init__(
        self,
        speed: Speed = Speed.HIGH,
        *,
        bus: DirectBus | None = None,
        device: FakeDevice | None = None,
        configure: bool = True,
        **driver_options: Any,
    ) -> None:
        self.bus = bus if bus is not None else DirectBus()
        self.controller = self.bus.controller
        self.ram = self.bus.ram
        self.driver = GuestDriver(self.bus, **driver_options).start()
        self.device = device if device is not None else FakeDevice(speed)
        self.port_id = self.bus.plug(self.device)
        self.port = self.driver.port(self.port_id)
        self.usb: UsbDevice = self.driver.enumerate(self.port_id, configure=configure)
        self.device.submitted.clear()

    @property
    def slot_id(self) -> int:
        return self.usb.slot_id

    @property
    def bulk_in(self) -> Pipe:
        return self.usb.pipe(BULK_IN)

    @property
    def bulk_out(self) -> Pipe:
        return self.usb.pipe(BULK_OUT)

    @property
    def usbsts(self) -> int:
        return self.bus.read(USBSTS)

    @property
    def running(self) -> bool:
        """HCH is clear and nothing is wrong."""
        return not self.usbsts & (spec.USBSTS_HCH | spec.USBSTS_HSE | spec.USBSTS_HCE | spec.USBSTS_CNR)

    def events(self, interrupter: int = 0) -> list[Event]:
        """Take all events of an interrupter as they are, past the driver's own handling."""
        ring = self.driver.event_rings[interrupter]
        found = []
        while (event := ring.take()) is not None:
            found.append(event)
        self.driver.acknowledge(interrupter)
        return found

    def handle(self) -> None:
        """Let the controller work, and the driver handle the events there are."""
        self.bus.run()
        self.driver.handle_events()

    def submit_command(self, type: int, *, dci: int = 0, **rest: int) -> Command:
        """Put a command to the rig's slot on the ring without waiting for it."""
        return self.driver.commands.submit(make.command(type, slot_id=self.slot_id, dci=dci, **rest))

    def command(self, type: int, *, slot_id: int | None = None, dci: int = 0, **rest: int) -> int:
        """Run a command and return its completion code."""
        slot = self.slot_id if slot_id is None else slot_id
        return self.driver.command(make.command(type, slot_id=slot, dci=dci, **rest)).completion_code

    def works(self) -> None:
        """The device still moves data, in both directions and on endpoint 0."""
        assert self.usb.get_descriptor(1, 0, 18)[:2] == b"\x12\x01"
        self.device.answers(BULK_OUT, 3)
        self.usb.bulk_out(BULK_OUT, b"abc")
        self.device.answers(BULK_IN, b"wxyz")
        assert self.usb.bulk_in(BULK_IN, 64) == b"wxyz"

    def close(self) -> None:
        self.bus.close()


def codes(events: list[Event]) -> list[int]:
    """The completion codes of events."""
    return [event.completion_code for event in events]


def of_type(events: list[Event], type: int) -> list[Event]:
    """The events of one TRB type."""
    return [event for event in events if event.type == type]


__all__ = [
    "BULK_IN",
    "BULK_OUT",
    "CHAIN",
    "CONFIG",
    "CRCR",
    "DCBAAP",
    "IOC",
    "ISP",
    "MFINDEX",
    "USBCMD",
    "USBSTS",
    "DirectBus",
    "Event",
    "FakeDevice",
    "GuestDriver",
    "Pipe",
    "Rig",
    "Speed",
    "Trb",
    "UsbDevice",
    "codes",
    "make",
    "of_type",
    "reg",
    "spec",
]
