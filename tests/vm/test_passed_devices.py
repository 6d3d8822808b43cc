"""The whole chain: devices of a real kernel, given by `usbvfiod` to a guest, used by the guest's stock drivers."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.offers import ADDRESS, GUEST_ADDRESS, PATTERN, TCP_PORT
from tests.vm import guest_usb, usbtest
from tests.vm.beside import REMOTE, BesideLab
from tests.vm.guest import Guest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600), pytest.mark.usefixtures("no_complaints")]

MIB = 1 << 20
BACKENDS = ("usbfs", pytest.param("libusb", marks=pytest.mark.long))
TIMEOUT = 240.0


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


# -- storage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_image(beside_lab: BesideLab) -> Iterator[Callable[[int], Path]]:
    """Make the image of the offers' drives, so many MiB of random bytes."""
    path = beside_lab.lab.exchange / "offer.img"

    def make(mebibytes: int) -> Path:
        path.write_bytes(os.urandom(mebibytes * MIB))
        return path

    yield make
    path.unlink()


def check_both_ways(guest: Guest, disk: guest_usb.Disk, image: Path) -> None:
    """Read the whole drive, write the whole drive: the same on both sides."""
    assert disk.size == image.stat().st_size
    assert guest_usb.sha256(guest, disk.path, TIMEOUT) == guest_usb.image_sha256(image)
    script = f"""set -e
head -c {disk.size} /dev/urandom > /tmp/data
sha256sum /tmp/data
/usr/bin/dd if=/tmp/data of={disk.path} bs=1M oflag=direct conv=fsync status=none
rm /tmp/data
"""
    written = guest.run(script, TIMEOUT).split()[0]
    assert written == guest_usb.image_sha256(image)


@pytest.mark.parametrize("backend", ["usbfs", "libusb"])
@pytest.mark.parametrize(("offer", "speed"), [("drive", 5000), pytest.param("drive-high", 480, marks=pytest.mark.long)])
def test_a_drive_both_ways(
    beside_lab: BesideLab, backend: str, offer: str, speed: int, make_image: Callable[[int], Path]
) -> None:
    image = make_image(16)
    with beside_lab.offer(offer, backend):
        (disk,) = guest_usb.wait_disks(beside_lab.guest, 1)
        assert disk.speed == speed
        assert guest_usb.driver(beside_lab.guest, f"{disk.usb}:1.0") == "usb-storage"
        check_both_ways(beside_lab.guest, disk, image)


@pytest.mark.long
@pytest.mark.parametrize("backend", REMOTE)
def test_a_drive_of_another_machine(beside_lab: BesideLab, backend: str, make_image: Callable[[int], Path]) -> None:
    """Over USB/IP from the kernel's usbip-host, and by usbredir from Debian's usbredirect."""
    image = make_image(16)
    with beside_lab.offer("drive", backend):
        (disk,) = guest_usb.wait_disks(beside_lab.guest, 1)
        assert disk.speed == 5000
        assert guest_usb.driver(beside_lab.guest, f"{disk.usb}:1.0") == "usb-storage"
        check_both_ways(beside_lab.guest, disk, image)


def test_a_uas_drive_both_ways(beside_lab: BesideLab, make_image: Callable[[int], Path]) -> None:
    image = make_image(16)
    with beside_lab.offer("drive-uas", "usbfs"):
        (disk,) = guest_usb.wait_disks(beside_lab.guest, 1)
        assert guest_usb.driver(beside_lab.guest, f"{disk.usb}:1.0") == "uas"
        check_both_ways(beside_lab.guest, disk, image)


