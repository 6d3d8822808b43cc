"""The device slots of the controller: which are enabled, and where the guest keeps their contexts (4.5.1, 6.1)."""

from __future__ import annotations

from typing import Final, Protocol

from ..state import require
from ..usb.device import Device
from . import registers as reg
from . import spec
from .allowance import Allowance
from .contexts import DeviceContext
from .endpoint import Endpoint
from .kept import Kept
from .slot import Slot, SlotHost
from .state import SlotState

_DCBAAP: Final = reg.OPERATIONAL_BASE + spec.DCBAAP >> 2
_CONFIG: Final = reg.OPERATIONAL_BASE + spec.CONFIG >> 2


class TableHost(SlotHost, Protocol):
    """What the table needs of the controller, beyond what its slots do."""

    context_stride: int


class SlotTable:
    """`slots[slot_id]` for 1 to HCSPARAMS1.MaxSlots, None where the slot is disabled. As many as `devices` are
    addressed at a time."""

    def __init__(self, registers: reg.RegisterFile, devices: int, host: TableHost, kept: Kept) -> None:
        self._devices = devices
        self.slots: list[Slot | None] = [None] * (registers.max_slots + 1)
        self._dwords = registers.dwords
        self._host = host
        self._kept = kept.slots

    def get(self, slot_id: int) -> Slot | None:
        """The enabled slot with this id."""
        return self.slots[slot_id] if slot_id < len(self.slots) else None

    def enable(self) -> int:
        """A new slot's id, or 0: none is free among the CONFIG.MaxSlotsEn first ones (4.6.3)."""
        enabled = min(self._dwords[_CONFIG] & spec.CONFIG_MAXSLOTSEN, len(self.slots) - 1)
        for slot_id in range(1, enabled + 1):
            if self.slots[slot_id] is None:
                self.slots[slot_id] = Slot(self._host, slot_id, Allowance(self._devices))
                self._kept[slot_id] = 1
                return slot_id
        return 0

    def release(self, slot: Slot) -> None:
        """The slot is disabled."""
        if self.slots[slot.slot_id] is slot:
            self.slots[slot.slot_id] = None
            self._kept[slot.slot_id] = 0

    def release_all(self) -> None:
        """The controller is reset: no slot is enabled any more."""
        self.slots[:] = [None] * len(self.slots)
        self._kept[:] = bytes(len(self._kept))

    def endpoints(self, port_id: int = 0) -> list[Endpoint]:
        """All endpoints that are not Disabled, or those of the device at one root hub port."""
        return [
            endpoint
            for slot in self.slots
            if slot is not None and port_id in (0, slot.port_id)
            for endpoint in slot.active()
        ]

    def slot_of(self, device: Device) -> Slot | None:
        """The slot that a device has been addressed through."""
        return next((slot for slot in self.slots if slot is not None and slot.device is device), None)

    def saved_state(self) -> list[SlotState]:
        """What another process needs to go on with the slots; the controller is quiet."""
        return [slot.saved_state() for slot in self.slots if slot is not None]

    def take_over(self, saved: list[SlotState]) -> None:
        """Go on, once the controller does, where another process was. Raises StateError."""
        for index, each in enumerate(saved):
            path = f"slots[{index}]"
            require(each.slot_id < len(self.slots), f"{path}.slot_id", "there is no such slot")
            require(self.slots[each.slot_id] is None, f"{path}.slot_id", "there are two of them")
            slot = Slot(self._host, each.slot_id, Allowance(self._devices))
            slot.take_over(each, path)
            require(slot.device is None or self.slot_of(slot.device) is None, path, "its device has another slot")
            self.slots[each.slot_id] = slot
            self._kept[each.slot_id] = 1

    def check_shared(self) -> None:
        """Raises UnsharedMemoryError if the client does not share the memory of the array of contexts."""
        self._host.memory.check_shared(self._dwords[_DCBAAP] & ~0x3F | self._dwords[_DCBAAP + 1] << 32, 8)

    def device_context(self, slot_id: int) -> DeviceContext | None:
        """The output context that the Device Context Base Address Array names now (6.1): the driver fills it in after
        Enable Slot, so it is read for each command. Raises GuestMemoryError, also if the context itself, which does not
        cross a page, is not memory that can be written: then a command fails before it has done anything."""
        memory = self._host.memory
        array = self._dwords[_DCBAAP] & ~0x3F | self._dwords[_DCBAAP + 1] << 32
        address = int.from_bytes(memory.read(array + 8 * slot_id, 8), "little") & ~0x3F
        if not address:
            return None
        memory.window(address, self._host.context_stride)
        return DeviceContext(memory, address, self._host.context_stride)
