"""A Debian guest that copies and reads while its server is replaced, again and again: no device is reset, no driver
complains, and every byte is as it should be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import guest_usb
from tests.vm.guest import GuestFactory
from tests.vm.server import UsbvfiodServer
from usbvfiod_core.testing.limits import PATIENCE, wait_until

pytestmark = pytest.mark.vm

COPY = """set -e
mkdir -p /mnt/copy
mkfs.ext4 -q -F {to}
mount -t ext4 {to} /mnt/copy
touch /tmp/copying
rm -f /tmp/enough
round=0
while [ ! -e /tmp/enough ]; do
    blockdev --flushbufs {source}
    /usr/bin/dd if={source} of=/mnt/copy/copy bs=65536 conv=fsync 2>/dev/null
    echo 3 > /proc/sys/vm/drop_caches
    [ "$(sha256sum < /mnt/copy/copy | cut -c1-64)" = {sha} ] || {{ echo "the copy differs"; exit 1; }}
    round=$((round + 1))
done
umount /mnt/copy
echo $round
"""


class ReplacedServer(UsbvfiodServer):
    """A server that other processes take the place of; the last one is ended with the test."""

    pid = 0

    def upgrade(self) -> None:
        """Replace it."""
        command = [sys.executable, "-P", "-m", "usbvfiod_core", "upgrade", "--control-path", str(self.control_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.log()}"
        self.pid = int(self.request("status")["server"]["pid"])

    def kill(self) -> None:
        """End whichever serves."""
        super().kill()
        if self.pid:
            try:
                os.kill(self.pid, signal.SIGTERM)
            except ProcessLookupError:
                return
            wait_until(lambda: not Path(f"/proc/{self.pid}").exists(), "it does not end")


def replaced(
    guest_factory: GuestFactory, random_image: Callable[[int], Path], times: int, source: str, target: str
) -> None:
    """Copy from one drive to another under `times` upgrades, and type."""
    images = {"source": random_image(16), "target": random_image(40)}
    devices = [
        f"virtual:flash?image={images['source']}&transport={source}",
        f"virtual:flash?image={images['target']}&transport={target}",
        "virtual:keyboard?name=keys",
    ]
    server = ReplacedServer(devices)
    with server:
        guest = guest_factory(server.arguments)
        disks = {disk.size: disk.path for disk in guest_usb.wait_disks(guest, 2)}
        start, end = (disks[images[name].stat().st_size] for name in ("source", "target"))
        sha = guest_usb.image_sha256(images["source"])
        copying = guest.start(COPY.format(source=start, to=end, sha=sha))
        guest.wait_until("[ -e /tmp/copying ]")
        for _ in range(times):
            keys = guest_usb.start_reading_keys(guest, 6)
            server.send("keys", "type", "ab")
            server.upgrade()
            server.send("keys", "type", "c")
            assert guest_usb.finish_reading_keys(guest, keys) == [
                (code, value) for code in (30, 48, 46) for value in (1, 0)
            ]
        guest.run("touch /tmp/enough")
        assert int(guest.wait(copying, 240)) >= 1
        assert guest_usb.sha256(guest, start) == sha
        assert guest_usb.usb_complaints(guest) == []
        assert "not replaced" not in server.log()
        assert server.log().count("has taken the place of another one") == times
    assert len(guest_usb.read_ext4(images["target"], "copy")) == images["source"].stat().st_size


def test_a_guest_copies_while_its_server_is_replaced(
    guest_factory: GuestFactory, random_image: Callable[[int], Path]
) -> None:
    replaced(guest_factory, random_image, 3, "bot", "uas")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("source", "target"), [("bot", "uas"), ("uas", "bot")])
def test_fifty_upgrades(
    guest_factory: GuestFactory, random_image: Callable[[int], Path], source: str, target: str
) -> None:
    replaced(guest_factory, random_image, 50, source, target)
