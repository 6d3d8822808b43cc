"""Files that are opened for a device: those that were given, those below a directory, and no others."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from usbvfiod_core.errors import DeviceError
from usbvfiod_core.files import Descriptor, Grant, granted, mode_of, open_path


def content(fd: int) -> bytes:
    try:
        return os.pread(fd, 100, 0)
    finally:
        os.close(fd)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(b"secret")
    return path


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    path = tmp_path / "allowed"
    (path / "deep").mkdir(parents=True)
    (path / "deep/image").write_bytes(b"image")
    return path


def test_without_a_grant_it_is_a_file_like_any_other(secret: Path) -> None:
    for grant in (None, Grant()):
        with granted(grant):
            fd = open_path(str(secret), os.O_RDONLY)
            assert not os.get_inheritable(fd)
            assert content(fd) == b"secret"
            assert mode_of(str(secret)) == secret.stat().st_mode


def test_what_was_given_is_used_whatever_is_at_its_path(secret: Path, allowed: Path) -> None:
    given = Descriptor(os.open(secret, os.O_RDWR))
    with granted(Grant({"/nowhere": given}, ())):
        for _ in range(2):
            assert content(open_path("/nowhere", os.O_RDWR)) == b"secret"
        assert mode_of("/nowhere") == secret.stat().st_mode
        with pytest.raises(FileExistsError):
            open_path("/nowhere", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        appending = open_path("/nowhere", os.O_RDWR | os.O_APPEND)
        assert fcntl.fcntl(appending, fcntl.F_GETFL) & os.O_APPEND
        os.close(appending)
        plain = open_path("/nowhere", os.O_RDONLY)
        assert not fcntl.fcntl(plain, fcntl.F_GETFL) & os.O_APPEND
        os.close(plain)
    number = given.fd
    del given
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


@pytest.mark.parametrize(
    ("has", "wants", "word"),
    [
        (os.O_RDONLY, os.O_RDWR, "reading and writing"),
        (os.O_WRONLY, os.O_RDONLY, "reading"),
        (os.O_RDONLY, os.O_WRONLY, "writing"),
        (os.O_PATH, os.O_RDONLY, "reading"),
    ],
)
def test_what_was_given_for_less(secret: Path, has: int, wants: int, word: str) -> None:
    grant = Grant({"x": Descriptor(os.open(secret, has))})
    with granted(grant), pytest.raises(DeviceError, match=f"x has to be opened for {word} before it is passed"):
        open_path("x", wants)


def test_below_a_directory(allowed: Path) -> None:
    with granted(Grant(directories=(Path("/nowhere"), allowed))):
        image = str(allowed / "deep/image")
        assert content(open_path(image, os.O_RDWR)) == b"image"
        assert mode_of(image) == os.stat(image).st_mode
        os.close(open_path(str(allowed / "new"), os.O_RDWR | os.O_CREAT | os.O_EXCL))
        with pytest.raises(FileNotFoundError):
            open_path(str(allowed / "missing"), os.O_RDONLY)
        (allowed / "inside").symlink_to("deep/image")
        assert content(open_path(str(allowed / "inside"), os.O_RDONLY)) == b"image", "a link that stays inside"


@pytest.mark.parametrize("way", ["../secret", "deep/../../secret", "link", "up/secret", "deep/fd"])
def test_nothing_leads_out(secret: Path, allowed: Path, way: str) -> None:
    held = os.open(secret, os.O_RDONLY)
    (allowed / "link").symlink_to(secret)
    (allowed / "up").symlink_to("..")
    (allowed / "deep/fd").symlink_to(f"/proc/self/fd/{held}")
    with granted(Grant(directories=(allowed,))):
        for look in (lambda path: open_path(path, os.O_RDONLY), mode_of):
            with pytest.raises(DeviceError, match="leads out of"):
                look(f"{allowed}/{way}")
        with pytest.raises(DeviceError, match=f"only files below {allowed}; pass it open"):
            open_path(str(secret), os.O_RDONLY)
    os.close(held)
    with (
        granted(Grant(directories=())),
        pytest.raises(DeviceError, match="not opened by this server for another user; pass"),
    ):
        open_path(str(secret), os.O_RDONLY)


def test_a_link_that_changes_all_the_time_leads_nowhere(secret: Path, allowed: Path) -> None:
    """Somebody who may write in the directory, and is quick."""
    way, other = allowed / "way", allowed / "other"
    way.symlink_to("deep/image")
    done = threading.Event()

    def swap() -> None:
        target = 0
        while not done.is_set():
            target = 1 - target
            os.symlink(("deep/image", "../secret")[target], other)
            os.rename(other, way)

    thread = threading.Thread(target=swap)
    thread.start()
    seen: set[bytes | None] = set()
    try:
        with granted(Grant(directories=(allowed,))):
            for _ in range(3000):
                try:
                    seen.add(content(open_path(str(way), os.O_RDONLY)))
                except DeviceError:
                    seen.add(None)
                except BlockingIOError:  # the kernel saw it change, and says so
                    pass
    finally:
        done.set()
        thread.join()
    assert b"secret" not in seen
    assert b"image" in seen


def test_a_grant_is_for_its_thread_only(secret: Path) -> None:
    results: list[bytes] = []
    with granted(Grant(directories=())):
        thread = threading.Thread(target=lambda: results.append(content(open_path(str(secret), os.O_RDONLY))))
        thread.start()
        thread.join()
    assert results == [b"secret"]
