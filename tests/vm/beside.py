"""A guest beside the lab with devices of the lab's kernel: what a test of the whole chain works with.

with BesideLab(lab, directory) as chain, chain.offer("drive", "usbfs"):
    guest_usb.wait_disks(chain.guest)
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.vm.bridge import Bridge
from tests.vm.guest import GuestError, Running, vfio_user_arguments
from tests.vm.lab import WINDOW_MIB, Lab
from tests.vm.system import System
from usbvfiod_core.testing.limits import scaled

PLACE = "/tmp/beside"
CONTROL = f"{PLACE}/control.sock"
START_TIMEOUT = 120.0
COMMAND_TIMEOUT = 120.0
END_TIMEOUT = 60.0
REMOTE = {
    "usbip": ("exported.json", "tests.lab.exporting"),
    "usbredir": ("redirected.json", "tests.lab.stock_redirect"),
}
"""By backend: the file where what gives devices away says their addresses, and what that is."""


class BesideLab:
    """`usbvfiod` in the lab, a bridge to it, and a guest with the server's controller."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        with ExitStack() as stack:
            self._server = self._start()
            stack.callback(self._end)
            socket = directory / "usb.sock"
            stack.enter_context(Bridge(lab, socket, f"{PLACE}/usb.sock"))
            arguments = vfio_user_arguments(socket)
            # Two, so that the guest does something beside its interrupts: in each it reads registers several times,
            # and every read waits for the lab.
            memory = lab.window.fileno()
            self.guest = System(directory, arguments, memory_mib=WINDOW_MIB, memory_fd=memory, processors=2)
            stack.enter_context(self.guest)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stack.close()
        finally:
            if value is not None:
                value.add_note(f"usbvfiod in the lab said:\n{self.log()}")

    def log(self) -> str:
        """What the server has said."""
        return self.lab.run(f"cat {PLACE}/log")

    def usbvfiod(self, *words: str) -> str:
        """Run a command of usbvfiod's in the lab; what it prints."""
        return self.lab.usbvfiod(*words, "--control-path", CONTROL, timeout=COMMAND_TIMEOUT)

    @contextmanager
    def made(self, name: str) -> Iterator[list[str]]:
        """Make the devices of an offer (tests/lab/offers.py) in the lab; where they are plugged in there."""
        with self._program("offer.json", "tests.lab.offers", name) as ports:
            yield ports

    @contextmanager
    def given_away(self, ports: list[str], backend: str) -> Iterator[list[str]]:
        """Have stock peers of a backend in REMOTE give away the devices at these ports of the lab, from other machines;
        their addresses there."""
        file, module = REMOTE[backend]
        with self._program(file, module, *ports) as addresses:
            yield addresses

    @contextmanager
    def attached(self, ports: list[str], backend: str, options: str = "") -> Iterator[None]:
        """Attach the devices at these ports of the lab, or addresses of that backend, with options such as
        "follow-port=true"; afterwards they are detached."""
        names = [f"device{number}" for number, _ in enumerate(ports)]
        with ExitStack() as stack:
            for name, port in zip(names, ports, strict=True):
                self.usbvfiod("attach", "--timeout", "60", f"{backend}:{port}?name={name}&{options}".rstrip("&"))
                stack.callback(self.usbvfiod, "detach", "--timeout", "60", name)
            yield

    @contextmanager
    def offer(self, name: str, backend: str, options: str = "") -> Iterator[list[str]]:
        """Both; with a backend in REMOTE the devices are other machines'."""
        with ExitStack() as stack:
            ports = stack.enter_context(self.made(name))
            addresses = stack.enter_context(self.given_away(ports, backend)) if backend in REMOTE else ports
            stack.enter_context(self.attached(addresses, backend, options))
            yield ports

    @contextmanager
    def _program(self, file: str, module: str, *words: str) -> Iterator[list[str]]:
        """Run a module in the lab until the end; the list that it writes to a file, whose removal ends it."""
        path = self.lab.exchange / file
        running = self.lab.start_program(module, *words)
        try:
            deadline = time.monotonic() + scaled(START_TIMEOUT)
            while not path.exists():
                if self.lab.ended(running, 0.05) or time.monotonic() > deadline:
                    raise GuestError(f"{module} {' '.join(words)} does not come to it: {running.output}")
            yield json.loads(path.read_text())
        finally:
            path.unlink(missing_ok=True)
            self.lab.wait(running, END_TIMEOUT)

    def _start(self) -> Running:
        # The guest's memory is there the memory of a PCI device, a file of sysfs.
        command = f"python3 -m usbvfiod_core --any-memory-file --socket-path {PLACE}/usb.sock --control-path {CONTROL}"
        self.lab.run(f"rm -rf {PLACE}; mkdir {PLACE}")
        # In its sandbox it connects ports that it knows of at its start; usbredirect is at the same one.
        environment = "export USBVFIOD_USBIP_HOSTS=127.0.0.1"
        running = self.lab.start(f"{environment}; echo $$ > {PLACE}/pid; exec {command} 2> {PLACE}/log")
        self.lab.wait_until(f"grep 'serving on' {PLACE}/log", START_TIMEOUT)
        return running

    def _end(self) -> None:
        self.lab.run(f"kill -TERM $(cat {PLACE}/pid)")
        self.lab.wait(self._server, END_TIMEOUT)
