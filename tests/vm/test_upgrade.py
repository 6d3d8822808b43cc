"""A Debian guest that copies and reads while its server is replaced, again and again: no device is reset, no driver
complains, and every byte is as it should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.upgrade_rig import end, patient
from tests.vm import guest_usb, streams
from tests.vm.guest import Guest, GuestFactory
from tests.vm.server import UsbvfiodServer

pytestmark = pytest.mark.vm

TIMES = 50
TYPED = [(code, value) for code in (30, 48, 46) for value in (1, 0)]
"""A, B and C are pressed and let go of."""
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
        done = patient(self.control_path)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.log()}"
        self.pid = int(self.request("status")["server"]["pid"])

    def kill(self) -> None:
        """End whichever serves."""
        super().kill()
        if self.pid:
            end(self.pid)


class Copying:
    """A guest that copies from one drive to another, and that somebody types to."""

    def __init__(self, guest: Guest, server: ReplacedServer) -> None:
        self.guest = guest
        self._server = server
        self._keys = guest_usb.KeyLog(guest)
        self.upgrades = 0

    def upgrade(self, times: int) -> None:
        """Replace the server so often, and type before and after."""
        for _ in range(times):
            self._server.send("keys", "type", "ab")
            self._server.upgrade()
            self.upgrades += 1
            self._server.send("keys", "type", "c")
            self._keys.wait(len(TYPED) * self.upgrades)

    def check_keys(self) -> None:
        """All have come, in their order, and none twice."""
        assert self._keys.finish() == TYPED * self.upgrades


@contextmanager
def replaced(
    guest_factory: GuestFactory,
    random_image: Callable[[int], Path],
    source: str,
    target: str,
    more: Sequence[str] = (),
    **options: Any,
) -> Iterator[Copying]:
    """Copy from one drive to another, with `more` devices, until the test has done what it does meanwhile. All is well
    then."""
    images = {"source": random_image(16), "target": random_image(40)}
    devices = [
        f"virtual:flash?image={images['source']}&transport={source}",
        f"virtual:flash?image={images['target']}&transport={target}",
        "virtual:keyboard?name=keys",
        *more,
    ]
    server = ReplacedServer(devices)
    with server:
        guest = guest_factory(server.arguments, **options)
        disks = {disk.size: disk.path for disk in guest_usb.wait_disks(guest, 2)}
        start, end = (disks[images[name].stat().st_size] for name in ("source", "target"))
        sha = guest_usb.image_sha256(images["source"])
        running = guest.start(COPY.format(source=start, to=end, sha=sha))
        guest.wait_until("[ -e /tmp/copying ]")
        copying = Copying(guest, server)
        yield copying
        guest.run("touch /tmp/enough")
        assert int(guest.wait(running, 240)) >= 1
        copying.check_keys()
        assert guest_usb.sha256(guest, start) == sha
        assert guest_usb.usb_complaints(guest) == []
        assert "not replaced" not in server.log()
        assert server.log().count("has taken the place of another one") == copying.upgrades
    assert len(guest_usb.read_ext4(images["target"], "copy")) == images["source"].stat().st_size


def test_a_guest_copies_while_its_server_is_replaced(
    guest_factory: GuestFactory, random_image: Callable[[int], Path]
) -> None:
    with replaced(guest_factory, random_image, "bot", "uas") as copying:
        copying.upgrade(3)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("backported", [False, True], ids=["debian", "newer-kernel"])
@pytest.mark.parametrize(("source", "target"), [("bot", "uas"), ("uas", "bot")])
def test_fifty_upgrades(
    guest_factory: GuestFactory,
    random_image: Callable[[int], Path],
    tmp_path: Path,
    source: str,
    target: str,
    backported: bool,
    most_rounds: int,
) -> None:
    """With playback and a serial line beside them. The sound that is lost is counted: no gap is an upgrade's, and the
    stream goes on."""
    times = min(TIMES, most_rounds)
    sound, line = tmp_path / "sound.wav", tmp_path / "line"
    devices = [f"virtual:audio?playback={sound}", f"virtual:serial?link={line}"]
    with replaced(guest_factory, random_image, source, target, devices, backported=backported) as copied:
        guest = copied.guest
        with streams.talking(guest, line):
            playing = streams.start_playing(guest)
            copied.upgrade(times)
            played = streams.finish_playing(guest, playing, sound)
        print(played)
    assert played.frames > times * streams.RATE // 10
    assert played.stalls <= max(1, times // 10)
    assert played.gaps <= played.underruns + played.stalls
