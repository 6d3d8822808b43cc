"""The two ways from a guest driver to a controller, behind one small interface.

`DirectBus` has the controller in this process: no socket, a deterministic loop, virtual time. `SocketBus` reaches a
server through a vfio-user client, a memfd and eventfds, as a VMM does. A driver written against `Bus` runs on both.
"""

from __future__ import annotations

import os
import select
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from ..errors import UsbvfiodError
from ..memory import GuestMemory
from ..pci import config_space as pci
from ..pci import vfio
from ..pci.interrupts import Enables, Interrupts, Mechanism
from ..vfio_user import wire
from .client import VfioUserClient, VfioUserError
from .limits import PATIENCE
from .loop import StepLoop
from .memory import GuestRam

if TYPE_CHECKING:
    from ..usb.device import Device
    from ..xhci.controller import Controller

BUSY_RUNS = 64
"""Runs in a row after which a `DirectBus` lets a millisecond pass, so that a ring without end cannot hang a test."""

_MEMORY_MASTER = pci.COMMAND_MEMORY | pci.COMMAND_BUS_MASTER
_IRQS = {Mechanism.INTX: vfio.INTX_IRQ, Mechanism.MSI: vfio.MSI_IRQ, Mechanism.MSIX: vfio.MSIX_IRQ}


class Bus(ABC):
    """What a driver needs: the registers of BAR0, memory that both sides see, interrupts, and time.

    `ram` is the guest's memory, `mechanism` how it is interrupted, `vectors` the number of vectors of that; with fewer
    than there are interrupters they share them. `signals[vector]` counts the signals of a vector that have been seen.
    Signals are taken by `wait_for_interrupt`; until then they are kept. The interrupt pin is unmasked by the first
    access after a signal, as VMMs do it.
    """

    ram: GuestRam
    mechanism: Mechanism
    vectors: int
    signals: list[int]

    def __init__(self, ram: GuestRam, vectors: int, mechanism: Mechanism) -> None:
        self.ram = ram
        self.mechanism = mechanism
        self.vectors = vectors
        self.signals = [0] * vectors
        self._pending = [False] * vectors

    @abstractmethod
    def read(self, offset: int, size: int = 4) -> int:
        """Read `size` bytes (1, 2, 4 or 8) of BAR0."""

    @abstractmethod
    def write(self, offset: int, value: int, size: int = 4) -> None:
        """Write `size` bytes (1, 2, 4 or 8) of BAR0. May be posted; a read is the flush."""

    @abstractmethod
    def together(self) -> AbstractContextManager[None]:
        """`with bus.together():` collects register writes; the controller gets them at once at the end of the block,
        as one drain of the socket, and works only then. No register is read meanwhile."""

    @abstractmethod
    def pause(self, seconds: float) -> None:
        """Let `seconds` pass, as a driver does that polls a register."""

    @abstractmethod
    def clock(self) -> float:
        """Seconds, of the time in which `pause` and timeouts count."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back, the guest's memory included."""

    @abstractmethod
    def end_of_interrupt(self) -> None:
        """Unmask the pin if it has been signalled; every access to a register does."""

    @abstractmethod
    def _await_signal(self, vector: int | None, timeout: float) -> None:
        """Wait until the vector (None: any) is pending, for at most `timeout` seconds."""

    def wait_for_interrupt(self, vector: int, timeout: float) -> bool:
        """Wait for a signal of `vector` and take it; False when there was none within `timeout` seconds."""
        pending = self._pending
        if not pending[vector]:
            self._await_signal(vector, timeout)
            if not pending[vector]:
                return False
        pending[vector] = False
        return True

    def wait_for_any(self, timeout: float) -> list[int]:
        """Wait for a signal of any vector; the vectors that were signalled, all taken."""
        if True not in self._pending:
            self._await_signal(None, timeout)
        vectors = [vector for vector, pending in enumerate(self._pending) if pending]
        for vector in vectors:
            self._pending[vector] = False
        return vectors


