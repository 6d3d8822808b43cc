"""Debian's `usbredirect` in the lab: the other end of usbredir that nobody here wrote.

    with Redirect(device) as there, Passed("usbredir", device, directory, address=there.address) as given:

It ends with its connection, so it is started again whenever it has ended, as docs/remote.md has a service do it. One
that comes is started when somebody waits for it: to be refused again and again takes an emulated processor as a whole.

For a guest beside the lab, `python3 -m tests.lab.stock_redirect PORT...` gives away the devices at these ports. Their
addresses stand in /exchange/redirected.json, as a list, once they can be connected, until that file is removed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from tests.lab.far import Far, listens
from tests.lab.standing import stand
from tests.lab.usb_device import HostUsbDevice, at_path
from usbvfiod_core.testing.limits import PATIENCE, wait_until

ADDRESSES = Path("/exchange/redirected.json")
PORT = 3240
"""Of those for a guest beside the lab: its server, in the sandbox, connects the ports that it knows at its start."""
_RESTART = 0.1
"""Seconds until it is started again, as systemd's RestartSec=."""


def free_port() -> int:
    """A TCP port of the loopback interface that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class Redirect:
    """`usbredirect` for a device, found by its vendor and product. It waits at `port`; with `comes` it connects that
    port. With `far` it is on that machine. `end`, or leaving `with`, ends it."""

    def __init__(
        self,
        device: HostUsbDevice,
        *,
        comes: bool = False,
        far: Far | None = None,
        port: int = 0,
        options: Sequence[str] = (),
    ) -> None:
        self.port = port or free_port()
        self.starts = 0
        self._comes = comes
        self._host = "127.0.0.1" if far is None else far.near_address if comes else far.address
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        place = f"{self._host}:{self.port}"
        prefix = () if far is None else far.prefix
        self._words = [*prefix, "usbredirect", "--device", device.id, "--to" if comes else "--as", place, *options]
        self._process: subprocess.Popen[bytes] | None = None
        self._changed = threading.Condition()
        self._wanted = True
        self._ended = False
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()
        try:
            self.wait()
        except BaseException:
            self.end()
            raise

    @property
    def output(self) -> str:
        """What it has said."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    @property
    def address(self) -> str:
        """For a device specification."""
        return f"{'listen=' if self._comes else ''}{self._host}:{self.port}"

    def wait(self) -> None:
        """Wait until it can be connected, unless it comes."""
        if not self._comes:
            wait_until(self._waits, lambda: f"usbredirect: {self.output[-500:]}")

    def kill(self) -> None:
        """End it, as hard as it goes; it is started again."""
        with self._changed:
            if self._process is not None:
                self._process.kill()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Kill it, and do not start it again before the end of `with`."""
        self._want(False)
        self.kill()
        wait_until(lambda: self._process is None, "usbredirect does not end")
        yield
        self._want(True)

    def __enter__(self) -> Redirect:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is not None:
            value.add_note(f"usbredirect said:\n{self.output[-2000:]}")
        self.end()

    def end(self) -> None:
        """End it for good."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self.kill()
        self._thread.join(PATIENCE)
        self._output.close()

    # -- own ---------------------------------------------------------------------------------------------------------

    def _waits(self) -> bool:
        process = self._process
        return process is not None and listens(self.port, process.pid)

    def _want(self, wanted: bool) -> None:
        with self._changed:
            self._wanted = wanted
            self._changed.notify_all()

    def _keep(self) -> None:
        """In a thread: it runs, as long as it is wanted."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._wanted)
                while self._comes and not self._ended and not (self._wanted and listens(self.port, os.getpid())):
                    self._changed.wait(_RESTART)
                if self._ended:
                    return
                process = self._process = subprocess.Popen(self._words, stdout=self._output, stderr=subprocess.STDOUT)
                self.starts += 1
            process.wait()
            with self._changed:
                self._process = None
                self._changed.wait_for(lambda: self._ended, _RESTART)


def main(ports: Sequence[str]) -> None:
    """Give devices away until the file is removed, each from a machine of its own."""
    with ExitStack() as stack:
        addresses = []
        for port in ports:
            far = stack.enter_context(Far())
            addresses.append(stack.enter_context(Redirect(at_path(port), far=far, port=PORT)).address)
        stand(ADDRESSES, addresses)


if __name__ == "__main__":
    main(sys.argv[1:])
