"""What a server that was killed has left: its state file, the descriptors that were held, and the guest's memory. All
of it may be wrong: a guest writes its memory, and a server that somebody has taken over the rest. The next start goes
on with it or refuses it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, Final

from tests.fuzz.inputs import Actions
from tests.fuzz.watch import EnoughError, Watch, WatchedLoop
from usbvfiod_core.daemon.loop import ServerLoop
from usbvfiod_core.daemon.recovered import SERVER, KeptServer, Recovered, recovered
from usbvfiod_core.errors import ClientError, UsbvfiodError
from usbvfiod_core.pci.interrupts import Mechanism
from usbvfiod_core.serving import ControllerServer
from usbvfiod_core.state import StateError, pack
from usbvfiod_core.state_file import StateFile
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.memory import BELOW_4_GIB, GuestRam
from usbvfiod_core.testing.uas import CLASS, UasClient
from usbvfiod_core.testing.vmm import CLOUD_HYPERVISOR, QEMU, Vmm
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.virtual.loopback import Loopback
from usbvfiod_core.xhci import registers as reg

MOST_ACTIONS: Final = 40
RAM: Final = ((BELOW_4_GIB, 1 << 20),)
PAGE: Final = 4096
AREAS: Final = ("head", "registers", "config", "msix", "controller", "session", "maps", "input")
IN_USE: Final = {"maps": 256, "input": 256, "controller": 48, "session": 24, "head": 32, "config": 256, "msix": 128}
"""Bytes of an area that mean something."""
REGISTERS: Final = tuple(offset for _, offset, _ in reg.register_map(15, 8))


@dataclass(frozen=True)
class Left:
    """Of one server: what its files hold, by their names, in pieces; the places in memory that the guest has told it,
    and the kind of its client."""

    files: dict[str, list[tuple[int, bytes]]]
    sizes: dict[str, int]
    document: dict[str, Any]
    places: tuple[int, ...]


@cache
def left(vmm: Vmm) -> Left:
    """A server with a drive that has streams and a loopback, in the middle of their work."""
    with TemporaryDirectory() as place, ExitStack() as stack:
        image = Path(place) / "drive.img"
        image.write_bytes(bytes(1 << 20))
        loop, file = ServerLoop(), StateFile.create()
        stack.callback(file.close)
        server = ControllerServer(loop, path=f"{place}/usb", state_file=file, interrupter_page="auto")
        file.keep(SERVER, pack(KeptServer({}, sorted(each.value for each in Mechanism))))
        file.complete()
        server.transport.start()
        backend = VirtualBackend()
        for address in (f"flash?image={image}&transport=uas", "loopback"):
            kind, _, options = address.partition("?")
            given = dict(each.split("=") for each in options.split("&") if each)
            server.controller.plug(backend.open(kind, given, loop))
        thread = Thread(target=loop.run_forever, daemon=True)
        thread.start()
        bus = SocketBus(VfioUserClient.connect(f"{place}/usb", vmm=vmm, timeout=PATIENCE), GuestRam(RAM))
        driver = GuestDriver(bus).start()
        devices = [driver.enumerate(port.port_id) for port in driver.connected_ports()]
        for device in devices:
            if device.interface(0).class_code == CLASS:
                UasClient(device, streams=2)
        places = [driver.dcbaa, driver.commands.ring.base, *(ring.table for ring in driver.event_rings)]
        for device in devices:
            places += [device.context.address + 32 * dci for dci in range(8)]
        found = Left(
            {name: _pieces(fd) for name, fd in [("state", file.fd), *file.held.items()] if name != "client"},
            {name: os.fstat(fd).st_size for name, fd in [("state", file.fd), *file.held.items()] if name != "client"},
            file.document(),
            tuple(places),
        )
        bus.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.transport.close()
        for port in (1, 2, 9, 10):
            if server.controller.device_at(port, enabled=False) is not None:
                server.controller.unplug(port)
        for _ in range(3):
            loop.call_soon(loop.stop)
            loop.run_forever()
        loop.close()
    return found


def _pieces(fd: int) -> list[tuple[int, bytes]]:
    """The pages of a file in memory that are not empty; none of an eventfd."""
    found = []
    with suppress(OSError):
        for at in range(0, os.fstat(fd).st_size, PAGE):
            data = os.pread(fd, PAGE, at)
            if data.strip(b"\0"):
                found.append((at, data))
    return found


class Found:
    """What the next start finds, with descriptors of its own."""

    def __init__(self, what: Left, stack: ExitStack) -> None:
        self.left = what
        self.fds = {name: self._file(name, stack) for name in what.files}
        near, far = socket.socketpair()
        stack.callback(near.close)
        near.setblocking(False)
        self.client = near
        self.fds["client"] = far.detach()
        stack.callback(os.close, self.fds["client"])

    def _file(self, name: str, stack: ExitStack) -> int:
        if name.startswith("irq"):
            fd = os.eventfd(0, os.EFD_NONBLOCK)
        elif name == "state":
            file = StateFile.create()
            fd = file.fd
        else:
            fd = os.memfd_create("fuzz", os.MFD_CLOEXEC)
            os.ftruncate(fd, self.left.sizes[name])
        stack.callback(os.close, fd)
        for at, data in self.left.files[name]:
            os.pwrite(fd, data, at)
        return fd


class Damage:
    """What is wrong with it."""

    def __init__(self, actions: Actions, found: Found, stack: ExitStack) -> None:
        self.actions = actions
        self.found = found
        self._file = StateFile(os.dup(found.fds["state"]))
        self._stack = stack
        self.document: dict[str, Any] = json.loads(json.dumps(found.left.document))
        self.later: list[Callable[[], object]] = []

    def close(self) -> None:
        for part, value in self.document.items():
            self._file.keep(part, value)
        self._file.close()

    def area(self) -> None:
        """Bytes of a part of the state file."""
        act = self.actions
        name = act.pick(AREAS)
        area = self._file.area(name)
        at = act.pick(REGISTERS) if name == "registers" else act.below(IN_USE[name]) & ~3
        data = act.number(act.pick((1, 4, 8))).to_bytes(8, "little")[: act.pick((1, 4, 8))]
        area[at : at + len(data)] = data

    def memory(self) -> None:
        """Dwords of what the controller looks at in the guest's memory, on which it may point elsewhere."""
        act = self.actions
        base = act.pick(self.found.left.places)
        value = act.pick(self.found.left.places) | act.below(16) if act.flag() else act.number(8)
        data = value.to_bytes(8, "little")[: act.pick((4, 8))]
        at = base - BELOW_4_GIB + 4 * act.below(64)
        for name, fd in self.found.fds.items():
            if name.startswith("memory-"):
                with suppress(OSError):  # another one may have its name
                    os.pwrite(fd, data, at)

    def value(self) -> None:
        """Somewhere in the document."""
        act = self.actions
        place: Any = self.document
        for _ in range(4):
            keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                return
            key = act.pick(keys)
            if act.flag() and isinstance(place[key], dict | list):
                place = place[key]
                continue
            place[key] = act.pick(
                (None, -1, 1 << 70, "", "x" * 200, [], {}, True, 1e300, ["irq-2-0"], [{}], "A5" * 20, [[0, 1 << 40]])
            )
            return

    def descriptor(self) -> None:
        """One that was held is missing, is another one, or has another name."""
        act, fds = self.actions, self.found.fds
        name = act.pick(sorted(each for each in fds if each != "state"))
        if act.flag():
            del fds[name]
        else:
            fds[act.pick((name, "irq-", "irq-2-99999999999", "irq--1-x", "irq-9-9", "memory-", "memory-7", "page"))] = (
                fds[act.pick(sorted(fds))]
            )

    def message(self) -> None:
        """Something has come from the client that was not answered."""
        act = self.actions
        data = act.some(48)
        area = self._file.area("input")
        area[: len(data)] = data


