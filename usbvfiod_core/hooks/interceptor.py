"""The base class of interceptors: a plugin's own view of one device's transfers, on the way down and on the way up.

    class Upper(Interceptor):
        def bulk_completed(self, transfer: InterceptedTransfer) -> None:
            if transfer.is_in:
                transfer.replace(transfer.read().upper())

Down is from the guest to the device, up is back. What an interceptor does not say is as if it were not there: a
transfer whose method returns is passed on. Whatever the guest does meanwhile (cancels, resets, goes away) is dealt
with by `interception`, so that every transfer ends exactly once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ..usb.handover import CannotHandOver
from ..usb.requests import SetupPacket
from ..usb.transfer import Transfer, TransferStatus, TransferType

if TYPE_CHECKING:
    from ..usb.device import Device, Loop, Timer

# Where an intercepted transfer is.
QUEUED = 0  # behind one of its endpoint that is held; its method has not been called
DOWN = 1  # in its method on the way down
HOLDING = 2  # the same, which has asked for it to be held
HELD = 3  # held on the way down
PASSED = 4  # with the device
UP = 5  # in its method on the way up
HOLDING_UP = 6  # the same, which has asked for it to be held
HELD_UP = 7  # held on the way up
ENDED = 8


class OnPath(Protocol):
    """What an intercepted transfer needs of the way it is on, a `path.Path`."""

    interceptor: Interceptor

    def returned(self, inner: Transfer) -> None: ...

    def settle(self, transfer: InterceptedTransfer, status: TransferStatus, actual: int) -> None: ...

    def release(self, transfer: InterceptedTransfer) -> None: ...

    def finish(self, transfer: InterceptedTransfer) -> None: ...

    def cancel(self, transfer: InterceptedTransfer) -> None: ...


class InterceptedTransfer(Transfer):
    """One of the guest's transfers as an interceptor has it: a `Transfer`, and what can be done with it.

    On the way down `windows` are the guest's memory, `setup` may be changed. On the way up `status` and `actual` are
    what the device said and may be changed, and `windows` hold what it moved. Nothing is copied unless `read`,
    `replace` or `make_private` is called. Its end is the framework's: use `answer` or `refuse`, never `complete`.

    A verb that comes too late, because the guest has cancelled the transfer meanwhile, does nothing.
    """

    __slots__ = ("cancelled", "outer", "path", "piece", "private", "stage", "timer")

    def __init__(self, outer: Transfer, path: OnPath) -> None:
        # Not by super().__init__: this is made for every transfer of the endpoint.
        self.endpoint = outer.endpoint
        self.type = outer.type
        self.setup = outer.setup
        self.windows = outer.windows
        self.length = outer.length
        self.stream_id = outer.stream_id
        self.packets = outer.packets
        self.frame = outer.frame
        self.no_interrupt = outer.no_interrupt
        self.status = None
        self.actual = 0
        self.on_complete = path.returned
        self.context = None
        self.outer = outer
        self.path = path
        self.stage = QUEUED
        self.cancelled = False
        self.piece = 0
        self.private: bytes | bytearray | None = None
        self.timer: Timer | None = None

    def read(self) -> bytes:
        """A copy of the data: what the guest gives (OUT), or what the device has moved (IN, on the way up)."""
        data = super().read()
        return data[: self.actual] if self.is_in else data

    # -- verbs -------------------------------------------------------------------------------------------------------

    def answer(self, data: bytes | bytearray | memoryview = b"") -> None:
        """End the transfer well, without the device: `data` is what an IN transfer moves (at most `length`), an OUT
        transfer has taken all. Each packet of an isochronous one moves its part. On the way up it replaces the
        device's answer. Raises ValueError for data that does not fit or has no business there."""
        if self.stage == ENDED:
            return
        if self.is_in:
            if len(data) > self.length:
                raise ValueError(f"{len(data)} bytes do not fit into {self.length}")
            self.write(data)
            actual = len(data)
        elif data:
            raise ValueError("an OUT transfer has no data to give")
        else:
            actual = self.length
        for packet in self.packets:
            packet.status = TransferStatus.COMPLETED
            packet.actual = min(packet.length, max(actual - packet.offset, 0))
        self.path.settle(self, TransferStatus.COMPLETED, actual)

    def refuse(self, status: TransferStatus = TransferStatus.STALL) -> None:
        """End the transfer with `status` and nothing moved, without the device; on the way up, instead of what it
        said. A STALL halts an endpoint other than 0 until the guest clears it, which the device is told too."""
        if self.stage == ENDED:
            return
        if not isinstance(status, TransferStatus):
            raise ValueError(f"{status!r} is not a TransferStatus")
        for packet in self.packets:
            packet.status, packet.actual = status, 0
        self.path.settle(self, status, 0)

    def replace(self, data: bytes | bytearray | memoryview) -> None:
        """Put `data` in the place of what there is: on the way down, what the device is given by an OUT transfer, of
        any length (the guest is told that all of its own was taken); on the way up, what the guest gets by an IN
        transfer, at most `length`. Raises ValueError otherwise."""
        if self.stage == ENDED:
            return
        if self.is_in:
            if self.stage not in (UP, HOLDING_UP, HELD_UP):
                raise ValueError("an IN transfer has no data on its way down yet; `answer` gives it some")
            if len(data) > self.length:
                raise ValueError(f"{len(data)} bytes do not fit into {self.length}")
            self.actual = self.write(data)
        else:
            self._must_be_down("given other data")
            if self.packets and len(data) != self.length:
                raise ValueError("the data of an isochronous transfer keeps its length")
            self.private = bytes(data)
            self.windows = [memoryview(self.private)] if self.private else []
            self.length = len(self.private)

    def make_private(self) -> None:
        """Go on with a copy of the guest's memory, which other processors of the guest may change at any time: what
        was inspected (OUT) is what the device gets, and what the device sends (IN) is seen by the guest only as the
        way up leaves it. On the way down only."""
        if self.stage == ENDED or self.private is not None:
            return
        self._must_be_down("made private")
        self.private = bytearray(self.length) if self.is_in else bytearray(Transfer.read(self))
        self.windows = [memoryview(self.private)] if self.private else []

    def split(self, size: int) -> None:
        """Give the device pieces of at most `size` bytes, one after the other, ended by a short or failed one; the
        guest sees one transfer. A multiple of the endpoint's packet size is wanted, and for bulk and interrupt only."""
        if self.stage == ENDED:
            return
        self._must_be_down("split")
        if size <= 0 or self.type not in (TransferType.BULK, TransferType.INTERRUPT):
            raise ValueError(f"a {self.type.name.lower()} transfer is not split into pieces of {size}")
        self.piece = size

    def hold(self) -> None:
        """Keep the transfer until `pass_on`, `answer` or `refuse` is called later, or the guest cancels it. On the
        way down, transfers behind it on its endpoint (and stream) wait, so that none overtakes it."""
        if self.stage == DOWN:
            self.stage = HOLDING
        elif self.stage == UP:
            self.stage = HOLDING_UP
        elif self.stage == PASSED:
            raise ValueError("a transfer that has been passed on cannot be held")

    def pass_on(self) -> None:
        """Go on with a transfer that is held, down to the device or up to the guest."""
        self._stop_timer()
        if self.stage == HOLDING:
            self.stage = DOWN
        elif self.stage == HOLDING_UP:
            self.stage = UP
        elif self.stage == HELD:
            self.path.release(self)
        elif self.stage == HELD_UP:
            self.path.finish(self)

    def delay(self, seconds: float) -> None:
        """Hold the transfer for `seconds`, then pass it on."""
        self.hold()
        if self.stage != ENDED:
            self._stop_timer()
            self.timer = self.path.interceptor.loop.call_later(seconds, self.pass_on)

    # -- for the framework -------------------------------------------------------------------------------------------

    def complete(self, status: TransferStatus, actual: int | None = None) -> None:
        """For the device below. Raises ValueError while the device does not have the transfer."""
        if self.stage == PASSED:
            self.status = status
            if actual is not None:
                self.actual = actual
            self.on_complete(self)
        elif self.stage < PASSED:
            raise ValueError("an interceptor ends a transfer by answer or refuse, not by complete")

    def end(self) -> None:
        """Nothing happens to it any more."""
        self.stage = ENDED
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _must_be_down(self, what: str) -> None:
        if self.stage not in (DOWN, HOLDING, HELD):
            raise ValueError(f"a transfer can be {what} on its way down only")


