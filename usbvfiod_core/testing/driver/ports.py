"""Root hub ports (4.19, 5.4.8)."""

from __future__ import annotations

from ...usb.speed import Speed
from ...xhci import spec
from .controller import ControllerSide
from .errors import DriverError, ProtocolError

_KEEP = spec.PORTSC_PP | spec.PORTSC_PIC | spec.PORTSC_WCE | spec.PORTSC_WDE | spec.PORTSC_WOE
"""What a driver writes back as it read it; PED, PR and the change bits would act."""


class Port:
    """One port of the root hub; `port_id` counts from 1, `major` is 2 or 3 by its Supported Protocol Capability."""

    def __init__(self, driver: ControllerSide, port_id: int, major: int) -> None:
        self.driver = driver
        self.port_id = port_id
        self.major = major
        self._offset = driver.capabilities.operational_offset + spec.PORT_REGISTERS + (port_id - 1) * spec.PORT_STRIDE

    @property
    def portsc(self) -> int:
        """The Port Status and Control Register."""
        return self.driver.bus.read(self._offset)

    @property
    def connected(self) -> bool:
        """Current Connect Status."""
        return bool(self.portsc & spec.PORTSC_CCS)

    @property
    def enabled(self) -> bool:
        """Port Enabled."""
        return bool(self.portsc & spec.PORTSC_PED)

    @property
    def link_state(self) -> int:
        """Port Link State: PLS_U0, PLS_U3, PLS_POLLING and so on."""
        return (self.portsc & spec.PORTSC_PLS) >> spec.PORTSC_PLS_SHIFT

    @property
    def speed(self) -> Speed:
        """The speed of the device on it. Raises ProtocolError for an undefined one."""
        value = (self.portsc & spec.PORTSC_SPEED) >> spec.PORTSC_SPEED_SHIFT
        try:
            return Speed(value)
        except ValueError:
            raise ProtocolError(f"port {self.port_id} says speed {value}") from None

    def write(self, bits: int) -> None:
        """Write PORTSC with these bits set, keeping what is plainly read and write."""
        self.driver.bus.write(self._offset, self.portsc & _KEEP | bits)

    def clear_changes(self, bits: int = spec.PORTSC_CHANGES) -> int:
        """Clear change bits (write 1 to clear); returns those of them that were set."""
        changes = self.portsc & bits
        if changes:
            self.write(changes)
        return changes

    def wait_for(self, mask: int, value: int, what: str, timeout: float | None = None) -> int:
        """Wait until `PORTSC & mask == value`; returns PORTSC. Raises DriverTimeoutError."""
        found = [0]

        def check() -> bool:
            found[0] = self.portsc
            return found[0] & mask == value

        self.driver.poll_until(check, f"port {self.port_id}: {what}", timeout)
        return found[0]

    def wait_connected(self, timeout: float | None = None) -> None:
        """Wait for a device, and clear the Connect Status Change."""
        self.wait_for(spec.PORTSC_CCS, spec.PORTSC_CCS, "no device connects", timeout)
        self.clear_changes(spec.PORTSC_CSC)

    def wait_disconnected(self, timeout: float | None = None) -> None:
        """Wait until the device is gone, and clear all changes."""
        self.wait_for(spec.PORTSC_CCS, 0, "the device does not disconnect", timeout)
        self.clear_changes()

    def reset(self, *, warm: bool = False, timeout: float | None = None) -> None:
        """Reset the port (4.19.5): it is enabled and in U0 afterwards. `warm` is for USB 3 ports.

        Raises ProtocolError when it does not end as the specification says.
        """
        self.write(spec.PORTSC_WPR if warm else spec.PORTSC_PR)
        change = spec.PORTSC_PRC | (spec.PORTSC_WRC if warm else 0)
        portsc = self.wait_for(change | spec.PORTSC_PR, change, "the reset does not end", timeout)
        self.clear_changes(spec.PORTSC_PRC | spec.PORTSC_WRC | spec.PORTSC_PLC | spec.PORTSC_PEC)
        if not portsc & spec.PORTSC_CCS:
            raise DriverError(f"port {self.port_id}: the device went away during the reset")
        if not portsc & spec.PORTSC_PED or portsc & spec.PORTSC_PLS:
            raise ProtocolError(f"port {self.port_id}: not enabled in U0 after a reset, PORTSC {portsc:#010x}")

    def set_link_state(self, state: int) -> None:
        """Write the Port Link State with its strobe (LWS)."""
        self.write(spec.PORTSC_LWS | state << spec.PORTSC_PLS_SHIFT)

    def suspend(self, timeout: float | None = None) -> None:
        """Suspend the port: U3 (4.15.1). The device's endpoints must have been stopped."""
        self.set_link_state(spec.PLS_U3)
        self._await_link(spec.PLS_U3, "does not reach U3", timeout)
        self.clear_changes(spec.PORTSC_PLC)

    def resume(self, timeout: float | None = None) -> None:
        """Resume the port to U0 (4.15.2), on USB 2 by 20 ms of Resume signalling."""
        if self.major == 2:
            self.set_link_state(spec.PLS_RESUME)
            self._await_link(spec.PLS_RESUME, "does not signal Resume", timeout)
            self.driver.bus.pause(0.020)
        self.set_link_state(spec.PLS_U0)
        self._await_link(spec.PLS_U0, "does not reach U0", timeout)
        self.wait_for(spec.PORTSC_PLC, spec.PORTSC_PLC, "no Port Link State Change after resume", timeout)
        self.clear_changes(spec.PORTSC_PLC)

    def disable(self) -> None:
        """Disable the port by writing 1 to PED (4.19.1)."""
        self.write(spec.PORTSC_PED)
        self.wait_for(spec.PORTSC_PED, 0, "the port stays enabled")

    def _await_link(self, state: int, what: str, timeout: float | None) -> None:
        self.wait_for(spec.PORTSC_PLS, state << spec.PORTSC_PLS_SHIFT, what, timeout)
