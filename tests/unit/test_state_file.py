"""The file in which a server's state survives it."""

from __future__ import annotations

import os
import random

import pytest

from usbvfiod_core.state import StateError
from usbvfiod_core.state_file import StateFile


class Keeper:
    def __init__(self) -> None:
        self.kept: dict[str, int] = {}

    def store(self, name: str, fd: int) -> None:
        self.kept[name] = fd

    def remove(self, name: str) -> None:
        del self.kept[name]


def again(file: StateFile) -> StateFile:
    """As another process opens it."""
    return StateFile.opened(os.dup(file.fd))


def test_what_is_in_it_is_there_for_another_process() -> None:
    file = StateFile.create()
    file.area("config")[7] = 0x42
    file.registers().map[0x1234] = 0x17
    file.keep("client", {"name": "QEMU"})
    file.keep("server", [1, 2])
    file.complete()
    file.attempts += 1
    other = again(file)
    assert other.area("config")[7] == 0x42
    assert other.registers().map[0x1234] == 0x17
    assert other.document() == {"client": {"name": "QEMU"}, "server": [1, 2]}
    assert other.attempts == 1
    file.keep("client", None)
    assert other.document() == {"server": [1, 2]}
    other.close()
    file.close()


def test_a_file_that_is_not_whole_is_refused() -> None:
    file = StateFile.create()
    with pytest.raises(StateError, match="had not begun to serve"):
        StateFile.opened(file.fd)
    file.complete()
    file.keep("server", "x" * (2 << 20))  # there is no room for that
    with pytest.raises(StateError, match="could not keep its state"):
        StateFile.opened(file.fd)
    file.close()


def test_what_was_too_long_once_may_be_short_again() -> None:
    file = StateFile.create()
    long = "x" * (2 << 20)
    file.keep("server", long)
    file.complete()
    with pytest.raises(StateError, match="could not keep its state"):
        StateFile.opened(file.fd)
    for value in ("short", long, "shorter"):
        file.keep("server", value)
    other = again(file)
    assert other.document() == {"server": "shorter"}
    other.close()
    file.close()


def test_of_a_document_that_is_half_written_the_one_before_counts() -> None:
    file = StateFile.create()
    file.keep("server", 1)
    file.keep("server", 2)
    for place in ("document-0", "document-1"):
        kept = bytes(file.area(place)[:64])
        file.area(place)[20:24] = b"XXXX"
        if place == "document-0":
            assert file.document() == {"server": 1}
        else:
            assert file.document() == {"server": 2}
        file.area(place)[:64] = kept
    file.area("document-0")[0] ^= 1
    file.area("document-1")[0] ^= 1
    with pytest.raises(StateError, match="no document"):
        file.document()
    file.close()


def test_it_cannot_shrink_or_grow() -> None:
    file = StateFile.create()
    for size in (0, 1 << 30):
        with pytest.raises(PermissionError):
            os.truncate(file.fd, size)
    file.close()


def test_other_files_are_refused() -> None:
    for size in (0, 4096, 20 << 20):
        fd = os.memfd_create("other")
        os.truncate(fd, size)
        with pytest.raises(StateError):
            StateFile.opened(fd)
        os.close(fd)
    reader, writer = os.pipe()
    with pytest.raises(StateError):
        StateFile.opened(reader)
    os.close(reader)
    os.close(writer)


def test_another_version_is_refused() -> None:
    file = StateFile.create()
    file.complete()
    file.area("head")[8] += 1
    with pytest.raises(StateError, match="it is another"):
        StateFile.opened(file.fd)
    file.close()


def test_what_is_held_is_kept_by_whoever_comes() -> None:
    file, keeper = StateFile.create(), Keeper()
    file.hold("client", 10)
    file.hold("memory-1", 11)
    file.attach(keeper)
    file.hold("irq-2-0", 12)
    file.hold("irq-2-0", 13)
    file.drop("memory-1")
    file.drop("page")
    assert keeper.kept == {"client": 10, "irq-2-0": 13} == file.held
    file.detach()
    file.drop("client")
    assert keeper.kept == {"client": 10, "irq-2-0": 13}
    file.close()


def test_a_mutated_document_is_refused_or_read() -> None:
    numbers = random.Random(1)
    file = StateFile.create()
    for _ in range(300):
        file.keep("server", {"a": [1, 2, {"b": "c"}]})
        for _ in range(numbers.randrange(1, 8)):
            file.area(numbers.choice(("document-0", "document-1")))[numbers.randrange(64)] = numbers.randrange(256)
        try:
            assert file.document() == {"server": {"a": [1, 2, {"b": "c"}]}}
        except StateError:
            pass
    file.close()
