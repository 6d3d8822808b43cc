"""The guest's xHCI driver: brings a controller up, hands events to those who wait for them (4.2, 4.17)."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from ...pci.interrupts import Mechanism
from ...xhci import spec
from ..bus import Bus
from ..limits import PATIENCE
from .commands import Commands
from .device import UsbDevice
from .errors import DriverError, ProtocolError
from .ports import Port
from .rings import EventRing
from .slot import SlotDriver

DEVICE_CONTEXTS = 256


class GuestDriver(SlotDriver):
    """A guest-side xHCI driver over a `Bus`. `start` brings the controller up; `enumerate` makes a device usable.

    interrupters    event rings to set up, 1 or more; commands and port changes report to the first
    event_segments  sizes in TRBs of each event ring's segments
    command_trbs    size of the command ring; `ring_trbs` and `ring_segments` of transfer rings
    interrupts      False: never enable interrupts, poll as a firmware does
    moderation      IMOD interval, in units of 250 ns
    qword_writes    write 64-bit registers at once instead of low half, high half
    high            True: rings above 4 GiB; False: below; None: wherever there is room
    timeout         seconds that anything may take, of the time of the bus
    strict          False: overlook what a controller leaves out of its contexts, to measure others than ours
    linux           for a doorbell and an interrupt, access exactly the registers that Linux does, in its order,
                    so that measurements count what a guest does; with one interrupter

    It checks the controller on the way and raises `ProtocolError` for what the specification forbids.
    `devices` are the devices by slot id; `port_changes` the ports whose Port Status Change Events came (the owner
    clears it); `other_events` what is neither transfer, command nor port; `lost_interrupts` counts events that were
    found without a signal long after: `late` seconds, which whoever holds the controller up makes more.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        interrupters: int = 1,
        event_segments: Sequence[int] = (256,),
        command_trbs: int = 64,
        ring_trbs: int = 64,
        ring_segments: int = 1,
        interrupts: bool = True,
        moderation: int = 0,
        qword_writes: bool = False,
        high: bool | None = None,
        timeout: float = PATIENCE,
        strict: bool = True,
        linux: bool = False,
    ) -> None:
        super().__init__(
            bus,
            interrupts=interrupts,
            qword_writes=qword_writes,
            interrupters=interrupters,
            timeout=timeout,
            strict=strict,
            ring_trbs=ring_trbs,
            ring_segments=ring_segments,
            linux=linux,
        )
        if linux and (interrupters > 1 or qword_writes):
            raise DriverError("Linux's driver handles one interrupter, and writes registers in halves")
        self.moderation = moderation
        own_vectors = bus.mechanism is Mechanism.MSIX
        if interrupters > self.capabilities.max_interrupters or (own_vectors and interrupters > bus.vectors):
            raise DriverError(f"{interrupters} interrupters, the controller has {self.capabilities.max_interrupters}")
        if len(event_segments) > self.capabilities.erst_max:
            raise DriverError(f"{len(event_segments)} segments, the controller allows {self.capabilities.erst_max}")
        self._event_segments = tuple(event_segments)
        self._command_trbs = command_trbs
        self._high = high
        self._allocations: list[int] = []

    def __enter__(self) -> GuestDriver:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.halt()

    # -- bringing the controller up --------------------------------------------------------------------------------

    def start(self) -> GuestDriver:
        """Reset the controller, set up all structures and run it (4.2). Returns itself."""
        self.reset()
        self.set_up()
        self.run()
        return self

    def reset(self) -> None:
        """Halt and reset the controller (HCRST, 5.4.1), and forget all slots."""
        self.halt()
        self.write_operational(spec.USBCMD, spec.USBCMD_HCRST)
        self._poll_operational(spec.USBCMD, spec.USBCMD_HCRST, 0, "HCRST stays set")
        self._poll_operational(spec.USBSTS, spec.USBSTS_CNR, 0, "Controller Not Ready stays set")
        if not self.read_operational(spec.USBSTS) & spec.USBSTS_HCH:
            raise ProtocolError("the controller is not halted after a reset")
        for device in list(self.devices.values()):
            device.forget()
        self.port_changes.clear()

    def set_up(self) -> None:
        """Give the halted controller its command ring, event rings and device context array."""
        for address in self._allocations:
            self.ram.free(address)
        for ring in self.event_rings:
            ring.free()
        self._allocations.clear()
        self.dcbaa = self._take(DEVICE_CONTEXTS * 8)
        if self.capabilities.scratchpads:
            array = self._take(self.capabilities.scratchpads * 8)
            for index in range(self.capabilities.scratchpads):
                self.ram.write_u64(array + index * 8, self._take(self.capabilities.page_size, page=True))
            self.ram.write_u64(self.dcbaa, array)
        self.commands = self.command_target = Commands(self, self._command_trbs)
        self.write_operational(spec.CONFIG, self.capabilities.max_slots)
        self.write_operational_64(spec.DCBAAP, self.dcbaa)
        self.write_operational_64(spec.CRCR, self.commands.ring.base | spec.CRCR_RCS)
        self.event_rings = [
            EventRing(self.ram, self._event_segments, high=self._high) for _ in range(self._interrupters)
        ]
        for number, ring in enumerate(self.event_rings):
            base = self.interrupter_offset(number)
            self.bus.write(base + spec.ERSTSZ, len(ring.segments))
            self.write_64(base + spec.ERDP, ring.dequeue)
            self.write_64(base + spec.ERSTBA, ring.table)
            self.bus.write(base + spec.IMOD, self.moderation)
            self.bus.write(base + spec.IMAN, spec.IMAN_IP | (spec.IMAN_IE if self.interrupts else 0))

    def run(self) -> None:
        """Set Run/Stop and wait until the controller is not halted any more."""
        self.write_operational(spec.USBCMD, spec.USBCMD_RS | (spec.USBCMD_INTE if self.interrupts else 0))
        self._poll_operational(spec.USBSTS, spec.USBSTS_HCH, 0, "the controller does not run")

    def halt(self) -> None:
        """Clear Run/Stop and wait until the controller is halted (16 ms, 5.4.1.1)."""
        command = self.read_operational(spec.USBCMD)
        self.write_operational(spec.USBCMD, command & ~(spec.USBCMD_RS | spec.USBCMD_INTE))
        self._poll_operational(spec.USBSTS, spec.USBSTS_HCH, spec.USBSTS_HCH, "the controller does not halt")

    # -- devices and ports -----------------------------------------------------------------------------------------

    @property
    def ports(self) -> list[Port]:
        """All root hub ports."""
        return [self.port(port_id) for port_id in range(1, self.capabilities.max_ports + 1)]

    def port(self, port_id: int) -> Port:
        """One root hub port, counted from 1."""
        return Port(self, port_id, self.capabilities.major_of(port_id))

    def connected_ports(self) -> list[Port]:
        """The ports with a device, enumerated or not."""
        return [port for port in self.ports if port.connected]

    def wait_for_port(self, timeout: float | None = None) -> Port:
        """Wait until there is a device that is not enumerated yet; its port."""
        found: list[Port] = []

        def look() -> bool:
            taken = {device.port.port_id for device in self.devices.values()}
            found.extend(port for port in self.connected_ports() if port.port_id not in taken)
            return bool(found)

        self.poll_until(look, "no device connects", timeout)
        return found[0]

    def enumerate(
        self, port_id: int | None = None, *, block_set_address: bool = False, configure: bool = True
    ) -> UsbDevice:
        """Reset the port, enable a slot, address the device, read its descriptors and configure it (4.3).

        Without `port_id` the first device that is not enumerated yet. `block_set_address` addresses the device in two
        steps (BSR). `configure=False` leaves it in the Address state. On a failure the slot is given back.
        """
        port = self.wait_for_port() if port_id is None else self.port(port_id)
        port.wait_connected()
        if port.major == 2 or not port.enabled:
            port.reset()
        port.clear_changes()
        device = UsbDevice(self, port)
        try:
            device.enumerate(block_set_address=block_set_address)
            if configure and device.configurations:
                device.set_configuration(device.configurations[0].value)
        except BaseException:
            device.disable()
            raise
        return device

    # -- own -------------------------------------------------------------------------------------------------------

    def _take(self, length: int, *, page: bool = False) -> int:
        align = self.capabilities.page_size if page else 64
        address = self.ram.allocate(length, align=align, boundary=max(align, 4096), high=self._high)
        self._allocations.append(address)
        return address
