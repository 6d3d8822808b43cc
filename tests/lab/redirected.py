"""Any device in Python as one of the lab's xHCI controller: behind QEMU's usb-redir. The kernel's usbip-host takes it,
which takes none of vhci_hcd's.

    with redirected(machine, FakeDevice) as (device, host):
        host.call(...)  # on its thread

Once in each lab: QEMU's usb-redir takes its end of the wire with it.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from redir_host import RedirHost

from tests.lab.machine import Machine, wire
from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core import Device
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop

WIRE = "wire1"


@contextmanager
def redirected(machine: Machine, make: Callable[[StepLoop], Device]) -> Iterator[tuple[HostUsbDevice, RedirHost]]:
    """Plug it in, as Linux sees it then, and what has it."""
    near, far = socket.socketpair()
    with far:
        port = os.open(wire(WIRE), os.O_RDWR | os.O_CLOEXEC)
        thread = threading.Thread(target=_carry, args=(port, far), name="wire", daemon=True)
        try:
            if select.select([port], [], [], 0)[0]:
                raise RuntimeError(f"QEMU has closed {WIRE}, as usb-redir does at its end: boot another lab")
            thread.start()
            with closing(RedirHost(near, make)) as host:
                device = machine.plug("usb-redir", chardev=WIRE)
                try:
                    yield device, host
                finally:
                    machine.unplug(device)
            thread.join(PATIENCE)
        finally:
            os.close(port)


def _carry(port: int, far: socket.socket) -> None:
    """Everything from the one to the other, until the socket's other end is closed."""
    while True:
        readable, _, _ = select.select([port, far.fileno()], [], [])
        if far.fileno() in readable:
            data = far.recv(65536)
            if not data:
                return
            while data:
                data = data[os.write(port, data) :]
        if port in readable:
            data = os.read(port, 65536)
            if not data:
                return
            try:
                far.sendall(data)
            except BrokenPipeError:  # what QEMU says last is for nobody any more
                return
