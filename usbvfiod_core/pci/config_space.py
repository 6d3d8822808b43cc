"""PCI configuration space of the xHCI function: a type 0 header, MSI-X, MSI, and xHCI's own three bytes.

Sections: PCI Local Bus 3.0 6.1 (header), 6.2.5 (base addresses), 6.8.1 (MSI), 6.8.2 (MSI-X); xHCI 1.2 5.2 (what it
adds).
A register is a slice of 4096 bytes, and what a driver may change in it is a second slice: sizing a BAR (write ones,
read back) comes out of the mask. The values of the BARs are stored and never used: some clients leave them all ones.

It is a conventional PCI function on purpose: no PCI Express and no power management capability. Both clients and all
guests take it anywhere in the topology, there is no link or power state to get wrong, and reset comes as a message.
So a guest that sleeps leaves the function in D0 and its state alone, unless the machine is reset on the way back (QEMU
after S3), and it can reset the function only by its bus, behind a PCI Express port that has nothing else.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from ..state import require
from .interrupts import ALL, Enables, Mechanism

CONFIG_SIZE: Final = 4096

VENDOR_ID: Final = 0x1B36
DEVICE_ID: Final = 0x000D
REVISION_ID: Final = 0x01
CLASS_CODE: Final = 0x0C0330
"""Serial bus controller, USB, xHCI."""
SUBSYSTEM_VENDOR_ID: Final = 0x1AF4
SUBSYSTEM_ID: Final = 0x1100

COMMAND: Final = 0x04
COMMAND_IO: Final = 0x0001
COMMAND_MEMORY: Final = 0x0002
COMMAND_BUS_MASTER: Final = 0x0004
COMMAND_MWI: Final = 0x0010
COMMAND_PARITY: Final = 0x0040
COMMAND_SERR: Final = 0x0100
COMMAND_INTX_DISABLE: Final = 0x0400
STATUS: Final = 0x06
STATUS_INTERRUPT: Final = 0x0008
"""The function wants to assert its pin, whether or not the command register lets it."""
STATUS_CAPABILITIES: Final = 0x0010
CACHE_LINE_SIZE: Final = 0x0C
LATENCY_TIMER: Final = 0x0D
BAR0: Final = 0x10
BAR_MEMORY_64: Final = 0x4
EXPANSION_ROM: Final = 0x30
CAPABILITIES_POINTER: Final = 0x34
INTERRUPT_LINE: Final = 0x3C
INTERRUPT_PIN: Final = 0x3D
INTERRUPT_PIN_A: Final = 1

SBRN: Final = 0x60
"""Serial Bus Release Number (xHCI 5.2.3): 0x30, USB 3."""
FLADJ: Final = 0x61
"""Frame Length Adjustment (xHCI 5.2.4)."""

MSIX: Final = 0x70
"""Where the MSI-X capability is; anywhere that is aligned and not 0x60 to 0x62. It is the first of the list: one client
walks to it for every register that a guest reads."""
CAPABILITY_MSIX: Final = 0x11
MSIX_CONTROL: Final = MSIX + 2
MSIX_ENABLE: Final = 0x8000
MSIX_FUNCTION_MASK: Final = 0x4000

MSI: Final = 0x80
CAPABILITY_MSI: Final = 0x05
MSI_CONTROL: Final = MSI + 2
MSI_ENABLE: Final = 0x0001
MSI_CAPABLE_SHIFT: Final = 1
"""Multiple Message Capable: the logarithm of how many messages the function would like."""
MSI_ALLOCATED: Final = 0x0070
"""Multiple Message Enable: the logarithm of how many it may use."""
MSI_ALLOCATED_SHIFT: Final = 4
MSI_64: Final = 0x0080

_WRITABLE_COMMAND: Final = (
    COMMAND_IO
    | COMMAND_MEMORY
    | COMMAND_BUS_MASTER
    | COMMAND_MWI
    | COMMAND_PARITY
    | COMMAND_SERR
    | COMMAND_INTX_DISABLE
)
_CAPABILITIES: Final = {Mechanism.MSIX: MSIX, Mechanism.MSI: MSI}
"""The list of capabilities, in its order."""


class ConfigSpace:
    """The 4096 bytes. Every offset can be read and written; what means nothing reads 0 and ignores writes.

    `bar_size` is BAR0's size, a power of two; `vectors` a power of two too; `mechanisms` the ways to interrupt that the
    function offers. `table` and `pba` are offsets in BAR0, on pages of their own, because both clients trap the table's
    page and one of them moves it if it shares a page. The bytes live in `store` if it is given.
    """

    def __init__(
        self,
        *,
        bar_size: int,
        vectors: int,
        table: int,
        pba: int,
        mechanisms: Collection[Mechanism] = ALL,
        store: memoryview | None = None,
    ) -> None:
        self._reset = bytearray(CONFIG_SIZE)
        self._writable = bytearray(CONFIG_SIZE)
        capabilities = [at for mechanism, at in _CAPABILITIES.items() if mechanism in mechanisms]
        define = self._define
        define(0x00, 2, VENDOR_ID)
        define(0x02, 2, DEVICE_ID)
        define(COMMAND, 2, 0, _WRITABLE_COMMAND)
        define(STATUS, 2, STATUS_CAPABILITIES if capabilities else 0)
        define(0x08, 4, CLASS_CODE << 8 | REVISION_ID)
        define(CACHE_LINE_SIZE, 1, 0, 0xFF)
        define(LATENCY_TIMER, 1, 0, 0xFF)
        define(BAR0, 8, BAR_MEMORY_64, -bar_size & 0xFFFF_FFFF_FFFF_FFFF)
        define(0x2C, 2, SUBSYSTEM_VENDOR_ID)
        define(0x2E, 2, SUBSYSTEM_ID)
        define(INTERRUPT_LINE, 1, 0, 0xFF)
        define(INTERRUPT_PIN, 1, INTERRUPT_PIN_A if Mechanism.INTX in mechanisms else 0)
        define(SBRN, 1, 0x30)
        define(FLADJ, 1, 0x20, 0x3F)
        if Mechanism.MSIX in mechanisms:
            define(MSIX, 1, CAPABILITY_MSIX)
            define(MSIX_CONTROL, 2, vectors - 1, MSIX_ENABLE | MSIX_FUNCTION_MASK)
            define(MSIX + 4, 4, table)  # BAR indicator 0 in the low three bits of both
            define(MSIX + 8, 4, pba)
        if Mechanism.MSI in mechanisms:
            capable = vectors.bit_length() - 1 << MSI_CAPABLE_SHIFT
            define(MSI, 1, CAPABILITY_MSI)
            define(MSI_CONTROL, 2, MSI_64 | capable, MSI_ENABLE | MSI_ALLOCATED)
            define(MSI + 4, 8, 0, 0xFFFF_FFFF_FFFF_FFFC)  # address
            define(MSI + 12, 2, 0, 0xFFFF)  # data
        for pointer, at in zip(
            [CAPABILITIES_POINTER, *(at + 1 for at in capabilities)], [*capabilities, 0], strict=True
        ):
            define(pointer, 1, at)
        self._data = memoryview(bytearray(CONFIG_SIZE)) if store is None else store[:CONFIG_SIZE]
        self._data[:] = self._reset

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on; the caller has checked that they are inside."""
        return bytes(self._data[offset : offset + count])

    def write(self, offset: int, data: bytes) -> None:
        """Store what may be changed of `data`, byte by byte, whatever registers it covers."""
        end = offset + len(data)
        mask = int.from_bytes(self._writable[offset:end], "little")
        old = int.from_bytes(self._data[offset:end], "little")
        new = old & ~mask | int.from_bytes(data, "little") & mask
        self._data[offset:end] = new.to_bytes(len(data), "little")

    def reset(self) -> None:
        """Every register as at power-on."""
        self._data[:] = self._reset

    def saved_state(self) -> bytes:
        """All of it, up to the last byte that is not 0."""
        return bytes(self._data).rstrip(b"\0")

    def take_over(self, saved: bytes) -> None:
        """What it was in another process. Raises StateError if a driver could not have made it so."""
        require(len(saved) <= CONFIG_SIZE, "config", "it is too long")
        data = saved.ljust(CONFIG_SIZE, b"\0")
        writable, status = int.from_bytes(self._writable, "little"), STATUS_INTERRUPT << 8 * STATUS
        fixed = ~(writable | status)
        old, new = int.from_bytes(self._reset, "little"), int.from_bytes(data, "little")
        require(old & fixed == new & fixed, "config", "what no driver can change is not as here")
        self._data[:] = data

    @property
    def enables(self) -> Enables:
        """What the driver has enabled of the interrupts, and whether the function may access guest memory."""
        command, msix, msi = (self._word(at) for at in (COMMAND, MSIX_CONTROL, MSI_CONTROL))
        return Enables(
            msix=bool(msix & MSIX_ENABLE),
            msi=bool(msi & MSI_ENABLE),
            messages=1 << ((msi & MSI_ALLOCATED) >> MSI_ALLOCATED_SHIFT),
            intx_disabled=bool(command & COMMAND_INTX_DISABLE),
            bus_master=bool(command & COMMAND_BUS_MASTER),
        )

    def set_interrupt_status(self, asserted: bool) -> None:
        """Status register bit 3, which only the function changes."""
        self._data[STATUS] = self._data[STATUS] & ~STATUS_INTERRUPT | (STATUS_INTERRUPT if asserted else 0)

    def _word(self, offset: int) -> int:
        return int.from_bytes(self._data[offset : offset + 2], "little")

    def _define(self, offset: int, size: int, value: int, writable: int = 0) -> None:
        self._reset[offset : offset + size] = value.to_bytes(size, "little")
        self._writable[offset : offset + size] = writable.to_bytes(size, "little")