class DirectBus(Bus):
    """A controller in this process.

    A register write executes everything that can happen without time passing (inside `together` the end of the
    block does it), so a test may look at a device right after a doorbell. Keyword arguments go to the
    `Controller`. `loop` is a `StepLoop`; with virtual time a wait for nothing ends at once. `interrupts` is what the
    driver enables; `use_interrupts` changes it.
    """

    def __init__(
        self,
        *,
        ram: GuestRam | None = None,
        loop: StepLoop | None = None,
        usb2_ports: int = 8,
        usb3_ports: int = 7,
        interrupters: int = 8,
        context_size: int = 32,
        interrupts: Mechanism = Mechanism.MSIX,
    ) -> None:
        from ..xhci.controller import Controller  # here, so that importing the kit stays cheap

        super().__init__(ram if ram is not None else GuestRam(), interrupters, interrupts)
        self.loop = loop if loop is not None else StepLoop()
        self.memory = GuestMemory()
        self.map_ram()
        self._held = 0
        self._scheduled = False
        self._busy = 0
        self._told = False
        self.interrupts = Interrupts(1 << (interrupters - 1).bit_length())
        self.controller: Controller = Controller(
            self.memory,
            self.interrupts.signal,
            self.loop,
            usb2_ports=usb2_ports,
            usb3_ports=usb3_ports,
            interrupters=interrupters,
            context_size=context_size,
        )
        self.controller.wakeup = self._schedule
        self.controller.bus_master = True
        self.interrupts.bind(self.controller)
        for vector in range(interrupters):
            for index in (vfio.MSI_IRQ, vfio.MSIX_IRQ):
                self.interrupts.assign(index, vector, partial(self._interrupt, vector))
        self.interrupts.assign(vfio.INTX_IRQ, 0, self._pin)
        self.use_interrupts(interrupts)

    def use_interrupts(self, mechanism: Mechanism) -> None:
        """Set the enable bits of configuration space."""
        self.mechanism = mechanism
        msix, msi = mechanism is Mechanism.MSIX, mechanism is Mechanism.MSI
        self.interrupts.configure(Enables(msix=msix, msi=msi, messages=self.vectors, bus_master=True))

    def map_ram(self) -> None:
        """Map the guest's RAM, as a client does by DMA_MAP; it is mapped to begin with."""
        for span in self.ram.spans:
            self.memory.map(span.address, span.size, self.ram.fd, span.offset)

    def plug(self, device: Device, port_id: int | None = None) -> int:
        """Plug a device into a root hub port; returns the port's number, counted from 1."""
        port_id = self.controller.plug(device, port_id)
        self.run()
        return port_id

    def unplug(self, port_id: int) -> None:
        """Pull the device out."""
        self.controller.unplug(port_id)
        self.run()

    def reset(self) -> None:
        """Reset the function, as DEVICE_RESET does. Raises TimeoutError when transfers do not come back."""
        done: list[bool] = []
        self.controller.reset(lambda: done.append(True))
        if not self.loop.run_until(lambda: bool(done), PATIENCE):
            raise TimeoutError("the controller's reset is not done: transfers are still in flight")

    def run(self) -> None:
        """Execute everything that can happen without time passing."""
        self._schedule()
        self.loop.run_ready()

    @contextmanager
    def together(self) -> Iterator[None]:
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self.run()

    def read(self, offset: int, size: int = 4) -> int:
        if not self._held:
            self.loop.run_ready()
        value = self.controller.read(offset, size)
        self.end_of_interrupt()
        return value

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.controller.write(offset, value, size)
        self.end_of_interrupt()
        if not self._held:
            self.run()

    def pause(self, seconds: float) -> None:
        self.loop.advance(seconds)

    def clock(self) -> float:
        return self.loop.time()

    def close(self) -> None:
        self.loop.close()
        self.ram.close()

    def _await_signal(self, vector: int | None, timeout: float) -> None:
        pending = self._pending
        if vector is None:
            self.loop.run_until(lambda: True in pending, timeout)
        else:
            self.loop.run_until(lambda: pending[vector], timeout)

    def _interrupt(self, vector: int) -> None:
        self.signals[vector] += 1
        self._pending[vector] = True

    def _pin(self) -> None:
        self._told = True
        self._interrupt(0)

    def end_of_interrupt(self) -> None:
        if self._told:
            self._told = False
            self.interrupts.unmask()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._busy = 0
            self.loop.call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        if self.controller.run():
            self._scheduled = True
            self._busy += 1
            if self._busy % BUSY_RUNS:
                self.loop.call_soon(self._run)
            else:
                self.loop.call_later(0.001, self._run)


