"""Root hub ports: PORTSC, attach and detach, reset, link states, change events (4.15, 4.19, 5.4.8).

USB 2 and USB 3 ports differ in one thing that matters: a USB 3 port trains its link by itself when a device is
plugged in and is then enabled; a USB 2 port is enabled by the driver's reset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from ..state import require
from ..usb.device import Device
from ..usb.guarded import guarded, tell
from ..usb.speed import Speed
from . import registers as reg
from . import spec
from .state import PortState
from .statistics import EndpointCounters
from .xhc import Tap

IDLE_SECONDS: Final = 0.010
"""Time in U3 before a wake-up that was signalled earlier resumes the port. The bus must have been idle for 5 ms by then
(USB 2.0 7.1.7.7), and Linux waits until it has seen U3."""

_USBSTS: Final = reg.OPERATIONAL_BASE + spec.USBSTS >> 2
_LINK: Final = spec.PORTSC_PLS
_SHIFT: Final = spec.PORTSC_PLS_SHIFT


class PortHost(Protocol):
    """What a port needs of the controller."""

    def port_dirty(self, port: Port) -> None:
        """Call `port.flush` soon."""
        ...

    def port_event(self, port_id: int) -> bool:
        """Publish a Port Status Change Event (6.4.2.3); False if the controller is halted and it has to wait."""
        ...

    def call_later(self, delay: float, callback: Callable[[], object]) -> None:
        """Call back after `delay` seconds."""
        ...

    def say(self, port: Port, text: str) -> None:
        """Something has happened to the port that people may want to know."""
        ...

    def rewind_port(self, port: Port, then: Callable[[], None]) -> None:
        """Take the transfers of the device at this port back; `then` when none is in flight."""
        ...


class Port:
    """Port `port_id` (1-based). `device` is what the driver sees plugged in, `counters` what its endpoints have done,
    by address. Register writes only note; `flush` acts."""

    def __init__(self, port_id: int, is_usb3: bool, registers: reg.RegisterFile, hub: PortHost) -> None:
        self.port_id = port_id
        self.is_usb3 = is_usb3
        self.device: Device | None = None
        self.withheld: Device | None = None
        """What is plugged in and kept from the driver, which sees an empty port."""
        self.draining = False
        """Transfers of the device that was withheld last are not all back; kept by the hub."""
        self.missed = False
        """The driver has a slot for a device that has not come from another process; kept by the hub."""
        self.counters: dict[int, EndpointCounters] = {}
        self.tap: Tap | None = None
        """Who looks on at the device's transfers."""
        self.queued = False
        """Whether it waits for its `flush`; kept by the controller."""
        self._hub = hub
        self._registers = registers
        self._dwords = registers.dwords
        self._offset = reg.port_base(port_id) + spec.PORTSC
        self._index = self._offset >> 2
        self._event_due = False
        self._reset_due = 0
        self._resets = 0
        self._wakeup: int | None = None
        registers.writers[self._offset] = self.write_portsc

    @property
    def portsc(self) -> int:
        return self._dwords[self._index]

    @property
    def link_state(self) -> int:
        return (self.portsc & _LINK) >> _SHIFT

    @property
    def enabled(self) -> bool:
        return bool(self.portsc & spec.PORTSC_PED)

    @property
    def occupant(self) -> Device | None:
        """What is plugged in, whether or not the driver sees it."""
        return self.withheld if self.device is None else self.device

    # -- devices ---------------------------------------------------------------------------------------------------

    def plug(self, device: Device) -> None:
        """A device appears at the empty port (4.19.1)."""
        self.device = device
        self.counters = {}
        self._connect(device)

    def unplug(self) -> None:
        """The device is gone; what is in flight is the controller's business."""
        self.tap = None
        if self.device is None:
            self.withheld = None
            return
        self.device = None
        self._vacate()

    def _vacate(self) -> None:
        """The driver does not see a device any more."""
        self.counters = {}
        self._wakeup = None
        self._resets += 1  # a reset under way does not end at another device
        self._reset_due = 0
        keep = self.portsc & ~(spec.PORTSC_CCS | spec.PORTSC_PED | spec.PORTSC_PR | spec.PORTSC_SPEED | _LINK)
        self._dwords[self._index] = keep | spec.PLS_RXDETECT << _SHIFT
        self._change(spec.PORTSC_CSC)

    def withhold(self) -> None:
        """For the driver the device is pulled out; it stays plugged in, unseen. What is in flight is the controller's
        business."""
        device, tap = self.device, self.tap
        self.unplug()
        self.withheld, self.tap = device, tap

    def reveal(self) -> None:
        """What was withheld appears, as if it were plugged in now."""
        device, self.withheld = self.withheld, None
        if device is not None:
            guarded(device, "controller_reset")
            self.plug(device)

    def controller_reset(self) -> None:
        """The register has its reset value again; a device that is there is seen as newly connected."""
        self._event_due = False
        self._resets += 1
        self._reset_due = 0
        self._wakeup = None
        device = self.device
        if device is not None:
            guarded(device, "controller_reset")
            self._connect(device)

    def remote_wakeup(self) -> None:
        """The device signals resume (4.15.2.2).

        A driver stops the endpoints before it suspends the port. What the device wants to say in between wakes the
        port as soon as it is suspended, unless the driver has fetched something from the device by then.
        """
        if self.link_state == spec.PLS_U3:
            self._wake()
        elif self.enabled:
            self._wakeup = self._fetched

    # -- going on in another process -----------------------------------------------------------------------------------

    @property
    def resetting(self) -> bool:
        """Whether its device is being reset."""
        return bool(self.portsc & spec.PORTSC_PR) and not self._reset_due

    def saved_state(self) -> PortState | None:
        """What another process needs to go on with it, beside its registers; None if nothing."""
        occupied = self.occupant is not None
        if not (occupied or self._event_due):
            return None
        counters = [each.saved_state(address) for address, each in self.counters.items()]
        withheld = self.withheld is not None
        return PortState(self.port_id, occupied, self._event_due, self._reset_due, self._wakeup, counters, withheld)

    def take_over(self, saved: PortState, device: Device | None, path: str) -> None:
        """Go on, once the controller does, where another process was, with this device. Raises StateError."""
        seen = saved.occupied and not saved.withheld
        require(seen or not saved.reset_due, f"{path}.reset_due", "there is no device")
        require(saved.occupied or not saved.withheld, f"{path}.withheld", "there is no device")
        resets = (0, spec.PORTSC_PRC, spec.PORTSC_WRC | spec.PORTSC_PRC)
        require(saved.reset_due in resets, f"{path}.reset_due", "no reset has these change bits")
        if device is not None:
            require(device.speed.is_usb3 == self.is_usb3, path, f"{device.name} does not belong to this kind of port")
        if saved.withheld:
            self.withheld = device
        else:
            self.device = device
        self._event_due = saved.event_due
        self._reset_due = saved.reset_due
        self._wakeup = saved.wakeup
        for index, each in enumerate(saved.counters):
            counters = self.counters[each.address] = EndpointCounters(each.type)
            counters.take_over(each, f"{path}.counters[{index}]")

    def go_on(self, *, missing: bool) -> None:
        """The controller goes on where another process was; `missing`: without the device that the driver has seen."""
        if missing:
            self._vacate()
        if self._event_due or self._reset_due:
            self._hub.port_dirty(self)
        if self._wakeup is not None and self.link_state == spec.PLS_U3:
            self._hub.call_later(IDLE_SECONDS, self._idle)

    # -- work --------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Start a reset that the driver has asked for, and publish the change event that is due."""
        if self._reset_due:
            change, self._reset_due = self._reset_due, 0
            self._resets += 1
            self._start_reset(change, self._resets)
        if self._event_due:
            self._event_due = not self._hub.port_event(self.port_id)

    def run_started(self) -> None:
        """USBCMD.RS was set: changes that were noted while halted are events now (4.19.2)."""
        self._event_due = bool(self.portsc & spec.PORTSC_CHANGES)
        if self._event_due:
            self._hub.port_dirty(self)

    # -- registers ---------------------------------------------------------------------------------------------------

    def write_portsc(self, value: int) -> None:
        self._registers.store_masked(self._offset, value)
        if value & spec.PORTSC_PED and self.enabled:
            self._disable()
            return
        if value & spec.PORTSC_LWS:
            self._request_link((value & _LINK) >> _SHIFT)
        if self.device is not None and not self.portsc & spec.PORTSC_PR:
            if value & spec.PORTSC_WPR and self.is_usb3:
                self._ask_for_reset(spec.PORTSC_WRC | spec.PORTSC_PRC)
            elif value & spec.PORTSC_PR:
                self._ask_for_reset(spec.PORTSC_PRC)

    # -- own ---------------------------------------------------------------------------------------------------------

    def _connect(self, device: Device) -> None:
        # The ports say that they are of USB 3.0, of which SuperSpeed is the fastest (7.2.2.1.1). SeaBIOS does not use a
        # device of another speed, and U-Boot takes it for one of full speed. Data go at the host's speed.
        state = spec.PORTSC_CCS | min(device.speed, Speed.SUPER) << spec.PORTSC_SPEED_SHIFT
        if self.is_usb3:
            state |= spec.PORTSC_PED | spec.PLS_U0 << _SHIFT
        else:
            state |= spec.PLS_POLLING << _SHIFT
        keep = self.portsc & ~(spec.PORTSC_CCS | spec.PORTSC_PED | spec.PORTSC_SPEED | _LINK)
        self._dwords[self._index] = keep | state
        self._change(spec.PORTSC_CSC)

    def _disable(self) -> None:
        """The driver writes 1 to PED (4.19.1.1.6, 4.19.1.2.5)."""
        self._dwords[self._index] &= ~spec.PORTSC_PED
        if self.is_usb3:
            self._dwords[self._index] &= ~spec.PORTSC_CCS
            self._set_link(spec.PLS_DISABLED)
        else:
            self._set_link(spec.PLS_POLLING)

    def _request_link(self, wanted: int) -> None:
        """PLS written with LWS (table 5-27). What a port in this state cannot do is ignored."""
        now = self.link_state
        if wanted == spec.PLS_U0 and now in (spec.PLS_U1, spec.PLS_U2, spec.PLS_U3, spec.PLS_RESUME):
            self._set_link(spec.PLS_U0)
            if now in (spec.PLS_U3, spec.PLS_RESUME):
                self._hub.say(self, "resumed")
                self._change(spec.PORTSC_PLC)
        elif (wanted == spec.PLS_U3 and self.enabled) or (
            wanted == spec.PLS_RESUME and now == spec.PLS_U3 and not self.is_usb3
        ):
            self._set_link(wanted)
            if wanted == spec.PLS_U3 != now:
                self._hub.say(self, "suspended")
            if wanted == spec.PLS_U3 and self._wakeup is not None:
                self._hub.call_later(IDLE_SECONDS, self._idle)
        elif wanted == spec.PLS_DISABLED and self.is_usb3 and self.enabled:
            self._disable()
        elif wanted == spec.PLS_RXDETECT and self.is_usb3 and now == spec.PLS_DISABLED:
            self._set_link(spec.PLS_RXDETECT)
            if self.device is not None:
                self._connect(self.device)

    @property
    def _fetched(self) -> int:
        """How many transfers the device has ended well, without those of endpoint 0."""
        return sum(counters.transfers for address, counters in self.counters.items() if address)

    def _wake(self) -> None:
        self._wakeup = None
        self._hub.say(self, "wakes up")
        self._set_link(spec.PLS_RESUME)
        self._change(spec.PORTSC_PLC)

    def _idle(self) -> None:
        if self.link_state == spec.PLS_U3 and self._wakeup is not None:
            if self._wakeup == self._fetched:
                self._wake()
            self._wakeup = None

    def _ask_for_reset(self, change: int) -> None:
        self._dwords[self._index] |= spec.PORTSC_PR
        self._reset_due = change
        self._hub.port_dirty(self)

    def _start_reset(self, change: int, number: int) -> None:
        device = self.device
        if device is None:
            return

        def finish() -> None:
            if number != self._resets:
                return  # unplugged, or the controller was reset, meanwhile
            self._wakeup = None
            state = spec.PORTSC_PED | spec.PORTSC_CCS | spec.PLS_U0 << _SHIFT
            self._dwords[self._index] = self.portsc & ~(spec.PORTSC_PR | _LINK) | state
            self._hub.say(self, "reset")
            self._change(change)

        def reset() -> None:
            if number != self._resets:
                return
            try:
                device.reset(finish)
            except Exception as error:
                tell(device, "reset", error)
                finish()

        self._hub.rewind_port(self, reset)

    def _set_link(self, state: int) -> None:
        self._dwords[self._index] = self.portsc & ~_LINK | state << _SHIFT

    def _change(self, bits: int) -> None:
        """Set change bits. The event is due only when the first of them appears (PSCEG, 4.19.2)."""
        first = not self.portsc & spec.PORTSC_CHANGES
        self._dwords[self._index] |= bits
        self._dwords[_USBSTS] |= spec.USBSTS_PCD
        if first:
            self._event_due = True
            self._hub.port_dirty(self)
