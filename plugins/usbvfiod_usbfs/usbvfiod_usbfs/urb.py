"""URBs: the transfers of usbfs. Submitting them, taking them back, and the memory they point into.

usbfs copies OUT data when an URB is submitted and IN data when it is reaped, and at no other time. So an URB may point
straight into guest memory, and memory whose URB is not reaped any more is not touched any more.
"""

from __future__ import annotations

import ctypes
import errno
import logging
from collections.abc import Callable
from typing import Final, Protocol

from usbvfiod_core.usb.device import Loop

from . import ioctl as usbfs
from .ioctl import Ioctl
from .status import RETRY

log = logging.getLogger(__name__)

RETRY_DELAY: Final = 0.01
"""Seconds after which an URB is submitted again that usbfs had no memory for, if nothing comes back earlier."""
PATIENCE: Final = 5.0
"""Seconds without any URB taken or given back after which what waits for memory fails."""
_REAPED_AT_ONCE: Final = 256
_ENDED_EARLY: Final = frozenset((-errno.ENOENT, -errno.ECONNRESET, -errno.ENODEV, -errno.ESHUTDOWN))
"""What the kernel ends URBs with that it takes back itself, as when usbfs loses their interface."""
_KEPT_BYTES: Final = 4 << 20
"""Bounce buffers that are kept for the next transfers; clearing new ones costs as much as copying."""


class Owner(Protocol):
    """Who submits URBs."""

    def reaped(self, urb: Urb, status: int, actual: int) -> None:
        """An URB has been reaped; `status` is 0 or a negative errno."""
        ...

    def pump(self) -> None:
        """There may be memory again: submit what waits."""
        ...

    def give_up(self) -> None:
        """There is still no memory: end what waits with an error."""
        ...


class Urb:
    """An URB with room for `packets` packets. It stays where it is in memory until it has been reaped.

    `bounce` is the buffer it points to if that is not guest memory, `pin` what keeps guest memory mapped, `length`
    the bytes asked for, `discarded` whether it is to end early. `content` belongs to the owner.
    """

    __slots__ = ("address", "bounce", "content", "discarded", "length", "memory", "owner", "packets", "pin")

    def __init__(self, packets: int = 0) -> None:
        self.memory = ctypes.create_string_buffer(usbfs.URB.size + packets * usbfs.ISO_PACKET.size)
        self.address = ctypes.addressof(self.memory)
        self.packets = packets
        self.length = 0
        self.bounce: bytearray | None = None
        self.pin: object = None
        self.owner: Owner | None = None
        self.content: object = None
        self.discarded = False


