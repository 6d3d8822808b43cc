"""Signals an eventfd without ever waiting for whoever reads it.

An eventfd whose counter is full blocks a writer unless it is non-blocking (eventfd(2)). That flag belongs to the open
file, so the client, who has passed it to us, can take it away whenever it likes; looking before each write is no help,
as it may do so right afterwards. An eventfd cannot be opened anew for a flag of our own either, and it ignores
RWF_NOWAIT. But the kernel itself never waits when it signals one, and asynchronous I/O lets it do so: a read of no
bytes fails at once, and the end of the request signals the eventfd (io_submit(2), IOCB_FLAG_RESFD). That costs a
microsecond more than a write.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Callable
from errno import EAGAIN
from typing import Any, Final

log = logging.getLogger(__name__)

_CALLS: Final = {"x86_64": (206, 208, 209), "aarch64": (0, 4, 2), "riscv64": (0, 4, 2), "loongarch64": (0, 4, 2)}
"""Numbers of io_setup, io_getevents and io_submit."""
_COMPLETIONS: Final = 8
"""Of this process in fs.aio-max-nr; the kernel keeps no fewer than it has processors."""
_EVENTS: Final = 256
_EVENT_SIZE: Final = 32
_PREAD: Final = 0
_RESFD: Final = 1

Signal = Callable[[], None]


def signal(fd: int) -> Signal:
    """What adds one to the counter of the eventfd `fd`, as long as that is open; it never blocks and never raises.

    For one thread at a time. Where the kernel has no asynchronous I/O for us, this looks whether there is room and
    writes, which a client that takes the room in between can block.
    """
    global _known
    if _known is None or _known[0] != os.getpid():  # a fork has no asynchronous I/O that its parent has set up
        make = _set_up()
        if make is None or not _works(make):
            log.info("this kernel has no asynchronous I/O for the server: a client could make it wait for an interrupt")
            make = _looking
        _known = os.getpid(), make
    return _known[1](fd)


_known: tuple[int, Callable[[int], Signal]] | None = None


def _set_up() -> Callable[[int], Signal] | None:
    """Set up asynchronous I/O for this process: what makes a `Signal` for an eventfd; None if it cannot be had."""
    numbers = _CALLS.get(os.uname().machine)
    if numbers is None:
        return None
    import ctypes as c

    # Not CDLL, which would let other threads run meanwhile: none of these waits for anything.
    libc = c.PyDLL(None, use_errno=True)
    # Arguments are converted once, not with each call.
    number = c.c_long.from_param
    io_setup, io_getevents, io_submit = map(number, numbers)
    made = c.c_ulong(0)
    if libc.syscall(io_setup, number(_COMPLETIONS), c.byref(made)):
        return None
    context = c.c_ulong.from_param(made.value)

    class Iocb(c.Structure):
        _fields_ = (
            ("data", c.c_uint64),
            ("key", c.c_uint32),
            ("rw_flags", c.c_uint32),
            ("opcode", c.c_uint16),
            ("priority", c.c_int16),
            ("fd", c.c_uint32),
            ("buffer", c.c_uint64),
            ("length", c.c_uint64),
            ("offset", c.c_int64),
            ("reserved", c.c_uint64),
            ("flags", c.c_uint32),
            ("resfd", c.c_uint32),
        )

    events = (c.c_char * (_EVENTS * _EVENT_SIZE))()
    syscall, one = libc.syscall, number(1)
    reap: Final[tuple[Any, ...]] = (
        io_getevents,
        context,
        number(0),
        number(_EVENTS),
        c.byref(events),
        None,
    )

    def make(fd: int) -> Signal:
        request = Iocb(opcode=_PREAD, fd=fd, buffer=c.addressof(events), length=0, flags=_RESFD, resfd=fd)
        requests = (c.c_void_p * 1)(c.addressof(request))
        submit: tuple[Any, ...] = (io_submit, context, one, c.byref(requests))

        def send(_keep: object = (request, requests, events)) -> None:
            if syscall(*submit) != 1 and c.get_errno() == EAGAIN:  # the kernel has no room for one more completion
                syscall(*reap)
                syscall(*submit)

        return send

    return make


def _works(make: Callable[[int], Signal]) -> bool:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        make(fd)()
        return os.eventfd_read(fd) == 1
    except OSError:
        return False
    finally:
        os.close(fd)


def _looking(fd: int) -> Signal:
    room = select.poll()
    room.register(fd, select.POLLOUT)

    def send() -> None:
        try:
            if room.poll(0):  # a full counter is a signal already
                os.eventfd_write(fd, 1)
        except OSError:
            pass

    return send