def test_a_drive_recovers_from_stalls_and_resets(
    beside_lab: BesideLab, backend: str, make_image: Callable[[int], Path], no_complaints: list[str]
) -> None:
    """A command the drive refuses halts an endpoint, which the guest's driver clears; then it resets the device."""
    no_complaints += ["reset high-speed USB device"]
    guest, expected = beside_lab.guest, guest_usb.image_sha256(make_image(4))
    with beside_lab.offer("stalling-drive", backend):
        (disk,) = guest_usb.wait_disks(guest, 1)
        name = Path(disk.path).name
        sg = f"/dev/$(ls /sys/block/{name}/device/scsi_generic)"
        for _ in range(3):
            guest.run(f"sg_raw {sg} 00 00 00 00 00 00 || true")  # takes what it has to say of the last reset
            assert "Illegal Request" in guest.run(f"sg_raw -r 512 {sg} c1 00 00 00 00 00 00 00 00 00 2>&1 || true")
            assert "Illegal Request" in guest.run(f"sg_raw -r 192 {sg} 1a 00 0b 00 c0 00 2>&1 || true")
            reset = "import fcntl, sys; fcntl.ioctl(open(sys.argv[1], 'rb+', buffering=0), 0x5514)"  # USBDEVFS_RESET
            node = "/dev/bus/usb/$(printf '%03d/%03d' $(cat busnum) $(cat devnum))"
            guest.run(f'cd /sys/bus/usb/devices/{disk.usb}; python3 -c "{reset}" {node}', TIMEOUT)
        assert guest_usb.sha256(guest, disk.path, TIMEOUT) == expected


def test_a_file_system_is_made_and_kept(beside_lab: BesideLab, backend: str, make_image: Callable[[int], Path]) -> None:
    image = make_image(32)
    with beside_lab.offer("drive", backend):
        (disk,) = guest_usb.wait_disks(beside_lab.guest, 1)
        digest = guest_usb.write_ext4(beside_lab.guest, disk, "through two kernels")
    assert guest_usb.read_ext4(image, "text") == b"through two kernels\n"
    assert hashlib.sha256(guest_usb.read_ext4(image, "random")).hexdigest() == digest


# -- input ---------------------------------------------------------------------------------------------------------


