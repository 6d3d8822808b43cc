"""The vfio-user client against a server that is played by the test."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from usbvfiod_core.pci import vfio
from usbvfiod_core.testing.client import ReplyError, ReplyTimeoutError, VfioUserClient, VfioUserError
from usbvfiod_core.vfio_user import wire

Answer = Callable[[int, int, bytes], bytes]


@pytest.fixture
def pair() -> Iterator[tuple[VfioUserClient, socket.socket]]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    client = VfioUserClient(near, timeout=0.2)
    yield client, far
    client.close()
    far.close()


def play(far: socket.socket, *replies: bytes) -> Thread:
    """Answer one message with each reply, whatever the message is."""

    def run() -> None:
        for reply in replies:
            far.recv(1 << 16)
            far.sendall(reply)

    thread = Thread(target=run)
    thread.start()
    return thread


def reply(
    command: int, payload: bytes = b"", *, message_id: int = 0, flags: int = wire.TYPE_REPLY, error: int = 0
) -> bytes:
    return wire.HEADER.pack(message_id, command, wire.HEADER_SIZE + len(payload), flags, error) + payload


def test_a_refusal_names_message_and_errno(pair: tuple[VfioUserClient, socket.socket]) -> None:
    client, far = pair
    thread = play(far, reply(wire.DEVICE_RESET, flags=wire.TYPE_REPLY | wire.ERROR, error=errno.EINVAL))
    with pytest.raises(ReplyError, match="DEVICE_RESET was refused: EINVAL") as caught:
        client.reset()
    assert (caught.value.errno, caught.value.command) == (errno.EINVAL, wire.DEVICE_RESET)
    thread.join()


def test_no_answer_is_a_timeout(pair: tuple[VfioUserClient, socket.socket]) -> None:
    client, _ = pair
    with pytest.raises(ReplyTimeoutError, match=r"no answer within 0\.2 s"):
        client.reset()


def test_a_server_that_does_not_read_is_a_timeout(pair: tuple[VfioUserClient, socket.socket]) -> None:
    client, _ = pair
    with pytest.raises(ReplyTimeoutError, match="has not read"):
        client.send_posted(bytes(16 << 20))


def test_the_end_of_the_connection(pair: tuple[VfioUserClient, socket.socket]) -> None:
    client, far = pair
    far.close()
    with pytest.raises(VfioUserError, match="connection"):
        client.reset()


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (reply(wire.DEVICE_RESET, message_id=7), "has id 7"),
        (reply(wire.VERSION), "command 1"),
        (reply(wire.DEVICE_RESET, error=5), "errno 5 without the Error flag"),
        (wire.HEADER.pack(0, wire.DEVICE_RESET, 3, wire.TYPE_REPLY, 0), "a message of 3 bytes"),
        (wire.HEADER.pack(0, wire.DEVICE_RESET, 1 << 30, wire.TYPE_REPLY, 0), "a message of 1073741824 bytes"),
    ],
)
def test_replies_that_break_the_protocol(
    pair: tuple[VfioUserClient, socket.socket], answer: bytes, complaint: str
) -> None:
    client, far = pair
    thread = play(far, answer)
    with pytest.raises(VfioUserError, match=complaint):
        client.reset()
    thread.join()


def test_a_reply_may_come_in_pieces(pair: tuple[VfioUserClient, socket.socket]) -> None:
    client, far = pair
    answer = reply(wire.REGION_READ, wire.REGION_ACCESS.pack(4, 7, 2) + b"\x34\x12")

    def run() -> None:
        far.recv(1000)
        for byte in answer:
            far.sendall(bytes([byte]))

    thread = Thread(target=run)
    thread.start()
    assert client.region_read(7, 4, 2) == b"\x34\x12"
    thread.join()


def test_commands_of_the_server_are_refused_on_the_way(pair: tuple[VfioUserClient, socket.socket]) -> None:
    client, far = pair
    command = wire.HEADER.pack(99, wire.DMA_READ, 32, wire.TYPE_COMMAND, 0) + wire.DMA_ACCESS.pack(0, 8)
    thread = play(far, command + reply(wire.DEVICE_RESET))
    client.reset()
    thread.join()
    answer = wire.HEADER.unpack(far.recv(1000))
    assert answer == (99, wire.DMA_READ, wire.HEADER_SIZE, wire.TYPE_REPLY | wire.ERROR, errno.ENOSYS)


def test_negotiation(pair: tuple[VfioUserClient, socket.socket]) -> None:
    client, far = pair
    data = json.dumps({"capabilities": {"max_msg_fds": 16}}).encode() + b"\0"
    thread = play(far, reply(wire.VERSION, wire.VERSION_FIELDS.pack(0, 0) + data))
    version = client.negotiate()
    thread.join()
    assert (version.major, version.minor, version.capabilities) == (0, 0, {"max_msg_fds": 16})


@pytest.mark.parametrize("data", [b"{}\0", b'{"capabilities":{}}', b"nonsense\0"])
def test_a_version_reply_that_is_none(pair: tuple[VfioUserClient, socket.socket], data: bytes) -> None:
    client, far = pair
    thread = play(far, reply(wire.VERSION, wire.VERSION_FIELDS.pack(0, 0) + data))
    with pytest.raises(VfioUserError, match="VERSION reply"):
        client.negotiate()
    thread.join()


def test_descriptors_travel_with_their_message(pair: tuple[VfioUserClient, socket.socket]) -> None:
    client, far = pair
    received: list[tuple[bytes, list[int]]] = []

    def run() -> None:
        data, fds, _, _ = socket.recv_fds(far, 1000, 16)
        received.append((data, fds))
        far.sendall(reply(wire.DMA_MAP))

    thread = Thread(target=run)
    thread.start()
    fd = os.memfd_create("x")
    client.dma_map(0x1000, 0x2000, fd, 0x3000, writable=False)
    thread.join()
    data, fds = received[0]
    assert wire.DMA_MAP_FIELDS.unpack_from(data, wire.HEADER_SIZE) == (32, wire.DMA_MAP_READ, 0x3000, 0x1000, 0x2000)
    assert os.fstat(fds[0]).st_ino == os.fstat(fd).st_ino
    for each in (*fds, fd):
        os.close(each)


def test_many_eventfds_are_assigned_in_batches(pair: tuple[VfioUserClient, socket.socket]) -> None:
    client, far = pair
    seen: list[tuple[int, ...]] = []

    def run() -> None:
        for number in range(2):
            data, fds, _, _ = socket.recv_fds(far, 1000, 32)
            seen.append((*wire.SET_IRQS_FIELDS.unpack_from(data, wire.HEADER_SIZE)[2:], len(fds)))
            for fd in fds:
                os.close(fd)
            far.sendall(reply(wire.DEVICE_SET_IRQS, message_id=number))

    thread = Thread(target=run)
    thread.start()
    fd = os.eventfd(0)
    client.assign_eventfds(vfio.MSIX_IRQ, [fd] * 20)
    thread.join()
    os.close(fd)
    assert seen == [(vfio.MSIX_IRQ, 0, 16, 16), (vfio.MSIX_IRQ, 16, 4, 4)]


def test_a_posted_write_waits_for_nothing(pair: tuple[VfioUserClient, socket.socket]) -> None:
    client, far = pair
    client.region_write(0, 0x2000, b"\1\0\0\0", posted=True)
    fields = wire.REGION_MESSAGE.unpack_from(far.recv(1000))
    assert fields[1:] == (wire.REGION_WRITE, 36, wire.NO_REPLY, 0, 0x2000, 0, 4)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(VfioUserError, match=r"cannot connect to .*nobody"):
        VfioUserClient.connect(tmp_path / "nobody")
    start = time.monotonic()
    with pytest.raises(VfioUserError, match="cannot connect"):
        VfioUserClient.connect(tmp_path / "nobody", wait=0.05)
    assert time.monotonic() - start >= 0.05
