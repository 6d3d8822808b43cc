"""The contract between the controller and a USB device, real or virtual."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from ..errors import ConfigError
from .handover import CannotHandOver, Handover
from .speed import Speed
from .transfer import Transfer, TransferType

T = TypeVar("T")


class Timer(Protocol):
    """What `Loop.call_later` gives back."""

    def cancel(self) -> None: ...


class Loop(Protocol):
    """What a device may ask of the loop. asyncio's event loop has all but `run_blocking`.

    Everything is called on the loop's thread, but `call_soon_threadsafe`, which is the one door for other threads.
    """

    def time(self) -> float:
        """Seconds of a clock that never goes back; `call_later` counts by it."""
        ...

    def call_soon(self, callback: Callable[..., object], *args: Any) -> object: ...
    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> object: ...
    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer: ...
    def add_reader(self, fd: int, callback: Callable[..., object], *args: Any) -> None: ...
    def remove_reader(self, fd: int) -> object: ...
    def add_writer(self, fd: int, callback: Callable[..., object], *args: Any) -> None: ...
    def remove_writer(self, fd: int) -> object: ...

    def run_blocking(self, call: Callable[[], T], then: Callable[[T | BaseException], object]) -> None:
        """Run `call` in a thread; give its result, or the exception it raised, to `then` on the loop's thread."""
        ...


class DeviceEvents(Protocol):
    """What a device tells the core on its own account; given to it by `Device.attach`."""

    def disconnected(self) -> None:
        """The device is gone: the port disconnects. Transfers in flight must still be completed."""
        ...

    def remote_wakeup(self) -> None:
        """The device signals resume (USB 2.0 7.1.7.7). If its port is not suspended yet, it wakes as soon as it is,
        unless a transfer of an endpoint other than 0 has succeeded in between."""
        ...

    def note(self, text: str) -> None:
        """A remark for people beside the device's state, such as that the guest has ejected its medium. It replaces the
        one before; empty for none. `usbvfiod list` shows it."""
        ...

    def microframe(self) -> int:
        """The bus time now: microframes of 125 us, modulo 2^14, as the driver reads it from MFINDEX (xHCI 5.5.1).

        `Transfer.frame` is bits 13:3 of it. It stands still while the controller is stopped.
        """
        ...


