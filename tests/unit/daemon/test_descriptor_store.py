"""The descriptor store of a service manager, to which a socket of the test stands in."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from usbvfiod_core import ConfigError
from usbvfiod_core.daemon.descriptor_store import DescriptorStore, room
from usbvfiod_core.testing.loop import StepLoop


class Manager:
    """Reads what it is told when the test wants."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(str(path))
        self.path = path

    def told(self) -> Iterator[tuple[str, str]]:
        """Each message, and what is in the file that came with it."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.socket, 4096, 10)
            except BlockingIOError:
                return
            content = "".join(os.pread(fd, 100, 0).decode() for fd in fds)
            for fd in fds:
                os.close(fd)
            yield data.decode(), content


@pytest.fixture
def loop() -> Iterator[StepLoop]:
    loop = StepLoop()
    yield loop
    loop.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    with manager.socket:
        yield manager


@pytest.fixture
def file() -> Iterator[Callable[[str], int]]:
    made = []

    def make(content: str) -> int:
        made.append(os.memfd_create("test"))
        os.write(made[-1], content.encode())
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)


def stored(name: str) -> str:
    return f"FDSTORE=1\nFDNAME=held.{name}\nFDPOLL=0"


def removed(name: str) -> str:
    return f"FDSTOREREMOVE=1\nFDNAME=held.{name}"


def test_what_is_stored_and_removed(manager: Manager, file: Callable[[str], int], loop: StepLoop) -> None:
    store = DescriptorStore(loop, 10, ["old"])
    store.store("client", file("c"))
    store.store("client", file("d"))
    store.remove("nobody")
    assert list(manager.told()) == [(stored("client"), "c"), (removed("client"), ""), (stored("client"), "d")]
    assert store.names == {"old", "client"}
    store.clear()
    assert list(manager.told()) == [(removed("client"), ""), (removed("old"), "")]
    assert not store.names


def test_what_is_in_the_store_is_not_sent_again(manager: Manager, file: Callable[[str], int], loop: StepLoop) -> None:
    store = DescriptorStore(loop, 10, ["client"])
    store.store("client", file("c"))
    assert list(manager.told()) == []
    store.store("client", file("d"))
    assert list(manager.told()) == [(removed("client"), ""), (stored("client"), "d")]


def test_a_manager_that_does_not_read_is_told_later_and_in_order(
    manager: Manager, file: Callable[[str], int], loop: StepLoop
) -> None:
    store = DescriptorStore(loop, 1000)
    before = len(os.listdir("/proc/self/fd"))
    count = 600  # more than any queue of datagrams here is long
    fd = file("x")
    for number in range(count):
        store.store(f"irq-{number}", fd)
    assert len(os.listdir("/proc/self/fd")) > before  # they wait with descriptors of their own
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"y", 0)
    got = []
    for _ in range(count):
        got += list(manager.told())
        loop.advance(1.0)
    assert [each for each, _ in got] == [stored(f"irq-{number}") for number in range(count)]
    assert {content for _, content in got} == {"y"}
    assert len(os.listdir("/proc/self/fd")) == before + 1


def test_more_than_the_manager_holds(
    manager: Manager, file: Callable[[str], int], loop: StepLoop, caplog: pytest.LogCaptureFixture
) -> None:
    store = DescriptorStore(loop, 2)
    for name in ("a", "b", "c", "d"):
        store.store(name, file(name))
    assert [each for each, _ in manager.told()] == [stored("a"), stored("b")]
    assert caplog.text.count("holds 2 descriptors and no more") == 1
    store.remove("a")
    store.store("c", file("c"))
    assert [each for each, _ in manager.told()] == [removed("a"), stored("c")]


def test_what_waits_until_the_manager_believes_this_process(
    manager: Manager, file: Callable[[str], int], loop: StepLoop
) -> None:
    store = DescriptorStore(loop, 10)
    store.hold(True)
    store.store("a", file("a"))
    assert list(manager.told()) == []
    store.hold(False)
    assert list(manager.told()) == [(stored("a"), "a")]


def test_what_another_process_goes_on_with_is_not_removed(
    manager: Manager, file: Callable[[str], int], loop: StepLoop
) -> None:
    store = DescriptorStore(loop, 10, ["client"])
    store.hold(True)
    store.store("a", file("a"))
    store.forget()
    store.hold(False)
    store.clear()
    assert list(manager.told()) == []


def test_a_manager_that_is_gone_is_no_error(
    manager: Manager, file: Callable[[str], int], loop: StepLoop, caplog: pytest.LogCaptureFixture
) -> None:
    manager.path.unlink()
    DescriptorStore(loop, 10).store("a", file("a"))
    assert "the service manager cannot be told FDSTORE=1" in caplog.text


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 0),
        ({"FDSTORE": "10"}, 0),
        ({"NOTIFY_SOCKET": "/x"}, 0),
        ({"NOTIFY_SOCKET": "/x", "FDSTORE": "0"}, 0),
        ({"NOTIFY_SOCKET": "@x", "FDSTORE": "512"}, 512),
    ],
)
def test_how_many_are_held(environment: dict[str, str], count: int) -> None:
    assert room(environment) == count


def test_a_number_that_is_none() -> None:
    with pytest.raises(ConfigError, match="FDSTORE is 'many', which is not a number of descriptors"):
        room({"NOTIFY_SOCKET": "/x", "FDSTORE": "many"})
