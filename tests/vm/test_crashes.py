"""A Debian guest whose server is killed: its devices go and come back, its controller stays, and data is right."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import guest_usb
from tests.vm.guest import Guest, GuestFactory
from tests.vm.server import UsbvfiodServer
from usbvfiod_core.testing.limits import scaled, wait_until

pytestmark = pytest.mark.vm

DEAD = re.compile(
    r"HC died|Host Controller Error|Host System Error|not responding|Abort failed|unable to enumerate|WARNING:"
)
COPY = """
touch /tmp/copying
while [ ! -e /tmp/enough ]; do
    /usr/bin/dd if=/dev/zero of={disk} bs=65536 count=64 oflag=direct conv=fsync 2>/dev/null
    /usr/bin/dd if={disk} of=/dev/null bs=65536 count=64 iflag=direct 2>/dev/null
    sleep 0.01
done
"""


class FrontedServer(UsbvfiodServer):
    """A server behind a front, which is `process`."""

    def __init__(self, devices: list[str]) -> None:
        super().__init__(devices, before=("front", "--crashes", "0", "--"))

    @property
    def arguments(self) -> list[str]:
        """On a busy machine a server takes longer to start than QEMU waits by itself."""
        words = super().arguments
        device = json.loads(words[-1])
        return [*words[:-1], json.dumps({**device, "x-msg-timeout": int(scaled(60_000))})]

    def kill_server(self) -> None:
        """Kill the server, not the front, and wait until the next one goes on."""
        before = self.gone_on
        pid = int(self.request("status")["server"]["pid"])
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self.gone_on > before, self.log)

    @property
    def gone_on(self) -> int:
        """How often a server has gone on with the guest."""
        return self.log().count("goes on with its VM")

    def kill(self) -> None:
        """End both."""
        if self.process.poll() is None:
            self.stop()
        super().kill()


def disk_of(guest: Guest, image: Path) -> str:
    """Where a drive is, once it is there again."""
    size = image.stat().st_size
    return next(disk.path for disk in guest_usb.wait_disks(guest, 2) if disk.size == size)


def crash(guest_factory: GuestFactory, random_image: Callable[[int], Path], times: int) -> None:
    """Kill the server while the guest is idle, and while it writes and reads, so often."""
    images = {"kept": random_image(16), "busy": random_image(24)}
    server = FrontedServer(
        [
            f"virtual:flash?image={images['kept']}&transport=uas",
            f"virtual:flash?image={images['busy']}&transport=bot",
            "virtual:keyboard?name=keys",
        ]
    )
    with server:
        guest = guest_factory(server.arguments)
        kept = next(disk for disk in guest_usb.wait_disks(guest, 2) if disk.size == images["kept"].stat().st_size)
        sha = guest_usb.write_ext4(guest, kept, "hello")
        chance = random.Random(times)
        guest.dmesg(clear=True)
        for number in range(times):
            busy = number % 2 == 1
            if busy:
                guest.run("rm -f /tmp/enough /tmp/copying")
                copying = guest.start(COPY.format(disk=disk_of(guest, images["busy"])))
                guest.wait_until("[ -e /tmp/copying ]")
                time.sleep(chance.random() * 0.3)
            server.kill_server()
            count = 'dmesg | grep -c "new SuperSpeed USB device"'
            guest.wait_until(f"[ $({count}) -ge 2 ] || {{ dmesg | tail -30; false; }}")
            if busy:
                guest.run("touch /tmp/enough")
                guest.wait(copying, 120)
            disk = disk_of(guest, images["kept"])
            mount = f"mkdir -p /mnt/kept && mount -t ext4 -o ro {disk} /mnt/kept"
            check = f"{mount} && sha256sum /mnt/kept/random && umount /mnt/kept"
            assert guest.run(check, timeout=120).split()[0] == sha
            keys = guest_usb.start_reading_keys(guest, 2)
            server.send("keys", "type", "a")
            assert guest_usb.finish_reading_keys(guest, keys) == [(30, 1), (30, 0)]
            log = guest.dmesg(clear=True)
            assert log.count("USB disconnect") == 3
            assert [line for line in log.splitlines() if DEAD.search(line)] == []
        assert "does not go on with the VM" not in server.log()
    assert guest_usb.read_ext4(images["kept"], "text") == b"hello\n"


def test_a_guest_goes_on_when_its_server_is_killed(
    guest_factory: GuestFactory, random_image: Callable[[int], Path]
) -> None:
    crash(guest_factory, random_image, 2)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_fifty_crashes(guest_factory: GuestFactory, random_image: Callable[[int], Path]) -> None:
    crash(guest_factory, random_image, 50)
