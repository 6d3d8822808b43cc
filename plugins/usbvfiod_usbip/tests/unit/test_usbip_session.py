"""Requests out, answers in, without a socket: every race of CMD_UNLINK, and what no server may send."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest
from usbvfiod_usbip import wire
from usbvfiod_usbip.request import Request
from usbvfiod_usbip.session import Session

from usbvfiod_core.remote import Outgoing, PeerError, unwanted
from usbvfiod_core.usb.transfer import TransferStatus

COMPLETED, CANCELLED, ERROR = TransferStatus.COMPLETED, TransferStatus.CANCELLED, TransferStatus.ERROR
NUMBER = 0x30007


class Wire:
    """A sender that notes what is sent. While `is_full` messages wait, and can be withdrawn."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.is_full = False
        self._waiting: list[Outgoing] = []

    def send(self, *parts: bytes | memoryview, soon: bool = False) -> Outgoing:
        message = Outgoing([memoryview(part) for part in parts])
        if self.is_full:
            self._waiting.append(message)
        else:
            self.sent.append(b"".join(parts))
            message.left = 0
        return message

    def withdraw(self, message: Outgoing) -> bool:
        if message in self._waiting:
            self._waiting.remove(message)
            return True
        return False


class Rig:
    """A session, and what came back."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.now = 0.0
        self.session = Session(NUMBER, 2, lambda: self.now)
        self.session.sender = self.wire
        self.back: list[tuple[int, TransferStatus, int]] = []

    def request(
        self, length: int, *, is_in: bool = True, data: bytes | None = None, packets: Sequence[tuple[int, int]] = ()
    ) -> tuple[Request, bytearray]:
        memory = bytearray(length if data is None else data)

        def back(status: TransferStatus, actual: int) -> None:
            self.back.append((request.sequence, status, actual))

        endpoint = 0x81 if is_in else 0x02
        views = [memoryview(memory)[: length // 2], memoryview(memory)[length // 2 :]]
        request = Request(endpoint, views, length, back, is_in=is_in, packets=tuple(packets))
        self.session.submit(request)
        return request, memory

    def feed(self, data: bytes, size: int = 1 << 20) -> None:
        """What the server sends, in pieces of this size."""
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            while piece:
                count = 0
                for window in self.session.windows():
                    part = piece[count : count + len(window)]
                    window[: len(part)] = part
                    count += len(part)
                self.session.received(count)
                piece = piece[count:]


def submitted(
    sequence: int, data: bytes = b"", *, status: int = 0, actual: int | None = None, packets: int = 0
) -> bytes:
    moved = len(data) if actual is None else actual
    return wire.RETURN.pack(wire.RET_SUBMIT, sequence, 0, 0, 0, status, moved, 0, packets, 0) + data


def unlinked(sequence: int, status: int = 0) -> bytes:
    return wire.RETURN.pack(wire.RET_UNLINK, sequence, 0, 0, 0, status, 0, 0, 0, 0)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_what_is_sent(rig: Rig) -> None:
    rig.request(4, is_in=False, data=b"data")
    rig.request(512)
    out, into = rig.wire.sent
    assert wire.SUBMIT.unpack(out[:48]) == (1, 3, NUMBER, 0, 2, 0, 4, 0, 0, 0, bytes(8))
    assert out[48:] == b"data"
    assert wire.SUBMIT.unpack(into) == (1, 4, NUMBER, 1, 1, 0, 512, 0, 0, 0, bytes(8))


@pytest.mark.parametrize("size", [1, 7, 48, 49, 1 << 20])
def test_answers_in_any_pieces_and_order(rig: Rig, size: int) -> None:
    (first, memory), (second, _) = rig.request(600), rig.request(4, is_in=False, data=b"data")
    data = bytes(range(200)) * 3
    rig.feed(submitted(second.sequence, actual=4, packets=-1) + submitted(first.sequence, data), size)
    assert rig.back == [(4, COMPLETED, 4), (3, COMPLETED, 600)]
    assert bytes(memory) == data
    assert (rig.session.idle, rig.session.unfinished, rig.session.messages) == (True, 0, 2)


def test_a_short_answer_and_what_is_missing_of_one(rig: Rig) -> None:
    request, memory = rig.request(100)
    answer = submitted(request.sequence, b"short")
    rig.feed(answer[:10])
    assert rig.session.unfinished == 38
    rig.feed(answer[10:50])
    assert rig.session.unfinished == 3
    rig.feed(answer[50:])
    assert rig.back == [(3, COMPLETED, 5)]
    assert memory == b"short" + bytes(95)


@pytest.mark.parametrize(
    ("status", "result"),
    [
        (-errno.EPIPE, TransferStatus.STALL),
        (-errno.EOVERFLOW, TransferStatus.BABBLE),
        (-errno.EPROTO, ERROR),
        (-errno.ESHUTDOWN, TransferStatus.DISCONNECTED),
        (-errno.ECONNRESET, ERROR),  # nobody has asked for that
        (-9999, ERROR),
    ],
)
def test_each_status(rig: Rig, status: int, result: TransferStatus) -> None:
    request, _ = rig.request(100)
    rig.feed(submitted(request.sequence, b"some", status=status))
    assert rig.back == [(3, result, 4)]


def test_isochronous_data_comes_packed(rig: Rig) -> None:
    request, memory = rig.request(24, packets=[(0, 8), (8, 8), (16, 8)])
    assert rig.wire.sent[0][48:] == b"".join(wire.PACKET.pack(offset, 8, 0, 0) for offset in (0, 8, 16))
    table = wire.PACKET.pack(0, 8, 3, 0) + wire.PACKET.pack(8, 8, 0, -errno.EXDEV) + wire.PACKET.pack(16, 8, 8, 0)
    rig.feed(submitted(request.sequence, b"abc12345" + b"678" + table, actual=11, packets=3), 13)
    assert memory == b"abc" + bytes(13) + b"12345678"
    assert request.results == [(COMPLETED, 3), (TransferStatus.MISSED, 0), (COMPLETED, 8)]


# -- taking back -------------------------------------------------------------------------------------------------------


def test_a_request_is_taken_back(rig: Rig) -> None:
    request, _ = rig.request(100)
    rig.session.unlink(request)
    rig.session.unlink(request)
    assert wire.UNLINK.unpack(rig.wire.sent[1]) == (2, 4, NUMBER, 1, 1, 3)
    assert (len(rig.wire.sent), rig.back) == (2, [])
    rig.feed(unlinked(4, -errno.ECONNRESET))
    assert (rig.back, rig.session.idle) == ([(3, CANCELLED, 0)], True)


def test_servers_say_anything_of_what_was_taken_back(rig: Rig) -> None:
    request, _ = rig.request(100)
    rig.session.unlink(request)
    rig.feed(unlinked(4, 0))
    assert rig.back == [(3, CANCELLED, 0)]


def test_the_answer_has_won_the_race(rig: Rig) -> None:
    request, _ = rig.request(100)
    rig.session.unlink(request)
    rig.feed(submitted(request.sequence, b"won"))
    assert rig.back == [(3, COMPLETED, 3)], "it is not waited for RET_UNLINK, which comes late"
    another, _ = rig.request(100)
    rig.feed(submitted(another.sequence, b"next") + unlinked(4))
    assert rig.back[1:] == [(5, COMPLETED, 4)]


def test_both_answers_in_the_wrong_order(rig: Rig) -> None:
    request, memory = rig.request(100)
    rig.session.unlink(request)
    rig.feed(unlinked(4) + submitted(request.sequence, b"late") + submitted(rig.request(4)[0].sequence, b"next"))
    assert rig.back == [(3, CANCELLED, 0), (5, COMPLETED, 4)]
    assert memory == bytes(100), "what comes late is not for the guest any more"


def test_what_was_not_sent_yet_is_not_sent(rig: Rig) -> None:
    rig.wire.is_full = True
    request, _ = rig.request(100)
    rig.session.unlink(request)
    assert (rig.back, rig.wire.sent) == ([(3, CANCELLED, 0)], [])


# -- what comes late ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [48, 60, 1 << 20])
def test_what_is_given_up_writes_nothing_any_more(rig: Rig, size: int) -> None:
    request, memory = rig.request(200_000)
    rig.session.unlink(request)
    answer = submitted(request.sequence, b"x" * 200_000)
    rig.feed(answer[: size if size < 100 else 0])
    before = bytes(memory)
    assert rig.session.abandon(request)
    assert not rig.session.abandon(request)
    rig.feed(answer[size if size < 100 else 0 :])
    assert (bytes(memory), rig.back) == (before, [])
    rig.feed(submitted(rig.request(4)[0].sequence, b"next"))
    assert rig.back == [(5, COMPLETED, 4)]


def test_the_end_ends_everything(rig: Rig) -> None:
    rig.request(4)
    rig.request(4, is_in=False)
    rig.session.end(TransferStatus.DISCONNECTED)
    assert [status for _, status, _ in rig.back] == [TransferStatus.DISCONNECTED] * 2


def test_little_is_remembered_of_a_server_that_does_not_answer(rig: Rig) -> None:
    for _ in range(5000):
        request, _ = rig.request(4)
        rig.session.unlink(request)
        rig.session.abandon(request)
    assert len(rig.session._ghosts) + len(rig.session._unlinks) < 3000
    assert rig.session.idle


# -- what no server may send -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (wire.RETURN.pack(7, 3, 0, 0, 0, 0, 0, 0, 0, 0), "kind 7"),
        (wire.RETURN.pack(wire.CMD_SUBMIT, 3, 0, 0, 0, 0, 0, 0, 0, 0), "kind 1"),
        (submitted(99), "request 99"),
        (submitted(0), "request 0"),
        (submitted(3) + submitted(3), "request 3"),
        (submitted(3, actual=101), "101 bytes"),
        (submitted(3, actual=-1), "-1 bytes"),
        (submitted(3, actual=0x7FFFFFFF), "2147483647 bytes"),
        (submitted(3, packets=5), "5 packets"),
        (unlinked(77), "unlinking 77"),
    ],
)
def test_faults_of_the_server(rig: Rig, answer: bytes, said: str) -> None:
    rig.request(100)
    with pytest.raises(PeerError, match=said):
        rig.feed(answer)


def test_answers_that_come_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unwanted, "MOST", 200)
    monkeypatch.setattr(unwanted, "RATE", 16)
    rig = Rig()
    request, _ = rig.request(100)
    rig.session.unlink(request)
    rig.feed(unlinked(4) * 201)  # the first of them is waited for
    rig.now += 0.5
    rig.feed(unlinked(4) * 8)
    with pytest.raises(PeerError, match="nobody has asked for"):
        rig.feed(unlinked(4))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (submitted(3, packets=1), "1 packets"),
        (submitted(3, packets=0), "0 packets"),
        (submitted(3, actual=2, packets=2, data=b"ab" + wire.PACKET.pack(0, 8, 9, 0) * 2), "9 bytes of a packet"),
        (submitted(3, actual=2, packets=2, data=b"ab" + wire.PACKET.pack(0, 8, 2, 0) * 2), "more than the 2"),
        (submitted(3, actual=2, packets=2, data=b"ab" + wire.PACKET.pack(0, 8, 0, 0) * 2), "0 of the 2"),
    ],
)
def test_faults_in_isochronous_answers(rig: Rig, answer: bytes, said: str) -> None:
    rig.request(16, packets=[(0, 8), (8, 8)])
    with pytest.raises(PeerError, match=said):
        rig.feed(answer)


def test_an_isochronous_transfer_that_failed_whole(rig: Rig) -> None:
    request, _ = rig.request(16, packets=[(0, 8), (8, 8)])
    rig.feed(submitted(3, status=-errno.ESHUTDOWN))
    assert request.results == [(TransferStatus.DISCONNECTED, 0)] * 2
