"""Stock peers for remote devices: the kernel's usbip-host with Debian's usbipd, in a network namespace of their own.

    with Host() as host, host.export(gadget.bind()) as exported:
        UsbipBackend().open(exported.address, UsbipOptions(), loop)

The way there can be slow, lose packets, or be cut: see `far`.

For a guest beside the lab, `python3 -m tests.lab.exporting PORT...` exports the devices at these ports. Their addresses
stand in /exchange/exported.json, as a list, once they are exported. They stay it until that file is removed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tests.lab.far import Far, modprobe, run, wait_listening
from tests.lab.standing import stand
from tests.lab.usb_device import HostUsbDevice, at_path
from usbvfiod_core.testing.limits import PATIENCE, wait_until

DRIVER = Path("/sys/bus/usb/drivers/usbip-host")
ADDRESSES = Path("/exchange/exported.json")
PORT = 3240
KEEPALIVE = (2, 1, 2)
"""Seconds, interval and probes after which a host notices that an importer is gone; see docs/remote.md."""


class Host(Far):
    """Another machine, where usbipd listens at `address`."""

    def __init__(self) -> None:
        modprobe("usbip-host")
        wait_until(DRIVER.exists, "usbip-host")
        super().__init__()
        self._usbipd: subprocess.Popen[bytes] | None = None
        self.keepalive(*KEEPALIVE)
        self.start_server()

    def start_server(self) -> None:
        """Start usbipd, and wait until it listens."""
        self._usbipd = self.start("usbipd", "-4")
        wait_listening(self._usbipd, PORT)

    def stop_server(self) -> None:
        """Kill usbipd. What it has exported stays connected: that is the kernel's."""
        if self._usbipd is not None:
            self._usbipd.kill()
            self._usbipd.wait(PATIENCE)
            self._usbipd = None

    def export(self, device: HostUsbDevice) -> Exported:
        """Give a device of the lab to usbip-host."""
        return Exported(self, device)


class Exported:
    """A device that is exported; leaving `with` gives it back to the lab's drivers."""

    def __init__(self, host: Host, device: HostUsbDevice) -> None:
        self.device = device
        self.busid = device.port
        self.address = f"{host.address}/{self.busid}"
        self.bind()

    def __enter__(self) -> Exported:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_bound:
            self.unbind()

    @property
    def is_bound(self) -> bool:
        """Whether usbip-host has it."""
        return (DRIVER / self.busid).exists()

    def bind(self) -> None:
        """`usbip bind`, unless usbip-host has remembered it."""
        if not self.is_bound:
            run("usbip", "bind", "-b", self.busid)
        wait_until(lambda: self.is_bound, f"usbip-host to have {self.busid}")

    def unbind(self) -> None:
        """`usbip unbind`, which ends its connection."""
        run("usbip", "unbind", "-b", self.busid)

    @property
    def status(self) -> int:
        """1 available, 2 used, 3 in error (enum usbip_device_status)."""
        return int((DRIVER / self.busid / "usbip_status").read_text())

    def wait_free(self) -> None:
        """Wait until nobody has imported it."""
        wait_until(lambda: self.status == 1, f"{self.busid} to be free")


def main(ports: Sequence[str]) -> None:
    """Export until the file is removed."""
    with Host() as host, ExitStack() as stack:
        stand(ADDRESSES, [stack.enter_context(host.export(at_path(port))).address for port in ports])


if __name__ == "__main__":
    main(sys.argv[1:])