class Device(ABC):
    """A USB device as the controller sees it. All methods are called on the loop's thread and must not block.

    Life: `attach` once, when the device is plugged into a port; `submit`, `cancel`, `reset` and `controller_reset` any
    number of times; `close` once, and then `when_closed`. A device may be wrapped (quirks, interceptors): a wrapper is
    a Device that calls another one.
    """

    speed: Speed
    """Decides the port (USB 2 or USB 3) and what the guest is told."""
    name: str
    """For people: manufacturer and product, say."""
    max_streams: int = 0
    """Bulk streams per endpoint that `submit` supports (USB 3.2 8.12.1.4); 0 for none."""
    cancel_loses: bool = False
    """Whether what a bulk or interrupt transfer has moved may be lost when it is cancelled, as nobody tells. Where that
    can be chosen, bulk and interrupt OUT transfers are given half a second to end by themselves."""
    keeps_requests: bool = False
    """Whether `take_back` loses and repeats nothing, whatever `cancel_loses` says: nothing is waited for then."""

    @abstractmethod
    def attach(self, events: DeviceEvents) -> None:
        """The device is plugged in; keep `events` to tell of disconnection and remote wake-up."""

    def route(self, endpoint: int, type: TransferType) -> Callable[[Transfer], None]:
        """What takes the transfers of an endpoint (address as in its descriptor): `submit`, or a shorter way. Called
        when the driver configures the endpoint. A wrapper without interest in it returns the route of the device that
        it wraps, and then costs nothing."""
        return self.submit

    @abstractmethod
    def submit(self, transfer: Transfer) -> None:
        """Start a transfer. Transfers of one endpoint (and stream) are executed in the order they are submitted.

        Completes by `transfer.complete`, inside this call or later. Every failure is a status; nothing is raised.
        Requests that change the device (SET_CONFIGURATION, SET_INTERFACE, CLEAR_FEATURE) come here as
        control transfers; SET_ADDRESS never does.
        """

    @abstractmethod
    def cancel(self, transfer: Transfer) -> None:
        """End a transfer in flight soon: it is still completed by `transfer.complete`, with CANCELLED and what had
        been moved, or with its real result if it won the race. After that its windows are not touched any more. The
        driver is told what had been moved, and what it submits next begins behind that.

        One that is not back after a second is given up on: its windows are no memory of the guest's any more, so that
        what is done to them late is lost.
        """

    def take_back(self, transfer: Transfer) -> None:
        """As `cancel`, of a bulk or interrupt transfer that the controller begins again as soon as it goes on, here or
        in another process (`usbvfiod upgrade`), with what is left of it. Where nobody tells what a cancelled request
        has moved, a device rather leaves it under way (`keeps_requests`): what it reads is for the next transfer of the
        endpoint, and what it writes is that one's. `hand_over` then tells of it."""
        self.cancel(transfer)

    @abstractmethod
    def reset(self, done: Callable[[], object]) -> None:
        """The driver resets the port (USB 2.0 7.1.7.5): back to the default state, halts cleared, not configured.

        No transfer is in flight. `done` is called when the device can be addressed, inside this call or later;
        a device that does not survive it also calls `events.disconnected()`.
        """

    def controller_reset(self) -> None:
        """The controller was reset, with no transfer in flight. Another driver comes: firmware, a guest that has
        rebooted, or the next VM. It will reset the port. A device that keeps something beyond a port reset (that the
        medium was ejected) forgets it now."""
        return

    def command(self, words: Sequence[str]) -> str:
        """Do what the user asks (`usbvfiod send`), and return the answer, often empty; without words the answer is
        which there are. Raises ConfigError for words that the device does not know, with those that it does;
        DeviceError if it cannot do that now."""
        raise ConfigError(f"{self.name} takes no words")

    def is_midway(self) -> bool:
        """Whether a pause would show now: the driver has been told of a key that is down, say, and what lets go of it
        waits to be fetched. Before an upgrade it is given a quarter of a second to be over. On the loop's thread."""
        return False

    def when_settled(self, done: Callable[[], object]) -> None:
        """No transfer is in flight, and none comes: call `done` when nothing goes on behind their backs either, such as
        a thread that flushes what was written; inside this call or later. From then on the device reads nothing that it
        shares with the process to come, such as a connection, until `go_on`."""
        done()

    def go_on(self) -> None:
        """After `when_settled`: no other process goes on with the device, so that this one does. On the loop's thread;
        transfers may have come before."""
        return

    def hand_over(self) -> Handover:
        """Say all that another process needs to go on with the device while the guest uses it (`usbvfiod upgrade`):
        `Backend.take_over` gets it there. Called when it has settled, while no transfer and no reset is in flight; none
        comes until either the device is told to `forget`, or it goes on here after all, as if nothing had been asked.
        It is also called before, only to learn what it raises, and then changes nothing either.

        Raises CannotHandOver, as here, if only this process can go on with it; the user is told, and may have it
        unplugged and plugged in again instead. NotSettled if something goes on that will be over soon.
        """
        raise CannotHandOver(f"{self.name} cannot be handed over")

    def forget(self) -> None:
        """After `hand_over`, in the place of `close`: the other process has the device. Close descriptors and end
        threads, and tell nobody anything: no release, no flush, no driver given back, no file or lock removed."""
        return

    @abstractmethod
    def close(self) -> None:
        """The device is unplugged from the port and never used again: give everything back."""

    def when_closed(self, done: Callable[[], object]) -> None:
        """After `close`: call `done` when everything has been given back, inside this call or later. Until then the
        device belongs to its attachment: whoever detaches it is told so no sooner, and nobody opens it anew."""
        done()

    def loss(self) -> str:
        """After `when_closed` has called back: what could not be kept, for people (`flushing disk.img failed: No space
        left on device`); empty if nothing is lost. Whoever detaches the device is told."""
        return ""

    def why_gone(self) -> str:
        """After `disconnected`: why, for people (`the host has taken interface 0 back, usb-storage has it`); empty if
        the device is simply not there any more."""
        return ""
