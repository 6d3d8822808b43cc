"""Locks on files as other programs see them: QEMU's tools, libvirt's virtlockd, flock; and what they do to us."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import tree as debian
from usbvfiod_core.errors import DeviceError
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.virtual.image import Image

READ, WRITE, RESIZE = 0, 1, 3  # numbers of QEMU's permissions
FLOCK = struct.Struct("@hhqqi4x")


def lock_byte(path: Path, kind: int, *numbers: int) -> int:
    """A descriptor with OFD locks on bytes, as another program would have it."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    for number in numbers:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, number, 1, 0))
    return fd


def locked(path: Path, number: int, kind: int = fcntl.F_WRLCK) -> bool:
    """Whether somebody has a lock on this byte with which a lock of the kind does not go."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, FLOCK.pack(kind, os.SEEK_SET, number, 1, 0))
        return bool(FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
    finally:
        os.close(fd)


def test_what_a_writer_and_a_reader_lock(image: Path) -> None:
    bytes_ = [0, *range(100, 105), *range(200, 205)]
    for readonly, wanted in ((False, [0, 100, 101, 201, 203]), (True, [0, 100, 201, 203])):
        opened = Image(str(image), readonly=readonly)
        assert [number for number in bytes_ if locked(image, number)] == wanted
        assert [number for number in bytes_ if locked(image, number, fcntl.F_RDLCK)] == ([] if readonly else [0])
        opened.unlock()
        assert not any(locked(image, number) for number in bytes_)
        opened.close()


@pytest.mark.parametrize(
    ("kind", "numbers", "writer_may", "reader_may"),
    [
        (fcntl.F_WRLCK, [0], False, False),  # libvirt: a writer
        (fcntl.F_RDLCK, [0], False, True),  # libvirt: a reader
        (fcntl.F_RDLCK, [100 + READ, 100 + WRITE, 200 + WRITE, 200 + RESIZE], False, False),  # QEMU: a writer
        (fcntl.F_RDLCK, [100 + READ, 100 + WRITE], False, False),  # QEMU: a writer with share-rw=on
        (fcntl.F_RDLCK, [100 + READ, 200 + WRITE, 200 + RESIZE], False, True),  # QEMU: a reader
        (fcntl.F_RDLCK, [100 + READ], True, True),  # QEMU: a reader with force-share
    ],
)
def test_what_others_lock(image: Path, kind: int, numbers: list[int], writer_may: bool, reader_may: bool) -> None:
    fd = lock_byte(image, kind, *numbers)
    for readonly, may in ((False, writer_may), (True, reader_may)):
        if may:
            Image(str(image), readonly=readonly).close()
        else:
            with pytest.raises(DeviceError, match="in use by another process or device"):
                Image(str(image), readonly=readonly)
    os.close(fd)
    Image(str(image)).close()


# -- the real thing ----------------------------------------------------------------------------------------------------


class Session:
    """A program that has the image open while it reads commands from its standard input."""

    def __init__(self, words: list[str], environment: dict[str, str] | None = None) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, env=environment)

    def wait_for(self, text: bytes) -> None:
        assert self.process.stdout is not None
        seen = b""
        while text not in seen:
            part = self.process.stdout.read1()  # type: ignore[attr-defined]
            assert part, seen
            seen += part

    def say(self, text: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        if self.process.poll() is None:
            self.say(b"quit")
            self.process.wait(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def qemu_io(image: Path, *, readonly: bool = False) -> list[str]:
    if shutil.which("qemu-io") is None:
        pytest.skip("there is no qemu-io")
    return ["qemu-io", "-f", "raw", *(["-r"] if readonly else []), str(image)]


@pytest.fixture
def qemu(image: Path) -> Iterator[Session]:
    """A writer of QEMU's, once it has opened the image."""
    session = Session(qemu_io(image))
    session.say(b"length")
    session.wait_for(b"2 MiB")
    yield session
    if session.process.poll() is None:
        session.close()


def test_qemu_refuses_our_image(image: Path) -> None:
    for ours in (False, True):
        opened = Image(str(image), readonly=ours)
        for theirs in (False, True):
            words = [*qemu_io(image, readonly=theirs), "-c", "length"]
            result = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
            if theirs:  # a reader that shares everything, as beside a writer of QEMU's
                assert (result.returncode, result.stdout.strip()) == (0, "2 MiB")
            else:
                assert result.returncode
                assert 'Failed to get "write" lock' in result.stderr
        opened.close()
    opened = Image(str(image))
    if shutil.which("qemu-img") is not None:
        subprocess.run(["qemu-img", "info", "-U", str(image)], capture_output=True, timeout=PATIENCE, check=True)
    opened.close()


@pytest.mark.parametrize("readonly", [False, True])
def test_we_refuse_an_image_of_qemus(image: Path, qemu: Session, readonly: bool) -> None:
    with pytest.raises(DeviceError, match="in use by another process or device"):
        Image(str(image), readonly=readonly)
    qemu.close()
    Image(str(image), readonly=readonly).close()


def test_a_qemu_that_runs_a_vm_and_we_refuse_each_others_image(image: Path) -> None:
    reason = debian.why_unavailable()
    if reason:
        pytest.skip(reason)
    tree = debian.tree_directory()
    words = [
        *debian.qemu_argv(tree),
        "-M",
        "q35,accel=tcg",
        "-nodefaults",
        "-display",
        "none",
        "-S",
        "-monitor",
        "stdio",
    ]
    words += ["-drive", f"file={image},format=raw,if=none,id=disk", "-device", "virtio-blk-pci,drive=disk"]
    session = Session(words, debian.qemu_environment(tree))
    session.wait_for(b"(qemu)")
    for readonly in (False, True):
        with pytest.raises(DeviceError, match="in use by another process or device"):
            Image(str(image), readonly=readonly)
    session.close()
    opened = Image(str(image))
    for access in ("", ",readonly=on"):
        changed = [word.replace("format=raw", f"format=raw{access}") for word in words]
        refused = Session(changed, debian.qemu_environment(tree))
        refused.wait_for(b"Failed to get")
        assert refused.process.wait(PATIENCE)
        refused.close()
    opened.close()