DAMAGES: Final = (
    Damage.area,
    Damage.area,
    Damage.area,
    Damage.memory,
    Damage.memory,
    Damage.memory,
    Damage.value,
    Damage.descriptor,
    Damage.message,
)


def play(actions: Actions, watch: Watch) -> None:
    """A start with what is left, and what the guest's driver may do then."""
    vmm = actions.pick((QEMU, CLOUD_HYPERVISOR))
    what = left(vmm)
    with ExitStack() as stack:
        found = Found(what, stack)
        damage = Damage(actions, found, stack)
        for _ in range(actions.below(12)):
            actions.pick(DAMAGES)(damage)
        damage.close()
        fds = dict(found.fds)
        fd = os.dup(fds.pop("state"))
        try:
            file = StateFile.opened(fd)
        except StateError:
            os.close(fd)
            return
        try:
            with watch.turn("finding out"):
                state = recovered(file, fds)
        except (StateError, ClientError):
            return
        finally:
            file.close()
        if state.state.transport.client is not None:
            with suppress(EnoughError, UsbvfiodError, OSError, ValueError):  # as `recovery.Survival.recover` has it
                _go_on(actions, watch, state, stack)


def _go_on(actions: Actions, watch: Watch, found: Recovered, stack: ExitStack) -> None:
    loop = WatchedLoop(watch)
    stack.callback(loop.close)
    place = stack.enter_context(TemporaryDirectory())
    server = ControllerServer(
        loop, path=f"{place}/usb", state_file=(file := StateFile.create()), interrupter_page="auto"
    )
    stack.callback(file.close)
    stack.callback(loop.run_ready)
    stack.callback(server.transport.close)
    own = {name: os.dup(fd) for name, fd in found.transport.items()}
    with watch.turn("restoring"):
        server.transport.restore(found.state.transport, own)
        server.controller.restore(found.state.controller, lambda port_id: None, found.page)
        server.transport.catch_up()
    server.controller.resume()
    server.transport.go_on()
    loop.advance(0.01)
    port = server.controller.plug(Loopback(loop))
    stack.callback(partial(_unplug, server, port))
    for _ in range(MOST_ACTIONS):
        if not actions:
            break
        offset = actions.pick(REGISTERS) if actions.flag() else reg.DOORBELL_BASE + 4 * actions.below(4)
        server.controller.write(offset, actions.number(4), 4)
        loop.advance(0.001)
    loop.advance(3.0)
    watch.look()


def _unplug(server: ControllerServer, port: int) -> None:
    if server.controller.device_at(port, enabled=False) is not None:
        server.controller.unplug(port)
