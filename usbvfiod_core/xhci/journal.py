"""What becomes of each device in the guest, for people: resets, addresses, configurations and halts at the level of
`-v`, within bounds that no guest can break; commands and transfers at that of `-vv`, all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from ..usb.device import Loop
from ..usb.requests import SetupPacket
from . import spec

log = logging.getLogger(__name__)

TRACE: Final = 5
"""The level of what is said of each command and transfer; below logging.DEBUG."""

CONTROLLER: Final = 0
"""In place of a port: the controller itself."""

LINES: Final = 20
"""Lines for a port in one period; how many more there were is said at its end."""
PERIOD: Final = 10.0
"""Seconds; twice as many after each period that was too short for what there was to say, up to LONGEST_PERIOD."""
LONGEST_PERIOD: Final = 320.0
"""Seconds."""


class _Period:
    """What was said of a port since `start`."""

    def __init__(self, now: float) -> None:
        self.seconds = PERIOD
        self.begin(now)

    def begin(self, now: float) -> None:
        self.end = now + self.seconds
        self.said = self.more = 0


class Journal:
    """The journal of one controller. `name` says what is plugged into a port, empty for nothing.

    tracing   whether commands and transfers are said; whoever would say them looks first, because that is the hot path.
              `refresh` sets it
    """

    def __init__(self, loop: Loop, name: Callable[[int], str]) -> None:
        self._loop = loop
        self._name = name
        self._periods: dict[int, _Period] = {}
        self.tracing = False
        self.refresh()

    def refresh(self) -> None:
        """The level of the log has changed."""
        self.tracing = log.isEnabledFor(TRACE)

    def say(self, port_id: int, text: str, *arguments: object) -> None:
        """Something has happened to the device at a port, or to the CONTROLLER. As logging has it, `text` is formatted
        only if it is said."""
        if not log.isEnabledFor(logging.DEBUG):
            return
        if not self.tracing and not self._may_say(port_id):
            return
        log.debug("%s: " + text, self._who(port_id), *arguments)

    def command(self, type: int, code: int, slot_id: int) -> None:
        """A command is completed. Only while `tracing`."""
        name = spec.TRB_TYPES.get(type, f"of type {type}")
        log.log(TRACE, "command %s, slot %d: %s", name, slot_id, spec.COMPLETION_CODES[code])

    def transfer(
        self, port_id: int, address: int, setup: SetupPacket | None, actual: int, length: int, code: int, ns: int
    ) -> None:
        """A TD is retired `ns` nanoseconds after it was fetched. Only while `tracing`."""
        request = f" {described(setup)}" if setup is not None else ""
        log.log(
            TRACE,
            "%s: endpoint %#04x%s: %d of %d bytes in %d us: %s",
            self._who(port_id),
            address,
            request,
            actual,
            length,
            ns // 1000,
            spec.COMPLETION_CODES[code],
        )

    def _who(self, port_id: int) -> str:
        if port_id == CONTROLLER:
            return "controller"
        name = self._name(port_id)
        return f"port {port_id} ({name})" if name else f"port {port_id}"

    def _may_say(self, port_id: int) -> bool:
        now = self._loop.time()
        period = self._periods.get(port_id)
        if period is None:
            period = self._periods[port_id] = _Period(now)
        elif now >= period.end and not period.more:
            period.seconds = PERIOD
            period.begin(now)
        if period.said < LINES:
            period.said += 1
            return True
        period.more += 1
        if period.more == 1:
            self._loop.call_later(max(period.end - now, 0.0), self._and_more, port_id, period)
        return False

    def _and_more(self, port_id: int, period: _Period) -> None:
        log.debug("%s: and %d more in %d s", self._who(port_id), period.more, period.seconds)
        period.seconds = min(2 * period.seconds, LONGEST_PERIOD)
        period.begin(self._loop.time())


def described(setup: SetupPacket) -> str:
    """A request for people: bmRequestType, bRequest, wValue, wIndex and wLength in hexadecimal."""
    return f"{setup.request_type:02x} {setup.request:02x} {setup.value:04x} {setup.index:04x} {setup.length:04x}"