class Urbs:
    """The URBs of one device. Everything is called on the loop's thread.

    `lost` is called when the device is gone. `refused`, which must do nothing to URBs, is called with each that the
    kernel refuses for good, and the negative errno; `ended_early` when the kernel has ended one by itself, before it is
    given back to its owner; `starved` when something is given up for want of memory.
    """

    def __init__(self, fd: int, loop: Loop, lost: Callable[[], object], ioctl: Ioctl = usbfs.system_ioctl) -> None:
        self.fd = fd
        self.refused: Callable[[Urb, int], object] = lambda urb, code: None
        self.ended_early: Callable[[], object] = lambda: None
        self.starved: Callable[[], object] = lambda: None
        self.submitted = 0
        """URBs taken by the kernel since the beginning."""
        self._loop = loop
        self._lost = lost
        self._ioctl = ioctl
        self._reaped = ctypes.c_void_p()
        self._reaped_address = ctypes.addressof(self._reaped)
        self._inflight: dict[int, Urb] = {}
        self._free: dict[int, list[Urb]] = {}
        self._buffers: dict[int, list[bytearray]] = {}
        self._kept = 0
        self._waiting: dict[Owner, None] = {}
        self._last_progress = 0.0
        self._timer_set = False
        self._paused = True
        self._dead = False

    @property
    def inflight(self) -> int:
        """URBs that the kernel has."""
        return len(self._inflight)

    # -- one URB -------------------------------------------------------------------------------------------------------

    def new(self, owner: Owner, packets: int = 0) -> Urb:
        """An URB to fill and submit, or to give back by `free`."""
        free = self._free.get(packets)
        urb = free.pop() if free else Urb(packets)
        urb.owner = owner
        return urb

    def free(self, urb: Urb) -> None:
        """Take an URB back that is not in flight."""
        buffer, urb.bounce = urb.bounce, None
        if buffer is not None and self._kept + len(buffer) <= _KEPT_BYTES:
            self._kept += len(buffer)
            self._buffers.setdefault(len(buffer), []).append(buffer)
        urb.pin = urb.content = urb.owner = None
        urb.discarded = False
        self._free.setdefault(urb.packets, []).append(urb)

    def buffer(self, length: int) -> bytearray:
        """A bounce buffer of at least so many bytes; its content is anything."""
        size = 1 << max(length - 1, 511).bit_length()
        kept = self._buffers.get(size)
        if kept:
            self._kept -= size
            return kept.pop()
        return bytearray(size)

    def submit(self, urb: Urb) -> int:
        """Hand an URB to the kernel; 0, or the negative errno and it is still the caller's."""
        if self._dead:
            return -errno.ENODEV
        if self._paused:
            return -errno.EAGAIN
        code = self._ioctl(self.fd, usbfs.SUBMITURB, urb.address)
        if code == 0:
            self._inflight[urb.address] = urb
            self.submitted += 1
        elif code not in RETRY:
            self.refused(urb, code)
        return code

    def discard(self, urb: Urb) -> None:
        """Have an URB ended soon; it comes back by `Owner.reaped`."""
        urb.discarded = True
        code = 0 if self._dead else self._ioctl(self.fd, usbfs.DISCARDURB, urb.address)
        # EINVAL: it is done and waits to be reaped.
        if code not in (0, -errno.EINVAL, -errno.ENODEV):
            log.warning("DISCARDURB: %s", errno.errorcode.get(-code, code))

    # -- all of them ---------------------------------------------------------------------------------------------------

    @property
    def memory_wanted(self) -> bool:
        """Whether somebody waits for memory: who has had some goes on in turn then, by `wait_for_memory`."""
        return bool(self._waiting)

    def wait_for_memory(self, owner: Owner) -> None:
        """Call `owner.pump` when there may be memory again."""
        if not self._waiting:
            self._last_progress = self._loop.time()
        self._waiting[owner] = None
        self._set_timer()

    def watch(self) -> None:
        """Begin, or go on after `pause`, to take back what is done."""
        if self._paused and not self._dead:
            self._paused = False
            self._loop.add_writer(self.fd, self.reap)
            self._last_progress = self._loop.time()
            self._pump()

    def pause(self) -> None:
        """Touch neither the kernel's URBs nor memory until `watch`."""
        if not self._paused:
            self._paused = True
            self._loop.remove_writer(self.fd)

    def reap(self) -> None:
        """Take back what is done; the fd is writable then, and for ever when the device is gone."""
        if self._paused:
            return
        ioctl, fd, reaped, address, inflight = (
            self._ioctl,
            self.fd,
            self._reaped,
            self._reaped_address,
            self._inflight,
        )
        unpack = usbfs.URB.unpack_from
        code = 0
        for _ in range(_REAPED_AT_ONCE):
            code = ioctl(fd, usbfs.REAPURBNDELAY, address)
            if code:
                break
            urb = inflight.pop(reaped.value or 0)
            fields = unpack(urb.memory)
            owner = urb.owner
            assert owner is not None
            status = fields[2]
            if status in _ENDED_EARLY and not urb.discarded:
                self.ended_early()
            owner.reaped(urb, status, fields[6])  # status, actual_length
            self.free(urb)
            if self._paused:  # the end of a transfer has started an operation
                return
            if not inflight:
                break  # it would only say EAGAIN
        if self._waiting:
            self._last_progress = self._loop.time()
            self._pump()
        if code == -errno.EFAULT:
            self._find_lost()
        elif code not in (0, -errno.EAGAIN):
            if code != -errno.ENODEV:
                log.error("REAPURBNDELAY: %s", errno.errorcode.get(-code, code))
            self.die()
            self._lost()

    def forget(self) -> None:
        """Another process goes on with the device: nothing is in flight, and nothing is submitted or reaped here."""
        self.pause()
        self._dead = True
        self._waiting.clear()

    def die(self) -> None:
        """The kernel has nothing more to give back: what is in flight ends as disconnected, nothing new is taken."""
        if self._dead:
            return
        self.pause()
        self._dead = True
        remaining = list(self._inflight.values())
        self._inflight.clear()
        for urb in remaining:
            assert urb.owner is not None
            urb.owner.reaped(urb, -errno.ENODEV, 0)
        waiting, self._waiting = self._waiting, {}
        for owner in waiting:
            owner.pump()

    # -- own -----------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        served = []
        for owner in list(self._waiting):
            submitted = self.submitted
            del self._waiting[owner]
            owner.pump()
            if self.submitted != submitted:
                served.append(owner)
        for owner in served:  # what they still want has time until the others have had something
            if owner in self._waiting:
                del self._waiting[owner]
                self._waiting[owner] = None

    def _set_timer(self) -> None:
        if not self._timer_set:
            self._timer_set = True
            self._loop.call_later(RETRY_DELAY, self._retry)

    def _retry(self) -> None:
        self._timer_set = False
        if self._paused or not self._waiting:
            return
        last, waiting, submitted = self._last_progress, list(self._waiting), self.submitted
        self._pump()
        if self.submitted != submitted or not self._waiting:
            self._last_progress = self._loop.time()
            return
        self._last_progress = last
        if self._loop.time() - last > PATIENCE:
            self.starved()
            for owner in waiting:
                if self._waiting.pop(owner, owner) is None:
                    owner.give_up()

    def _find_lost(self) -> None:
        """The kernel could not write an URB's data: the client has truncated the file of its memory. It does not say
        which URB that was, but that one cannot be discarded any more and never comes back."""
        suspects = [
            urb
            for urb in self._inflight.values()
            if self._ioctl(self.fd, usbfs.DISCARDURB, urb.address) == -errno.EINVAL
        ]
        self._loop.call_later(RETRY_DELAY, self._give_up_on, suspects)

    def _give_up_on(self, suspects: list[Urb]) -> None:
        if self._paused and not self._dead:
            self._loop.call_later(RETRY_DELAY, self._give_up_on, suspects)
            return
        self.reap()  # what can be had comes back now
        for urb in suspects:
            if self._inflight.get(urb.address) is urb and urb.owner is not None:
                del self._inflight[urb.address]
                urb.owner.reaped(urb, -errno.EFAULT, 0)
