"""A device slot as the driver sees it, and what the driver has for all of them (4.5)."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ...usb.speed import Speed
from ..bus import Bus
from .commands import Commands
from .contexts import DeviceContext, InputContext
from .controller import ControllerSide
from .errors import ProtocolError
from .ports import Port
from .trb import Event, Trb


class SlotDriver(ControllerSide):
    """The part of `GuestDriver` that slots and their pipes use."""

    commands: Commands

    def __init__(
        self,
        bus: Bus,
        *,
        interrupts: bool,
        qword_writes: bool,
        interrupters: int,
        timeout: float,
        strict: bool,
        ring_trbs: int,
        ring_segments: int,
        linux: bool,
    ) -> None:
        super().__init__(
            bus,
            interrupts=interrupts,
            qword_writes=qword_writes,
            interrupters=interrupters,
            timeout=timeout,
            strict=strict,
            linux=linux,
        )
        self.ring_trbs = ring_trbs
        self.ring_segments = ring_segments
        self.dcbaa = 0
        self.devices: dict[int, Slot] = {}

    def command(self, trb: Trb, timeout: float | None = None) -> Event:
        """Run any command TRB and return its completion event, whatever its code."""
        return self.commands.execute(trb, timeout)


class Slot(ABC):
    """A slot that is enabled, with its contexts. Making one enables it (4.6.3)."""

    def __init__(self, driver: SlotDriver, port: Port) -> None:
        self.driver = driver
        self.port = port
        self.speed = Speed(port.speed)
        self.slot_id = driver.commands.enable_slot()
        if self.slot_id in driver.devices:
            raise ProtocolError(f"Enable Slot returned slot {self.slot_id}, which is in use")
        stride = driver.capabilities.context_size
        self.context = DeviceContext(driver.ram, stride)
        self.input_context = InputContext(driver.ram, stride)
        driver.ram.write_u64(driver.dcbaa + 8 * self.slot_id, self.context.address)
        driver.devices[self.slot_id] = self

    @abstractmethod
    def clear_halt(self, address: int) -> None:
        """Clear the halt of an endpoint at the device."""

    @abstractmethod
    def forget(self) -> None:
        """Give all memory back; the controller does not know the slot any more."""
