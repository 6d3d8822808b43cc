"""The flash drive as a whole: options, threads, cancellation and closing at any time."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.virtual.drive import BULK_IN, BULK_OUT, PASSED, Drive, cdb_10, read_10, write_10
from usbvfiod_core.errors import ConfigError, DeviceError
from usbvfiod_core.options import from_text
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.device_bench import WatchedTransfer
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import parse_string
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus, TransferType
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.virtual.flash import Flash, FlashOptions, open_flash

Make = Callable[..., Drive]

BIG = 512 * 1024  # a write of this size goes through a thread


# -- options -----------------------------------------------------------------------------------------------------------


def opened(path: Path, **options: str) -> Flash:
    return open_flash(Flash, from_text(FlashOptions, {"image": str(path), **options}), StepLoop())


def test_defaults(image: Path) -> None:
    flash = opened(image)
    assert flash.speed is Speed.SUPER
    assert (flash.vendor_id, flash.product_id) == (0x1209, 0x0001)
    assert flash.name == "usbvfiod Flash Drive (disk.img)"
    assert flash.disk.block_size == 512
    assert not flash.disk.image.readonly
    assert len(flash.serial) == 12
    assert set(flash.serial) <= set("0123456789ABCDEF")
    flash.disk.image.close()


def test_the_default_serial_number_is_the_paths(image: Path, tmp_path: Path) -> None:
    serials = []
    for path in (image, Path(os.path.relpath(image)), tmp_path / "other.img"):
        path.touch()
        os.truncate(path, 1 << 20)
        flash = opened(path)
        serials.append(flash.serial)
        flash.disk.image.close()
    assert serials[0] == serials[1] != serials[2]


def test_all_options(image: Path) -> None:
    options = {"readonly": "yes", "speed": "full", "serial": "S 1", "blocksize": "4096", "removable": "false"}
    flash = opened(image, stalls="true", **options)
    assert flash.speed is Speed.FULL
    assert flash.serial == "S 1"
    assert flash.disk.image.readonly
    assert flash.disk.block_size == 4096
    assert not flash.disk.identity.removable
    assert flash.bulk_only.stalls
    flash.disk.image.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": ""}, "image is a path, not ''"),
        ({"image": "a\0b"}, "image is a path"),
        (
            {"size": "1G"},
            "there is no option 'size'; did you mean 'blocksize'",
        ),
        ({"readonly": "maybe"}, "readonly is true or false, not 'maybe'"),
        ({"speed": "low"}, "speed is one of full, high, super, not 'low'"),
        ({"blocksize": "1024"}, "blocksize is one of 512, 4096, not '1024'"),
        ({"transport": "uas", "speed": "full"}, "transport=uas needs speed=high or speed=super"),
        ({"serial": "x" * 127}, "serial is at most 126 printable ASCII characters"),
        ({"serial": "é"}, "printable ASCII"),
        ({"serial": "a\nb"}, "printable ASCII"),
    ],
)
def test_wrong_options(image: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(image, **options)
    opened(image).disk.image.close()  # and it is not left locked


def test_the_same_image_twice(image: Path) -> None:
    flash = opened(image)
    with pytest.raises(DeviceError, match="in use"):
        opened(image)
    flash.disk.image.close()


def test_serial_numbers_agree(make: Make) -> None:
    drive = make(serial="0123456789AB")
    setup = SetupPacket(0x80, 6, 0x0300 | drive.flash.device_descriptor.serial_number, 0x0409, 255)
    assert parse_string(drive.bench.control(setup).data) == "0123456789AB"


# -- what happens in a thread ------------------------------------------------------------------------------------------


def test_a_big_write_goes_through_a_thread(drive: Drive, image: Path, content: bytes) -> None:
    data = content[::-1][:BIG]
    drive.send(write_10(0, BIG // 512), BIG, to_driver=False)
    transfer = drive.submit_out(data)
    assert transfer.status is None
    assert image.read_bytes() == content  # the bench's loop has not run yet
    drive.bench.wait(transfer)
    assert drive.status() == (PASSED, 0)
    assert image.read_bytes()[:BIG] == data


def test_a_huge_read_goes_through_a_thread_even_if_it_would_not_wait(make: Make, image: Path) -> None:
    os.truncate(image, 8 << 20)
    drive = make()
    for length, in_thread in ((4 << 20, False), ((4 << 20) + 512, True)):
        drive.send(read_10(0, length // 512), length, to_driver=True)
        transfer = drive.submit_in(length)
        assert (transfer.status is None) == in_thread
        drive.bench.wait(transfer)
        assert transfer.data == image.read_bytes()[:length]
        assert drive.status() == (PASSED, 0)


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is in the page cache."""
    real = os.preadv

    def preadv(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError(errno.EAGAIN, "not in memory")
        return real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", preadv)


def test_a_read_that_would_wait_goes_through_a_thread(drive: Drive, content: bytes, cold: None) -> None:
    drive.send(read_10(3, 8), 4096, to_driver=True)
    transfer = drive.submit_in(4096)
    status = drive.submit_in(13)
    assert [each.status for each in (transfer, status)] == [None, None]
    drive.bench.wait(transfer, status)
    assert transfer.data == content[1536 : 1536 + 4096]
    outcome = drive.read(read_10(0, 100), 51200, transfers=[512, 4096, 1])
    assert outcome == (content[:51200], PASSED, 0, False)


def test_a_transfer_in_a_thread_is_cancelled_when_the_thread_is_done(drive: Drive, content: bytes, cold: None) -> None:
    drive.send(read_10(0, 8), 4096, to_driver=True)
    transfer = drive.submit_in(4096)
    drive.bench.cancel(transfer)
    assert transfer.completions == 0  # its windows are still in use
    drive.bench.wait(transfer)
    assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, 4096)
    drive.recover()
    assert drive.command(bytes(6)) == PASSED