class Requester(ABC):
    """Sends an interceptor's own transfers to the device below it."""

    @abstractmethod
    def request(self, transfer: Transfer, then: Callable[[Transfer], object]) -> None:
        """Submit `transfer` to the device; `then` is called with it once it has ended."""

    @abstractmethod
    def call_later(self, delay: float, callback: Callable[..., object], args: tuple[Any, ...]) -> Timer:
        """Call back unless the device is closed by then; an exception is logged."""

    @abstractmethod
    def unplug(self) -> None:
        """See `Interceptor.unplug`."""


class Interceptor:
    """What one plugin does to the transfers of one device. Override what is of interest, leave the rest.

    Life: made by the hook `usbvfiod_intercept_device`; `attached` once; the methods for transfers any number of times;
    `was_reset` after each reset; `closed` once. Everything is called on the loop's thread and must not block.

    A transfer goes by `control`, `bulk`, `interrupt` or `isochronous` on the way down and by the method with
    `_completed` on the way up, unless it was answered, refused or cancelled on the way. All return None. Endpoints of
    a type of which neither method is overridden, and those for which `intercepts` says no, do not come by here at
    all. An exception in a method fails its transfer with ERROR and is logged with the plugin's name.

    loop     the loop, from `attached` on
    device   the device below: the real one, or the interceptor that is nearer to it
    """

    loop: Loop
    device: Device
    requester: Requester
    """The framework's; see `request` and `control_request`."""

    def intercepts(self, endpoint: int, type: TransferType) -> bool:
        """Whether to see the transfers of an endpoint (address as in its descriptor). Asked once whenever the guest
        configures the endpoint."""
        return True

    # -- the device's life -------------------------------------------------------------------------------------------

    def attached(self) -> None:
        """The device is being plugged in. An exception fails the attachment."""

    def was_reset(self) -> None:
        """The guest has reset the port: the device is in the default state. An exception is only logged."""

    def closed(self) -> None:
        """The device has left and is never used again. An exception is only logged."""

    # -- transfers ---------------------------------------------------------------------------------------------------

    def control(self, transfer: InterceptedTransfer) -> None:
        """A control transfer (`transfer.setup`) on the way down."""

    def control_completed(self, transfer: InterceptedTransfer) -> None:
        """A control transfer on the way up."""

    def bulk(self, transfer: InterceptedTransfer) -> None:
        """A bulk transfer on the way down; `stream_id` is its stream, 0 without."""

    def bulk_completed(self, transfer: InterceptedTransfer) -> None:
        """A bulk transfer on the way up."""

    def interrupt(self, transfer: InterceptedTransfer) -> None:
        """An interrupt transfer on the way down."""

    def interrupt_completed(self, transfer: InterceptedTransfer) -> None:
        """An interrupt transfer on the way up."""

    def isochronous(self, transfer: InterceptedTransfer) -> None:
        """An isochronous transfer on the way down, with its `packets` and `frame`."""

    def isochronous_completed(self, transfer: InterceptedTransfer) -> None:
        """An isochronous transfer on the way up; each of `packets` has its own status and actual length."""

    # -- descriptors -------------------------------------------------------------------------------------------------
    #
    # If one of these is overridden, GET_DESCRIPTOR for its kind is answered by the framework: it reads the whole
    # descriptor, has it edited, and gives the guest as much as it asked for.

    def device_descriptor(self, raw: bytes) -> bytes:
        """The device descriptor that the guest sees (USB 2.0 9.6.1). An exception fails the request."""
        return raw

    def configuration_descriptor(self, raw: bytes) -> bytes:
        """A configuration, or other-speed configuration, that the guest sees, with all that belongs to it (9.6.3 and
        9.6.4). wTotalLength is set afterwards. An exception fails the request."""
        return raw

    def bos_descriptor(self, raw: bytes) -> bytes:
        """The BOS and the capabilities in it (USB 3.2 9.6.2). wTotalLength is set afterwards. An exception fails the
        request."""
        return raw

    def string_descriptor(self, index: int, raw: bytes) -> bytes:
        """The string descriptor `index` that the guest sees (USB 2.0 9.6.7). An exception fails the request."""
        return raw

    # -- going on in another process (`usbvfiod upgrade`): an interceptor of another process is told what this one knows

    def own_state(self) -> dict[str, Any]:
        """What another process has to know so that an interceptor made there goes on as this one would: plain values,
        as `json.dumps` takes them, and an empty dictionary if nothing is kept. No transfer of the guest's and no
        request of one's own is on its way. Raises CannotHandOver, as here: then the device is not handed over."""
        raise CannotHandOver(f"{type(self).__name__} does not say what it keeps")

    def take_own_state(self, state: dict[str, Any]) -> None:
        """The values of `own_state` of another process, on a new interceptor; `attached` follows, and no reset. Raises
        CannotHandOver for what it cannot go on with."""
        if state:
            raise CannotHandOver(f"{type(self).__name__} does not go on with what another process knows")

    # -- for subclasses to call --------------------------------------------------------------------------------------

    def control_request(
        self, setup: SetupPacket, then: Callable[[Transfer], object], data: bytes | bytearray = b""
    ) -> Transfer:
        """Send a control transfer of one's own to the device below; `then` gets it when it has ended: its `status`,
        and by `read()[:actual]` its data. `data` is the data stage of an OUT request.

        It is cancelled if the guest resets the device or the device leaves. An exception in `then` is logged.
        """
        return self.request(0, TransferType.CONTROL, setup.length if setup.is_in else data, then, setup=setup)

    def request(
        self,
        endpoint: int,
        type: TransferType,
        data: bytes | bytearray | int,
        then: Callable[[Transfer], object],
        *,
        setup: SetupPacket | None = None,
        stream_id: int = 0,
    ) -> Transfer:
        """The same for any endpoint; `data` is what is sent (OUT) or how much is asked for (IN). It takes its turn
        behind what the guest has already been given to the device on this endpoint, not behind what is held."""
        buffer = bytearray(data)
        windows = [memoryview(buffer)] if buffer else []
        transfer = Transfer(endpoint, type, windows, len(buffer), _nothing, setup=setup, stream_id=stream_id)
        self.requester.request(transfer, then)
        return transfer

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call `callback` in `delay` seconds, unless the device has been closed by then. An exception is logged."""
        return self.requester.call_later(delay, callback, args)

    def unplug(self) -> None:
        """Take the device away from the guest, as if it were pulled out."""
        self.requester.unplug()


def _nothing(transfer: Transfer) -> None:
    pass
