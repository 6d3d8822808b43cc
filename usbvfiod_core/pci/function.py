"""The PCI function that a client sees: regions and interrupts by VFIO's indices, over a controller's registers.

BAR0 is 32 KiB: the controller's registers, then a page for the MSI-X table and one for the Pending Bit Array.
Every access that is inside the protocol succeeds, because a guest can cause any of them and a client may wait for ever
for a reply that is an error: what lies outside a region reads as ones, as on a bus where nothing answers, and writes
to it are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from ..shared_area import SharedArea
from .config_space import CONFIG_SIZE, ConfigSpace
from .interrupts import Interrupts, InterruptSource, Mechanism
from .msix import MsixTable
from .state import FunctionState
from .vfio import BAR0_REGION, CONFIG_REGION

BAR0_SIZE: Final = 0x8000
REGISTERS_SIZE: Final = 0x4000
MSIX_TABLE: Final = 0x4000
MSIX_PBA: Final = 0x5000
_PBA_END: Final = 0x6000


class BarHandler(InterruptSource, Protocol):
    """What stands behind BAR0's registers: the xHCI controller, or a test's stand-in."""

    bus_master: bool
    """Set by the function whenever the command register's bit may have changed."""

    def read(self, offset: int, size: int) -> int:
        """`size` is 1, 2, 4 or 8, `offset` a multiple of it and inside the register space. Never raises."""
        ...

    def write(self, offset: int, value: int, size: int) -> None:
        """As `read`. Does no work on guest memory: the client may be waiting for the reply."""
        ...

    @property
    def shared(self) -> SharedArea | None:
        """What of the registers a client may map now."""
        ...

    def share(self, wanted: bool) -> None:
        """A client has come, and is offered a part of the registers to map, or is not. Called in the power-on state."""
        ...

    def reset(self, done: Callable[[], object]) -> None:
        """Go to the power-on state; `done` once no transfer touches guest memory any more."""
        ...

    def quiesce(self, address: int, size: int, done: Callable[[], object]) -> None:
        """`done` once no transfer uses this range of guest memory."""
        ...