def test_keys_and_places(beside_lab: BesideLab, backend: str) -> None:
    guest, lab = beside_lab.guest, beside_lab.lab
    with beside_lab.offer("input", backend):
        reading = guest_usb.start_reading_keys(guest, 4, patience=60)
        for key in ("a", "b"):
            for down in (True, False):
                event = {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": key}}}
                lab.qmp("input-send-event", events=[event])
        keys = guest_usb.finish_reading_keys(guest, reading, 90)
        assert keys == [(30, 1), (30, 0), (48, 1), (48, 0)]
        find = "grep -l Tablet /sys/class/input/event*/device/name | cut -d / -f 5"
        guest.wait_until(f'[ -n "$({find})" ]')
        node = f"/dev/input/{guest.run(find).strip()}"
        guest.run("rm -f /tmp/open")
        moving = guest.start(
            f"exec 4< {node}; touch /tmp/open; timeout 60 /usr/bin/dd bs=24 count=3 status=none <&4 | base64"
        )
        guest.wait_until("[ -e /tmp/open ]")
        axes = [
            {"type": "abs", "data": {"axis": axis, "value": value}} for axis, value in (("x", 0x1234), ("y", 0x567))
        ]
        lab.qmp("input-send-event", events=axes)
        events = base64.b64decode(guest.wait(moving, 90))
        places = [struct.unpack_from("<qqHHi", events, offset)[2:] for offset in range(0, len(events), 24)]
        assert [place for place in places if place[0] == 3] == [(3, 0, 0x1234), (3, 1, 0x567)]


@pytest.mark.long
@pytest.mark.parametrize("backend", REMOTE)
def test_keys_and_places_of_another_machine(beside_lab: BesideLab, backend: str) -> None:
    test_keys_and_places(beside_lab, backend)


# -- serial, network -----------------------------------------------------------------------------------------------


def test_a_serial_port_through_open_and_close(beside_lab: BesideLab, backend: str) -> None:
    """1 MiB each way in eight parts, the port closed and opened between them."""
    with beside_lab.offer("serial", backend):
        beside_lab.guest.wait_until("[ -e /dev/ttyACM0 ]")
        beside_lab.guest.python("serial_echo", "/dev/ttyACM0", 8, MIB // 8)


@pytest.mark.long
@pytest.mark.parametrize("backend", REMOTE)
def test_a_serial_port_of_another_machine(beside_lab: BesideLab, backend: str) -> None:
    test_a_serial_port_through_open_and_close(beside_lab, backend)


@pytest.mark.parametrize("mebibytes", [4, pytest.param(50, marks=pytest.mark.long)])
def test_a_network_adapter(beside_lab: BesideLab, backend: str, mebibytes: int) -> None:
    check_network(beside_lab, backend, "ncm", "cdc_ncm", mebibytes)


@pytest.mark.parametrize(
    ("kind", "driver"), [pytest.param("ecm", "cdc_ether", marks=pytest.mark.long), ("rndis", "rndis_host")]
)
def test_an_older_network_adapter(beside_lab: BesideLab, backend: str, kind: str, driver: str) -> None:
    check_network(beside_lab, backend, kind, driver, 1)


def check_network(beside_lab: BesideLab, backend: str, kind: str, driver: str, mebibytes: int) -> None:
    """Ping, and so much each way over TCP, through an adapter of this kind and the guest's driver for it."""
    with beside_lab.offer(f"network-{kind}", backend):
        beside_lab.guest.wait_until(f"ls -d /sys/bus/usb/drivers/{driver}/*:*/net/*")
        script = f"""set -e
name=$(basename $(ls -d /sys/bus/usb/drivers/{driver}/*:*/net/*))
busybox ip addr add {GUEST_ADDRESS}/24 dev $name
busybox ip link set $name up
busybox ping -c 8 -i 0.2 -W 10 {ADDRESS}
"""
        # The gadget keeps its last frames for itself when all its requests are in use as it wants to send them, and
        # does not try again before it has something to send: an answer to one of those behind, say.
        answered = re.search(r"8 packets transmitted, (\d+) packets received", beside_lab.guest.run(script, TIMEOUT))
        assert answered is not None
        assert int(answered[1]) >= 5
        # For the same reason something is sent all the time.
        pinging = beside_lab.guest.start(f"echo $$ > /tmp/ping; exec busybox ping -q -i 0.5 {ADDRESS}")
        beside_lab.guest.python("network_transfer", ADDRESS, TCP_PORT, mebibytes * MIB, timeout=2 * TIMEOUT)
        beside_lab.guest.run("kill -INT $(cat /tmp/ping)")
        beside_lab.guest.wait(pinging, TIMEOUT)


# -- source and sink -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [3, pytest.param(50, marks=pytest.mark.long)])
@pytest.mark.parametrize("speed", ["high", "super", pytest.param("full", marks=pytest.mark.long)])
def test_the_kernels_test_of_devices(
    beside_lab: BesideLab, backend: str, speed: str, iterations: int, no_complaints: list[str]
) -> None:
    """usbtest, every case that gadget zero supports on dummy_hcd, which has no isochronous endpoints.

    Both sides check the data, but in the measurements of throughput, which usbtest does with zeros alone.
    """
    no_complaints += ["unlink retry"]
    guest = beside_lab.guest
    throughput = [case for case in usbtest.BULK_AND_CONTROL if "throughput" in case.title]
    others = [case for case in usbtest.BULK_AND_CONTROL if case not in throughput]
    for offer, pattern, cases in ((f"zero-{speed}", PATTERN, others), (f"zeros-{speed}", 0, throughput)):
        with beside_lab.offer(offer, backend):
            node = usbtest.find(guest)
            guest.run(f"echo {pattern} > /sys/module/usbtest/parameters/pattern")
            for case in cases:
                usbtest.run(guest, node, replace(case, iterations=min(case.iterations, iterations)), TIMEOUT)


def test_a_program_with_pyusb(beside_lab: BesideLab, backend: str, no_complaints: list[str]) -> None:
    """It gets in the guest what it gets where the device is."""
    no_complaints += ["reset high-speed USB device"]
    program = "cd /usbvfiod && python3 -m tests.lab.pyusb_program"
    with beside_lab.made("zero-high") as ports:
        there = json.loads(beside_lab.lab.run(program, TIMEOUT))
        with beside_lab.attached(ports, backend):
            beside_lab.guest.wait_until("grep -l 0525 /sys/bus/usb/devices/*/idVendor")
            here = json.loads(beside_lab.guest.run(program, TIMEOUT))
    assert here == there
    assert len(there) > 20
