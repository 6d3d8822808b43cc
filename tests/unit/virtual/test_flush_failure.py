"""A flush that has failed: Linux tells of it once and drops the data, so everything that promises storage fails from
then on, by either transport, until the image is opened again; and whoever detaches the drive is told."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.virtual.test_eject import COMMANDS, EJECT, WRITE_CACHE_OFF, Command, hcrst, is_there
from usbvfiod_core import Interceptor
from usbvfiod_core.hooks.interception import intercept
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.testing.mass_storage import ScsiError
from usbvfiod_core.testing.uas import UasError
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.virtual.flash import FAILED
from usbvfiod_core.virtual.image import Image

FLUSH = bytes((0x35,)) + bytes(9)
FLUSH_16 = bytes((0x91,)) + bytes(15)
WRITE = bytes((0x2A,)) + bytes(6) + b"\0\1\0"
WRITE_FUA = bytes((0x2A, 8)) + bytes(5) + b"\0\1\0"
STOP = bytes((0x1B, 0, 0, 0, 0, 0))
WRITE_ERROR = "0c"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "drive.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


@pytest.fixture
def fail_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has the next flush fail, as Linux tells of an error of writing back: the one after it would succeed."""
    real = os.fdatasync
    waiting: list[int] = []

    def flush(fd: int) -> None:
        if waiting:
            raise OSError(waiting.pop(), "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fdatasync", flush)
    return lambda: waiting.append(errno.EIO)


def plug(guest: Guest, path: Path, transport: str) -> Command:
    options = {"image": str(path), "transport": transport}
    return COMMANDS[transport](guest.plug(open_device(VirtualBackend(), "flash", options, guest.bus.loop)))


def refused(command: Command, cdb: bytes, data: bytes | None = None) -> str:
    with pytest.raises((ScsiError, UasError)) as failure:
        command(cdb, data=data) if data is not None else command(cdb)
    return str(failure.value).lower()


@pytest.mark.parametrize("transport", COMMANDS)
def test_every_promise_of_storage_fails_from_then_on(
    guest: Guest, path: Path, transport: str, fail_once: Callable[[], None]
) -> None:
    command = plug(guest, path, transport)
    command(WRITE, data=bytes(512))
    fail_once()
    for cdb in (FLUSH, FLUSH, FLUSH_16, STOP, EJECT):
        assert WRITE_ERROR in refused(command, cdb)
    assert is_there(command)
    command(WRITE, data=bytes(512))  # into the cache, which is still one
    assert WRITE_ERROR in refused(command, WRITE_FUA, bytes(512))
    assert WRITE_ERROR in refused(command, *WRITE_CACHE_OFF)
    assert WRITE_ERROR in refused(command, WRITE, bytes(512))
    command = COMMANDS[transport](hcrst(guest))
    assert WRITE_ERROR in refused(command, FLUSH)


@pytest.mark.parametrize("cdb", [WRITE_FUA, STOP, EJECT])
@pytest.mark.parametrize("transport", COMMANDS)
def test_whatever_flushes_first_is_told_and_the_next_too(
    guest: Guest, path: Path, transport: str, fail_once: Callable[[], None], cdb: bytes
) -> None:
    command = plug(guest, path, transport)
    fail_once()
    for each in (cdb, FLUSH):
        assert WRITE_ERROR in refused(command, each, bytes(512) if each == WRITE_FUA else None)
    assert is_there(command)


def test_people_are_told_and_the_next_attachment_begins_anew(
    path: Path, fail_once: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    loop = StepLoop()
    for failing in (True, False):
        device = open_device(VirtualBackend(), "flash", {"image": str(path)}, loop)
        bench = DeviceBench(device, loop)
        disk = device.disk  # type: ignore[attr-defined]
        if failing:
            fail_once()
            for _ in range(3):
                with pytest.raises(OSError, match="Input/output error"):
                    disk.image.sync()
                disk.image_failed(OSError(errno.EIO, "x"), writing=True)
            told = f"{path} could not be flushed: Input/output error; {FAILED}"
            assert bench.events.notes == [told]
            assert caplog.text.count(told) == 1
            device.controller_reset()
            assert bench.events.notes[-1] == told
        else:
            disk.image.sync()
            assert not bench.events.notes
        bench.close()
        loop.advance(0.1)
        lost = f"flushing {path} failed: Input/output error; what the guest wrote last may be lost"
        assert device.loss() == (lost if failing else "")


def test_a_failure_that_only_closing_finds_is_told(path: Path, fail_once: Callable[[], None]) -> None:
    loop = StepLoop()
    device = open_device(VirtualBackend(), "flash", {"image": str(path)}, loop)
    device.disk.image.write([memoryview(bytes(512))], 0, 512)  # type: ignore[attr-defined]
    fail_once()
    device.close()
    loop.advance(0.1)
    assert device.loss() == f"flushing {path} failed: Input/output error; what the guest wrote last may be lost"


@pytest.fixture
def breaking(tmp_path: Path) -> Iterator[Path]:
    """A block device of 32 MiB that can store 4: what is beyond fails when it is written back."""

    def run(*words: str) -> str:
        try:
            return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a block device that breaks cannot be made here: {error}")

    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=4M", "none", str(small))
    try:
        file = small / "disk.img"
        file.touch()
        os.truncate(file, 32 << 20)
        device = run("losetup", "--find", "--show", str(file))
    finally:
        # The loop device keeps the file. If this process is killed, no mount is left that other tests cannot clean up.
        run("umount", "--lazy", str(small))
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)


def test_a_disk_that_really_breaks(breaking: Path) -> None:
    image = Image(str(breaking))
    image.write([memoryview(os.urandom(12 << 20))], 0, 12 << 20)
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output error"):
            image.sync()
    os.fdatasync(image.fd)  # what the kernel says by now
    with pytest.raises(OSError, match="Input/output error"):
        image.close()


def test_what_is_in_front_of_a_drive_passes_it_on(path: Path, fail_once: Callable[[], None]) -> None:
    """Faults and interceptors."""
    loop = StepLoop()
    drive = open_device(VirtualBackend(), "flash", {"image": str(path), "fault": "stall@81#1000000"}, loop)
    device = intercept(drive, Interceptor(), "plugin", loop)
    drive.device.disk.image.write([memoryview(bytes(512))], 0, 512)  # type: ignore[attr-defined]
    fail_once()
    device.close()
    loop.advance(0.1)
    assert device.loss().startswith(f"flushing {path} failed: Input/output error")