class SocketBus(Bus):
    """A controller behind a vfio-user socket.

    Maps all of `ram`, assigns an eventfd to each vector of the mechanism `interrupts`, enables memory access, bus
    mastering and that mechanism. `vectors` limits how many vectors are used; of MSI it is a power of two. Registers
    are reached as the client's VMM does it (`Vmm`): writes are posted or waited for, areas that the server shares are
    mapped or not. Owns `client` and `ram`: `close` closes them.
    """

    def __init__(
        self,
        client: VfioUserClient,
        ram: GuestRam | None = None,
        *,
        interrupts: Mechanism = Mechanism.MSIX,
        vectors: int | None = None,
    ) -> None:
        if client.version is None:
            client.negotiate()
        count = client.irq_info(_IRQS[interrupts]).count
        if count < 1:
            raise VfioUserError(f"the device has no interrupts of the kind {interrupts.value}")
        count = min(count, vectors or count)
        super().__init__(ram if ram is not None else GuestRam(), count, interrupts)
        self.client = client
        self.posted = client.vmm.posted
        self.areas = client.map_region(vfio.BAR0_REGION) if client.vmm.maps else []
        self._held: list[bytes] | None = None
        self._told = False
        self.eventfds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
        self._pollers = []
        self._any = select.poll()
        for fd in self.eventfds:
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            self._any.register(fd, select.POLLIN)
            self._pollers.append(poller)
        self.map_ram()
        client.assign_eventfds(_IRQS[interrupts], self.eventfds)
        self.enable()

    def map_ram(self) -> None:
        """DMA_MAP every span of the guest's memory."""
        for span in self.ram.spans:
            self.client.dma_map(span.address, span.size, self.ram.fd, span.offset)

    def enable(self) -> None:
        """Switch on memory access, bus mastering and the interrupts in configuration space; needed again after a
        reset."""
        self._config_write(pci.COMMAND, self._config_read(pci.COMMAND, 2) | _MEMORY_MASTER)
        if self.mechanism is Mechanism.MSIX:
            control = self.find_capability(pci.CAPABILITY_MSIX) + 2
            self._config_write(control, self._config_read(control, 2) | pci.MSIX_ENABLE)
        elif self.mechanism is Mechanism.MSI:
            control = self.find_capability(pci.CAPABILITY_MSI) + 2
            allocated = self.vectors.bit_length() - 1 << pci.MSI_ALLOCATED_SHIFT
            self._config_write(control, self._config_read(control, 2) & ~pci.MSI_ALLOCATED | allocated | pci.MSI_ENABLE)

    def use_interrupts(self, mechanism: Mechanism) -> None:
        """Go over to another mechanism, as QEMU does it: what was enabled is disabled, and its eventfds taken away;
        then the new one is enabled, and given the first of them."""
        old, self.mechanism = self.mechanism, mechanism
        for capability, enable in ((pci.CAPABILITY_MSIX, pci.MSIX_ENABLE), (pci.CAPABILITY_MSI, pci.MSI_ENABLE)):
            control = self.find_capability(capability) + 2
            self._config_write(control, self._config_read(control, 2) & ~enable)
        self.client.disable_irqs(_IRQS[old])
        self.vectors = min(len(self.eventfds), self.client.irq_info(_IRQS[mechanism]).count)
        self.enable()
        self.client.assign_eventfds(_IRQS[mechanism], self.eventfds[: self.vectors])

    def find_capability(self, capability: int) -> int:
        """Offset of a PCI capability in configuration space. Raises UsbvfiodError if there is none."""
        offset = self._config_read(pci.CAPABILITIES_POINTER, 1)
        for _ in range(48):  # as many as fit between 0x40 and 0xff
            if not offset:
                break
            if self._config_read(offset, 1) == capability:
                return offset
            offset = self._config_read(offset + 1, 1)
        raise UsbvfiodError(f"the device has no PCI capability {capability:#x}")

    def read(self, offset: int, size: int = 4) -> int:
        for area in self.areas:
            if 0 <= offset - area.offset < len(area.content):
                at = offset - area.offset
                return int.from_bytes(area.content[at : at + size], "little")
        value = int.from_bytes(self.client.region_read(vfio.BAR0_REGION, offset, size), "little")
        self.end_of_interrupt()
        return value

    def write(self, offset: int, value: int, size: int = 4) -> None:
        data = value.to_bytes(size, "little")
        for area in self.areas:
            if 0 <= offset - area.offset < len(area.content):
                at = offset - area.offset
                area.content[at : at + size] = data
                return
        if self._held is not None:
            self._held.append(self.client.posted_write(vfio.BAR0_REGION, offset, data))
        else:
            self.client.region_write(vfio.BAR0_REGION, offset, data, posted=self.posted)
            self.end_of_interrupt()

    @contextmanager
    def together(self) -> Iterator[None]:
        held: list[bytes] = []
        self._held = held
        try:
            yield
        finally:
            self._held = None
        self.client.send_posted(b"".join(held))
        self.end_of_interrupt()

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def clock(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self.client.close()
        self.ram.close()
        for area in self.areas:
            area.content.close()
        for fd in self.eventfds:
            os.close(fd)
        self.eventfds.clear()

    def _await_signal(self, vector: int | None, timeout: float) -> None:
        poller = self._any if vector is None else self._pollers[vector]
        for fd, _ in poller.poll(max(timeout, 0.0) * 1000):
            index = vector if vector is not None else self.eventfds.index(fd)
            self.signals[index] += os.eventfd_read(fd)
            self._pending[index] = True
            self._told = self.mechanism is Mechanism.INTX

    def end_of_interrupt(self) -> None:
        if self._told:
            self._told = False
            self.client.set_irqs(vfio.INTX_IRQ, wire.IRQ_DATA_NONE | wire.IRQ_ACTION_UNMASK, 0, 1)

    def _config_read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.client.region_read(vfio.CONFIG_REGION, offset, size), "little")

    def _config_write(self, offset: int, value: int) -> None:
        self.client.region_write(vfio.CONFIG_REGION, offset, value.to_bytes(2, "little"))
