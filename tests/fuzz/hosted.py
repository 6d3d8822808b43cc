"""A guest that uses a device of the host's, which may be hostile, through a controller: what `usbfs` and `libusb` have
in common. The device has any descriptors, and answers anything, in any order, or nothing; the kernel refuses what it
likes; and at any moment the device may be gone. The guest's driver enumerates it as well as it can."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, suppress

from tests.fuzz.descriptors import listing
from tests.fuzz.inputs import Actions
from tests.fuzz.watch import MOST_TURNS, EnoughError, FindError, Watch, WatchedLoop
from usbvfiod_core.errors import UsbvfiodError
from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.driver import GuestDriver, IsochronousPipe, StreamPipe, UsbDevice
from usbvfiod_core.testing.memory import GuestRam
from usbvfiod_core.usb.descriptors import Companion, Configuration, DeviceDescriptor, Endpoint, Interface
from usbvfiod_core.usb.device import Device
from usbvfiod_core.usb.speed import Speed

MOST_ACTIONS = 60
MEMORY = ((0x0010_0000, 8 << 20),)
LENGTHS = (0, 1, 8, 31, 64, 512, 513, 4096, 65536, 200_000)
BULK = (Endpoint(0x81, 2, 512), Endpoint(0x01, 2, 512))
STREAMS = (Endpoint(0x85, 2, 1024, 0, Companion(3, 4)), Endpoint(0x05, 2, 1024, 0, Companion(3, 4)))
OTHERS = (Endpoint(0x82, 3, 64, 4), Endpoint(0x83, 1, 192, 1), Endpoint(0x03, 1, 192, 1))
SUPER = tuple(Endpoint(each.address, each.attributes, 1024, each.interval, Companion()) for each in (*BULK, *OTHERS))
CONFIGURATIONS = (
    (Configuration((Interface(0, 255, endpoints=BULK), Interface(1, 255, endpoints=OTHERS))),),
    (
        Configuration((Interface(0, 255, endpoints=SUPER[:2]), Interface(0, 8, alternate=1, endpoints=STREAMS))),
        Configuration((Interface(0, 255), Interface(33, 255, endpoints=SUPER[2:])), value=2),
    ),
    (Configuration((Interface(0, 3),), value=0),),
)
ERRNOS = (
    *(errno.EPIPE, errno.EPROTO, errno.EILSEQ, errno.EOVERFLOW, errno.ETIME, errno.EREMOTEIO, errno.ENOENT),
    *(errno.ECONNRESET, errno.ESHUTDOWN, errno.ENODEV, errno.EXDEV, errno.EFBIG, errno.ECOMM, errno.ENOSR),
    *(errno.ETIMEDOUT, errno.EINVAL, errno.EFAULT, errno.EBUSY, errno.ENOMEM, 9999),
)
REQUESTS = (
    # bmRequestType, bRequest, wValue, wIndex, wLength
    (0x80, 6, 0x100, 0, 18),
    (0x80, 6, 0x200, 0, 4096),
    (0x80, 6, 0x201, 0, 9),
    (0x80, 6, 0xF00, 0, 255),
    (0x80, 6, 0x302, 0x409, 255),
    (0x80, 0, 0, 0, 2),
    (0x80, 8, 0, 0, 1),
    (0x81, 10, 0, 0, 1),
    (0x82, 0, 0, 0x81, 2),
    (0x00, 3, 1, 0, 0),
    (0x00, 9, 0, 0, 0),
    (0x00, 9, 1, 0, 0),
    (0x00, 9, 2, 0, 0),
    (0x01, 11, 1, 0, 0),
    (0x01, 11, 0, 33, 0),
    (0x02, 1, 0, 0x81, 0),
    (0x02, 1, 0, 0x7F, 0),
    (0xC0, 1, 0, 0, 65535),
    (0x40, 1, 0, 0, 65535),
    (0x21, 9, 0x200, 0, 8),
)


class Hosted(ABC):
    """The guest, and the host's side of its device, which a subclass opens."""

    def __init__(self, actions: Actions, watch: Watch, stack: ExitStack) -> None:
        self.actions = actions
        self.loop = WatchedLoop(watch)
        self.bus = DirectBus(ram=GuestRam(MEMORY), loop=self.loop)
        stack.callback(self.bus.close)
        self.driver = self._driver()
        self.device: Device | None = None
        self.usb: UsbDevice | None = None
        self.port = 0
        self.is_prompt = actions.byte() < 200
        """Whether most is answered at once."""
        stack.callback(self.unplug)

    @abstractmethod
    def open(self) -> Device | None:
        """What the backend makes of the device; None if it does not take it."""

    @abstractmethod
    def answer(self) -> None:
        """Something that is in flight ends, if there is anything."""

    @abstractmethod
    def refuse(self) -> None:
        """The kernel refuses something that comes."""

    @abstractmethod
    def vanish(self) -> None:
        """The device is pulled out."""

    @abstractmethod
    def end_all(self) -> None:
        """What is in flight ends, as it does in the end on any host."""

    def _driver(self) -> GuestDriver:
        driver = GuestDriver(self.bus).start()
        driver.timeout = 0.5
        return driver

    # -- what the device says ----------------------------------------------------------------------------------------

    def describe(self) -> tuple[bytes, Speed, int | None]:
        """The descriptors as the kernel lists them, the speed and the configuration that is set."""
        act = self.actions
        known = act.pick(CONFIGURATIONS)
        head = DeviceDescriptor(0x0320, 0, 0, 0, act.pick((9, 64, 8, 0)), 0x1209, 1, 0x100, 0, 0, 0, len(known)).pack()
        self.descriptors = head + b"".join(each.pack() for each in known)
        how = act.byte()
        if how < 60:
            self.descriptors = head + listing(act)
        elif how < 160:
            raw = bytearray(self.descriptors)
            for _ in range(1 + act.below(4)):
                raw[18 + act.below(len(raw) - 18)] = act.byte()
            self.descriptors = bytes(raw)
        speed = act.pick((Speed.SUPER, Speed.HIGH, Speed.FULL, Speed.LOW, Speed.SUPER_PLUS))
        return self.descriptors, speed, act.pick((1, 1, 1, None, 2, 0, 77))

    def said(self, setup: bytes, length: int) -> bytes:
        """What the device answers to a request, as it should for the most part."""
        act = self.actions
        if act.byte() >= 200:
            return act.some(min(length, 64))
        if setup[:2] == b"\x80\x06" and setup[3] == 1:
            return self.descriptors[:18][:length]
        return act.blob(min(length, 32)) if act.flag() else bytes(length)

    def prompt(self) -> bool:
        """Whether the next is answered at once."""
        return self.is_prompt and self.actions.byte() < 230

    # -- what the guest does -----------------------------------------------------------------------------------------

    def begin(self) -> bool:
        """Plug it in and enumerate it; whether there is one."""
        self.device = self.open()
        if self.device is None:
            return False
        self.port = self.bus.plug(self.device)
        with suppress(UsbvfiodError, TimeoutError):
            self.usb = self.driver.enumerate(self.port)
        return True

    def request(self) -> None:
        act = self.actions
        kind, request, value, index, length = act.pick(REQUESTS)
        if act.rarely():
            value, index, length = act.number(2), act.number(2), act.number(2)
        if self.usb is None:
            return
        if kind & 0x80:
            self.usb.control_in(kind, request, value, index, length)
        else:
            self.usb.control_out(kind, request, value, index, act.blob(min(length, 600)))

    def move(self) -> None:
        """Transfers on an endpoint, for which nobody waits."""
        act = self.actions
        if self.usb is None or not self.usb.pipes:
            return
        pipe = act.pick(list(self.usb.pipes.values()))
        for _ in range(1 + act.below(12)):
            length = act.pick(LENGTHS)
            if isinstance(pipe, IsochronousPipe):
                length = min(length, pipe.payload_max)
            target = self.usb.stream(pipe.address, 1 + act.below(3)) if isinstance(pipe, StreamPipe) else pipe
            if pipe.address & 0x80:
                target.submit(length=length)
            else:
                target.submit(bytes(length))

    def configure(self) -> None:
        if self.usb is not None:
            self.usb.set_configuration(self.actions.pick((1, 2, None, 0, 1)))

    def set(self) -> None:
        if self.usb is not None:
            self.usb.set_interface(self.actions.pick((0, 1, 33)), self.actions.pick((0, 1)))

    def take_streams(self) -> None:
        if self.usb is not None:
            self.usb.alloc_streams(0, 2)

    def stop(self) -> None:
        act = self.actions
        if self.usb is not None and self.usb.pipes:
            pipe = act.pick(list(self.usb.pipes.values()))
            deeds: tuple[Callable[[], object], ...] = (pipe.stop, pipe.recover, pipe.flush, pipe.resume)
            act.pick(deeds)()

    def reset(self) -> None:
        if self.usb is not None:
            self.usb.reset()

    def start_over(self) -> None:
        """The client resets the function, and another driver comes."""
        if not self.actions.rarely():
            return  # it takes long
        self.bus.reset()
        self.driver = self._driver()
        self.usb = None
        self.usb = self.driver.enumerate(self.port)

    def wait(self) -> None:
        self.loop.advance(self.actions.pick((0.001, 0.02, 0.5, 6.0)))

    def unplug(self) -> None:
        """In the end; then nothing of the device may be left."""
        self.loop.between = lambda: None
        self.loop.most_turns += MOST_TURNS
        self.end_all()
        if self.device is None:
            return
        closed: list[bool] = []
        if self.bus.controller.device_at(self.port, enabled=False) is not None:
            self.bus.unplug(self.port)
        self.device.close()
        self.device.when_closed(lambda: closed.append(True))
        self.loop.advance(10.0)
        if not closed:
            raise FindError("the device is not given back")
        if self.loop.watched:
            raise FindError(f"descriptors are still watched: {self.loop.watched}")


DEEDS = (
    Hosted.answer,
    Hosted.answer,
    Hosted.answer,
    Hosted.request,
    Hosted.request,
    Hosted.move,
    Hosted.move,
    Hosted.move,
    Hosted.configure,
    Hosted.set,
    Hosted.take_streams,
    Hosted.stop,
    Hosted.stop,
    Hosted.refuse,
    Hosted.refuse,
    Hosted.reset,
    Hosted.start_over,
    Hosted.wait,
    Hosted.vanish,
)


def play(hosted: type[Hosted], actions: Actions, watch: Watch) -> None:
    """One device, from its opening until it is given back."""
    with ExitStack() as stack:
        host = hosted(actions, watch, stack)
        with suppress(EnoughError):
            for _ in range(MOST_ACTIONS if host.begin() else 0):
                if not actions:
                    break
                deed = actions.pick(DEEDS)
                with suppress(UsbvfiodError, TimeoutError):
                    getattr(host, deed.__name__)()
            host.loop.advance(0.1)
        watch.look()