@pytest.mark.parametrize("how", ["bulk-only reset", "port reset", "configuration"])
@pytest.mark.parametrize("what", ["read", "write", "flush"])
def test_a_reset_while_a_thread_works(drive: Drive, content: bytes, cold: None, how: str, what: str) -> None:
    transfer = None
    if what == "read":
        drive.send(read_10(0, 8), 4096, to_driver=True)
        transfer = drive.submit_in(4096)
    elif what == "write":
        drive.send(write_10(0, BIG // 512), BIG, to_driver=False)
        transfer = drive.submit_out(content[-BIG:])
    else:
        drive.submit_out(drive.cbw(cdb_10(0x35, 0, 0), 0, to_driver=False))
    if how == "bulk-only reset":
        drive.flash.submit(control(SetupPacket(0x21, 0xFF, 0, 0, 0)))
    elif how == "port reset":
        drive.flash.reset(lambda: None)
    if how != "bulk-only reset":
        drive.flash.submit(control(SetupPacket(0, 9, 1, 0, 0)))
    early = drive.submit_out(drive.cbw(bytes(6), 0, to_driver=False))
    assert early.status is None  # nothing begins before the thread is done
    drive.bench.wait(early)
    if transfer is not None:
        assert (transfer.status, transfer.completions) == (TransferStatus.COMPLETED, 1)
    assert drive.status() == (PASSED, 0)
    if what != "write":
        assert drive.read(read_10(0, 1), 512).data == content[:512]


def control(setup: SetupPacket) -> WatchedTransfer:
    return WatchedTransfer(0, TransferType.CONTROL, b"", setup=setup)


@pytest.mark.parametrize("what", ["nothing", "read", "write", "flush"])
def test_close_gives_the_image_back_when_no_thread_uses_it(image: Path, content: bytes, cold: None, what: str) -> None:
    drive = Drive.on(image)
    transfer = None
    if what == "read":
        drive.send(read_10(0, 8), 4096, to_driver=True)
        transfer = drive.submit_in(4096)
    elif what == "write":
        drive.send(write_10(0, BIG // 512), BIG, to_driver=False)
        transfer = drive.submit_out(content[-BIG:])
    elif what == "flush":
        drive.submit_out(drive.cbw(cdb_10(0x35, 0, 0), 0, to_driver=False))
    waiting = drive.submit_out(bytes(31)) if what != "nothing" else None
    drive.flash.close()
    fd = drive.flash.disk.image.fd
    os.fstat(fd)
    told: list[bool] = []
    drive.flash.when_closed(lambda: told.append(Path(f"/proc/self/fd/{fd}").exists()))
    assert told == []
    if what != "nothing":
        with pytest.raises(DeviceError, match="in use"):  # a thread still works on it
            opened(image)
    if waiting is not None:
        assert waiting.status is TransferStatus.DISCONNECTED
    drive.loop.run_ready()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert told == [False]
    if transfer is not None:
        assert (transfer.status, transfer.completions) == (TransferStatus.COMPLETED, 1)
    late = drive.submit_out(bytes(31))
    assert late.status is TransferStatus.DISCONNECTED
    assert drive.bench.control(SetupPacket(0x80, 6, 0x0100, 0, 18)).status is TransferStatus.DISCONNECTED
    drive.bench.close()
    if what == "write":
        assert image.read_bytes()[:BIG] == content[-BIG:]
    Flash(
        open_flash(Flash, from_text(FlashOptions, {"image": str(image)}), StepLoop()).disk.image, StepLoop()
    ).disk.image.close()


def test_the_lock_is_given_back_at_once(image: Path) -> None:
    drive = Drive.on(image)
    drive.flash.close()
    again = opened(image)  # before the loop has run
    drive.loop.run_ready()
    again.disk.image.close()
    drive.bench.close()


def test_a_flush_that_fails_at_close_is_logged(
    drive: Drive, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    assert drive.write(write_10(0, 1), bytes(512)).status == PASSED
    monkeypatch.setattr(os, "fdatasync", fail)
    drive.flash.close()
    drive.loop.run_ready()
    assert "flushing" in caplog.text
    assert "broken" in caplog.text


def test_payload_goes_straight_to_and_from_the_windows(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    real_read, real_write = os.preadv, os.pwritev
    seen: list[Any] = []

    def preadv(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
        seen.extend(view.obj for view in views)
        return real_read(fd, views, offset, flags)

    def pwritev(fd: int, views: list[memoryview], offset: int) -> int:
        seen.extend(view.obj for view in views)
        return real_write(fd, views, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "pwritev", pwritev)
    drive.send(read_10(0, 16), 8192, to_driver=True)
    first, second = drive.submit_in(4096, [1000, 1000]), drive.submit_in(4096)
    assert all(view is first.memory for view in seen[:3])
    assert seen[3] is second.memory
    drive.status()
    seen.clear()
    drive.send(write_10(0, 16), 8192, to_driver=False)
    third = drive.submit_out(bytes(8192), [5000])
    assert len(seen) == 2
    assert all(view is third.memory for view in seen)
    assert drive.status() == (PASSED, 0)


def test_real_threads(image: Path, content: bytes) -> None:
    """The same with threads instead of the stepped loop: completions come on the loop's thread only."""

    threads: list[threading.Thread] = []

    class Threaded(StepLoop):
        def run_blocking(self, call: Callable[[], Any], then: Callable[[Any], object]) -> None:
            def work() -> None:
                try:
                    result: Any = call()
                except BaseException as error:
                    result = error
                self.call_soon_threadsafe(then, result)

            threads.append(threading.Thread(target=work))
            threads[-1].start()

    loop = Threaded(virtual_time=False)
    drive = Drive(open_flash(Flash, from_text(FlashOptions, {"image": str(image)}), loop), loop)
    for turn in range(5):
        data = content[turn * 1000 :][:BIG]
        assert drive.write(write_10(turn, BIG // 512), data) == (b"", PASSED, 0, False)
        assert drive.command(cdb_10(0x35, 0, 0)) == PASSED
        assert drive.read(read_10(turn, BIG // 512), BIG, transfers=[4096]).data == data
    drive.flash.close()
    assert loop.run_until(lambda: not Path(f"/proc/self/fd/{drive.flash.disk.image.fd}").exists(), PATIENCE)
    for thread in threads:
        thread.join(PATIENCE)
    drive.close()


def test_endpoints_and_addresses(make: Make) -> None:
    for speed, packet in ((Speed.FULL, 64), (Speed.HIGH, 512), (Speed.SUPER, 1024)):
        drive = make(speed=speed, readonly=True)
        assert set(drive.flash.endpoints) == {BULK_IN, BULK_OUT}
        assert {each.descriptor.packet_size for each in drive.flash.endpoints.values()} == {packet}


@pytest.mark.parametrize(
    ("options", "uas"),
    [
        ({}, True),
        ({"transport": "bot"}, False),
        ({"speed": "high"}, False),
        ({"speed": "full"}, False),
        ({"stalls": "true"}, False),
        ({"speed": "high", "transport": "uas"}, True),
        ({"stalls": "true", "transport": "uas"}, True),
    ],
)
def test_which_drives_have_uas(options: dict[str, str], uas: bool, image: Path) -> None:
    """All have bulk-only as their first setting, for firmware."""
    loop = StepLoop()
    device = open_device(VirtualBackend(), "flash", {"image": str(image), **options}, loop)
    assert isinstance(device, Flash)
    settings = device.configurations[0].interfaces
    assert [(each.alternate, each.protocol) for each in settings] == [(0, 0x50), (1, 0x62)][: 1 + uas]
    device.close()
    loop.close()