class PciFunction:
    """Configuration space, BAR0 and interrupts of one function. `controller` and `interrupts` are bound once, for good.

    A driver sees the mechanisms that `interrupts` offers. Configuration space and the table of MSI-X live in `stores`,
    if they are given.
    """

    def __init__(
        self, controller: BarHandler, interrupts: Interrupts, stores: tuple[memoryview, memoryview] | None = None
    ) -> None:
        config, table = (None, None) if stores is None else stores
        self.controller: Final = controller
        self.interrupts: Final = interrupts
        self.config: Final = ConfigSpace(
            bar_size=BAR0_SIZE,
            vectors=interrupts.vectors,
            table=MSIX_TABLE,
            pba=MSIX_PBA,
            mechanisms=interrupts.mechanisms,
            store=config,
        )
        self._table: Final = MsixTable(interrupts.vectors if Mechanism.MSIX in interrupts.mechanisms else 0, table)
        interrupts.bind(controller)
        controller.bus_master = False

    # -- regions ----------------------------------------------------------------------------------------------------

    @staticmethod
    def region_size(region: int) -> int:
        """Bytes of a region; 0 for the BARs, ROM and VGA regions that are not there."""
        if region == BAR0_REGION:
            return BAR0_SIZE
        return CONFIG_SIZE if region == CONFIG_REGION else 0

    def shared_area(self, region: int) -> SharedArea | None:
        """What of a region a client may map."""
        return self.controller.shared if region == BAR0_REGION else None

    def read_region(self, region: int, offset: int, count: int) -> bytes:
        """`count` bytes of a region. What lies outside it reads as ones."""
        inside = min(max(self.region_size(region) - offset, 0), count)
        if not inside:
            return b"\xff" * count
        data = self._read_config(offset, inside) if region == CONFIG_REGION else self._read_bar0(offset, inside)
        return data if inside == count else data.ljust(count, b"\xff")

    def write_region(self, region: int, offset: int, data: bytes) -> None:
        """Write to a region. What lies outside it is dropped."""
        inside = self.region_size(region) - offset
        if inside <= 0 or not data:
            return
        data = data[:inside]
        if region == CONFIG_REGION:
            self.config.write(offset, data)
            enables = self.config.enables
            self.controller.bus_master = enables.bus_master
            self.interrupts.configure(enables)
        else:
            self._write_bar0(offset, data)

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self, done: Callable[[], object]) -> None:
        """DEVICE_RESET: registers of configuration space, MSI-X's table and the controller as at power-on.

        What belongs to the client stays: DMA maps and interrupt targets. `done` comes when no transfer touches guest
        memory any more, inside this call or later.
        """
        self.config.reset()
        self._table.reset()
        self.interrupts.reset()
        self.controller.bus_master = False
        self.controller.reset(done)

    def quiesce(self, address: int, size: int, done: Callable[[], object]) -> None:
        """Before DMA_UNMAP: `done` once no transfer uses the range, inside this call or later."""
        self.controller.quiesce(address, size, done)

    # -- going on in another process --------------------------------------------------------------------------------

    def state(self) -> FunctionState:
        """All that another process needs to go on with the function, beside the controller and what is the client's.
        The controller stands still."""
        state = FunctionState(self.config.saved_state(), msix_table=self._table.saved_state())
        self.interrupts.saved_state(state)
        return state

    def restore(self, state: FunctionState) -> None:
        """Be the function of this state, in the place of one that nobody has used yet but for assigning the client's
        interrupts. Nobody is told anything before the controller goes on. Raises StateError."""
        self.config.take_over(state.config)
        self._table.take_over(state.msix_table)
        enables = self.config.enables
        self.controller.bus_master = enables.bus_master
        self.interrupts.take_over(state, enables)

    # -- own --------------------------------------------------------------------------------------------------------

    def _read_config(self, offset: int, count: int) -> bytes:
        self.config.set_interrupt_status(self.interrupts.pin_asserted)
        return self.config.read(offset, count)

    def _read_bar0(self, offset: int, count: int) -> bytes:
        data = b""
        end = offset + count
        if offset < REGISTERS_SIZE:
            stop = min(end, REGISTERS_SIZE)
            read = self.controller.read
            data = b"".join(read(at, size).to_bytes(size, "little") for at, size in _pieces(offset, stop))
            offset = stop
        if offset < end and offset < MSIX_PBA:
            stop = min(end, MSIX_PBA)
            data += self._table.read(offset - MSIX_TABLE, stop - offset)
            offset = stop
        if offset < end and offset < _PBA_END:
            stop = min(end, _PBA_END)
            pending = self.interrupts.pending_messages.to_bytes(_PBA_END - MSIX_PBA, "little")
            data += pending[offset - MSIX_PBA : stop - MSIX_PBA]
            offset = stop
        return data + bytes(end - offset)

    def _write_bar0(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if offset < REGISTERS_SIZE:
            write = self.controller.write
            for at, size in _pieces(offset, min(end, REGISTERS_SIZE)):
                write(at, int.from_bytes(data[at - offset : at - offset + size], "little"), size)
        table = data[max(MSIX_TABLE - offset, 0) : max(MSIX_PBA - offset, 0)]
        if table:
            self._table.write(max(offset - MSIX_TABLE, 0), table)


def _pieces(offset: int, end: int) -> list[tuple[int, int]]:
    """Split an access into aligned ones of a width that registers have: 8 only if it is one, else 4, 2 and 1."""
    if end - offset == 8 and not offset & 7:
        return [(offset, 8)]
    pieces = []
    while offset < end:
        size = 4
        while offset & (size - 1) or end - offset < size:
            size >>= 1
        pieces.append((offset, size))
        offset += size
    return pieces
