"""One attachment: the intent that a device be plugged in, and where it stands.

Nothing here acts on devices; `attachments` does. When to try again is decided here, without chance: see `wait`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

from ..errors import DeviceAway, DeviceError, DeviceWithheld, UsbvfiodError
from ..hooks.layers import Layer
from ..usb.backend import DeviceInfo
from ..usb.device import Device, Loop, Timer
from ..vfio_user import expendable
from .config import DeviceSpec, Mode
from .matching import leads_nowhere, missing

log = logging.getLogger(__name__)

RETRIES: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0)
"""Seconds to wait after the first, second, ... failure in a row; the last one from then on. A device may be away for so
much longer than its host or its network, and that is how often a host that is down is asked for it."""
AFTER_EVENT: Final = 1.0
"""When a device came, went or changed, a failed attachment is tried again this long after its last try at most."""
PACE: Final = 0.1
"""Seconds between two tries at least, however often the device comes and goes."""
WITHHELD_PACE: Final = 2.0
"""Seconds between two looks whether the host gives a device now: of most that it waits for, such as the end of a mount,
there is no event that reaches everybody."""
STABLE: Final = 10.0
"""A device that has been plugged in for this many seconds has nothing held against it any more."""


class DeviceLoop(Loop, Protocol):
    """The loop of one device, with threads of its own."""

    def retire(self) -> None:
        """The device is closed, or about to be: no thread waits for another call."""
        ...


class State(Enum):
    """Where an attachment is in its life."""

    WAITING = "waiting"
    """Its device is not there, it cannot be told which one it is, or the host does not give it now."""
    ASKING = "asking"
    """Its device is there, and somebody has to allow it (mode `ask`)."""
    HELD = "held"
    """Not to be plugged in: mode `manual` before it was asked for, or detached."""
    OPENING = "opening"
    PLUGGED = "plugged"
    LEAVING = "leaving"
    """Unplugged; its transfers are on their way back."""
    RETRYING = "retrying"
    """Its device is there and could not be used; it is tried again at `next_try`."""
    REFUSED = "refused"
    """A plugin does not admit the device; tried again when the device changes or somebody asks for it."""
    GONE = "gone"


HOLDING: Final = (State.OPENING, State.PLUGGED, State.LEAVING)
"""The states in which the device belongs to the attachment."""

Done = Callable[["Attachment | UsbvfiodError"], object]


class Attachment:
    """What is known of one. `number` is never used again.

    info        the device as its backend lists it; a stand-in before it was found
    last        the device that it had last, by which it is recognized when it comes back
    reason      why it is not plugged in, for people; empty if there is nothing to say
    note        what its device tells of itself while it is plugged in (`DeviceEvents.note`); empty for nothing
    port_id     where it is plugged in, 0 if it is not
    wanted      False: detached, or in mode `manual` not asked for yet
    allowed     False: in mode `ask` and not allowed yet
    waiters     told once when it has arrived at a state that is not on the way to another
    """

    def __init__(self, number: int, spec: DeviceSpec, *, configured: bool) -> None:
        self.number = number
        self.spec = spec
        self.configured = configured
        """Of the command line or the configuration file; else of a request."""
        self.info = spec.unseen
        self.last: DeviceInfo | None = None
        self.state = State.WAITING
        self.reason = ""
        self.note = ""
        self.complaint = ""
        """What was logged last of what is wrong."""
        self.name = spec.text
        self.device: Device | None = None
        self.layers: list[Layer] = []
        """What plugins have put around its device, which are parts of `device`."""
        self.loop: DeviceLoop | None = None
        """That of its device, or of the one that is being opened."""
        self.port_id = 0
        self.wanted = spec.mode is not Mode.MANUAL
        self.allowed = spec.mode is not Mode.ASK
        self.forget = False
        """Not to be kept once it is detached."""
        self.withheld: tuple[object, ...] | None = None
        """The `instance` that the host did not give."""
        self.fresh = True
        """Nobody knows of it yet but who asked for it: an error ends it."""
        self.fd: int | None = None
        """A descriptor of the device, handed over while it is held: for another try, should it come to that."""
        self.waiters: list[Done] = []
        self.timer: Timer | None = None
        self.next_try: float | None = None
        self.since = 0.0
        """When it came into its state, by the loop's clock."""
        self.plugs = 0
        """How often it was plugged in."""
        self.failures = 0
        self.away = ""
        """Why its host was not there, or did not give it, at the last try; empty if it was otherwise."""
        self.losses = 0
        """How often its device was lost soon after it had come."""
        self._lost: tuple[object, ...] | None = None
        self._last_try = float("-inf")
        self._stirred = False
        """There was an event since its last try."""

    def __str__(self) -> str:
        return self.spec.name or self.spec.text

    @property
    def title(self) -> str:
        """What to call it and its device in the log."""
        return f"{self.name} ({self.spec.text})"

    @property
    def holds(self) -> bool:
        """Whether nobody else may have the device."""
        return self.state in HOLDING

    @property
    def pending(self) -> bool:
        """Whether it is plugged in as soon as that can be done."""
        return self.wanted and self.state in (State.WAITING, State.ASKING, State.RETRYING, State.REFUSED)

    def told(self, device: Device, text: str) -> bool:
        """A device, which may be about to be plugged in, tells something of itself: whether that is news."""
        if self.device is not device or self.note == text:
            return False
        self.note = text
        return self.state is State.PLUGGED

    @property
    def known(self) -> DeviceInfo | None:
        """The device by which it is recognized: the one it had last; or the one that a path led to when it was tried,
        if the path has gone with the host's driver since."""
        if self.last is None and self.info.port_path and leads_nowhere(self.spec.address):
            return self.info
        return self.last

    @property
    def absence(self) -> str:
        """What to say while its device is not there."""
        return missing(self.spec.address) if self.known is None else "it is not there"

    def take_fd(self) -> int | None:
        """The descriptor in `fd`, which from now on belongs to the caller."""
        fd, self.fd = self.fd, None
        return fd

    def drop_fd(self) -> None:
        """There is no need for the descriptor in `fd` any more."""
        if self.fd is not None:
            expendable.close(self.fd)
            self.fd = None

    def drop_loop(self) -> None:
        """Let go of its device's loop, unless it has a device: threads that wait for what does not come would become
        many where devices come and go."""
        if self.loop is not None and not self.holds:
            self.loop.retire()
            self.loop = None

    def tell_absence(self) -> None:
        """Log that its device is not there, to whoever has just asked for it."""
        required = self.spec.mode is Mode.REQUIRED
        what = "it is required, so nothing is served before it comes" if required else "it is plugged in when it comes"
        level = logging.ERROR if required else logging.INFO
        absence = "is not there" if self.absence == "it is not there" else f"is not there, {self.absence}"
        log.log(level, "device %s %s; %s", self, absence, what)

    def complain(self, error: UsbvfiodError) -> None:
        """Log what is wrong, once for many tries."""
        if self.complaint != str(error):
            self.complaint = str(error)
            log.warning("%s", error)

    def tell_loss(self, loss: str) -> None:
        """Its device was closed, and this was lost with it: whoever has detached it is told."""
        if loss and not self.wanted:
            self.answer(DeviceError(f"device {self.spec.text} is detached, but {loss}"))

    def put_off(self, error: DeviceWithheld | DeviceAway, now: float) -> float:
        """Its host does not give its device, which is no failure, or is not there. Seconds until it is asked again.

        Between two tries there are `delay`, from the beginning of one to that of the next: one that waits for a host
        that is silent sees it as soon as that is there.
        """
        if isinstance(error, DeviceAway):
            self.failures += 1
            self.away = str(error)
            return max(self._last_try + self.delay - now, PACE)
        self.withhold()
        return WITHHELD_PACE

    def withhold(self) -> None:
        """The host does not give its device."""
        self.failures = 0
        self.away = ""
        self.withheld = instance(self.info)

    @property
    def is_withheld(self) -> bool:
        """Whether the host did not give the device in `info`."""
        return self.withheld is not None and self.withheld == instance(self.info)

    def missed(self) -> float:
        """Its device is not there, or could not be used. Seconds until it is looked for again."""
        self.failures += 1
        self.away = ""
        return self.delay

    def answer(self, result: Attachment | UsbvfiodError) -> None:
        """Tell the waiters the result; they hear nothing more."""
        waiters, self.waiters = self.waiters, []
        for done in waiters:
            done(result)

    # -- when to try again -------------------------------------------------------------------------------------------

    def trying(self, now: float) -> None:
        """It is being opened."""
        self._last_try = now
        self._stirred = False
        self._lost = None

    def lost(self, now: float) -> None:
        """Its device says that it is gone."""
        if now - self.since >= STABLE:
            self.losses = 0
        self._lost = instance(self.info)

    def found(self, info: DeviceInfo, now: float) -> None:
        """Its device is listed. If it has disconnected and is still listed, that is a failure, or the host is about to
        notice: it gets time to do so."""
        if self._lost == instance(info):
            self.losses += 1
            self._last_try = now
        elif self._lost is not None:
            self.losses = 0
        self._lost = None

    def wait(self, now: float, *, event: bool) -> float:
        """Seconds until it may be tried: RETRIES after a failure, sooner after an event, and never in a rush. It is
        slow while the list still has the same reason why the host does not give the device."""
        if (self.info.note or self.info.in_use) and self.withheld == instance(self.info):
            return WITHHELD_PACE
        self._stirred |= event
        delay = min(self.delay, AFTER_EVENT) if self._stirred else self.delay
        return max(self._last_try + delay - now, 0.0)

    @property
    def delay(self) -> float:
        """Seconds between the last try and the next."""
        failures = max(self.failures, self.losses)
        return RETRIES[min(failures, len(RETRIES)) - 1] if failures else PACE

    def soon(self) -> None:
        """Somebody asks for it: what happened before is forgotten."""
        self.failures = self.losses = 0
        self.away = ""
        self._lost = self.withheld = None
        self._last_try = float("-inf")

    def cancel_timer(self) -> None:
        """It does not try by itself any more."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.next_try = None


def instance(info: DeviceInfo) -> tuple[object, ...]:
    """What changes when a device was plugged in anew, became another, or is used otherwise by the host."""
    return info.address, info.vendor_id, info.product_id, info.serial, info.note, info.in_use
