"""Requests that are left under way, and adopted by whoever asks for the same, here or in another process."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from typing import Any

import pytest
from test_usbip_session import COMPLETED, NUMBER, Rig, submitted, unlinked
from usbvfiod_usbip import wire
from usbvfiod_usbip.session import Session
from usbvfiod_usbip.state import SessionState

from usbvfiod_core.state import StateError, pack, unpack
from usbvfiod_core.usb.transfer import TransferStatus


@pytest.fixture
def rig() -> Rig:
    return Rig()


def adopt(rig: Rig, length: int, data: bytes | None = None) -> bytearray:
    """Another request for what was left under way; its memory."""
    memory = bytearray(length if data is None else data)
    request = rig.session.adopt(0x81 if data is None else 2, [memoryview(memory)], length)
    assert request is not None
    request.windows = [memoryview(memory)]
    request.back = lambda status, actual: rig.back.append((request.sequence, status, actual))
    rig.session.go_on_with(request)
    return memory


@pytest.mark.parametrize("early", [0, 48, 50, 52])
def test_what_is_left_under_way_is_for_the_next_one(rig: Rig, early: int) -> None:
    """However much of the answer has come before that asks."""
    request, before = rig.request(8)
    assert rig.session.keep(request)
    assert rig.session.idle
    answer = submitted(request.sequence, b"keys")
    rig.feed(answer[:early])
    memory = adopt(rig, 8)
    rig.feed(answer[early:])
    assert (rig.back, bytes(memory), bytes(before)) == ([(3, COMPLETED, 4)], b"keys" + bytes(4), bytes(8))
    assert (len(rig.wire.sent), bool(rig.session.kept), rig.session.idle) == (1, False, True)


def test_they_are_adopted_in_the_order_in_which_they_were_made(rig: Rig) -> None:
    (first, _), (second, _) = rig.request(8), rig.request(8)
    assert rig.session.keep(second)
    assert rig.session.keep(first)
    rig.feed(submitted(first.sequence, b"1"))
    memory = adopt(rig, 8)
    assert rig.session.keep(second) is False, "it is kept already"
    other = adopt(rig, 8)
    rig.feed(submitted(second.sequence, b"2"))
    assert (rig.back, bytes(memory[:1]), bytes(other[:1])) == ([(3, COMPLETED, 1), (4, COMPLETED, 1)], b"1", b"2")


def test_who_wants_another_number_of_bytes_does_not_get_it(rig: Rig) -> None:
    request, _ = rig.request(8)
    assert rig.session.keep(request)
    assert rig.session.adopt(0x82, [], 8) is None
    assert rig.session.kept
    assert rig.session.adopt(0x81, [], 64) is None
    assert (bool(rig.session.kept), rig.session.idle) == (False, True)
    assert wire.UNLINK.unpack(rig.wire.sent[1]) == (2, 4, NUMBER, 1, 1, 3)
    rig.feed(unlinked(4) + submitted(rig.request(4)[0].sequence, b"next"))
    assert rig.back == [(5, COMPLETED, 4)]


@pytest.mark.parametrize("early", [0, 50])
def test_what_nobody_wants_is_taken_back(rig: Rig, early: int) -> None:
    request, _ = rig.request(8)
    assert rig.session.keep(request)
    answer = submitted(request.sequence, b"late")
    rig.feed(answer[:early])
    rig.session.drop_kept()
    assert rig.session.idle
    rig.feed(answer[early:] + unlinked(4) + submitted(rig.request(4)[0].sequence, b"next"))
    assert rig.back == [(5, COMPLETED, 4)]


def test_what_is_being_answered_is_taken_back_as_ever(rig: Rig) -> None:
    request, _ = rig.request(8)
    rig.feed(submitted(request.sequence, b"it has")[:50])
    assert not rig.session.keep(request)
    rig.session.unlink(request)
    assert not rig.session.keep(request)


def test_what_was_not_sent_is_not_left_under_way(rig: Rig) -> None:
    rig.wire.is_full = True
    request, _ = rig.request(8)
    assert rig.session.keep(request)
    assert (bool(rig.session.kept), rig.session.idle, rig.back) == (False, True, [])


@pytest.mark.parametrize("early", [False, True])
def test_what_is_written_is_written_once(rig: Rig, early: bool) -> None:
    request, _ = rig.request(8, is_in=False, data=b"12345678")
    assert rig.session.keep(request)
    if early:
        rig.feed(submitted(request.sequence, actual=8))
    adopt(rig, 8, b"12345678")
    if not early:
        rig.feed(submitted(request.sequence, actual=8))
    assert (rig.back, len(rig.wire.sent)) == ([(3, COMPLETED, 8)], 1)


def test_other_data_is_another_request(rig: Rig) -> None:
    request, _ = rig.request(8, is_in=False, data=b"12345678")
    assert rig.session.keep(request)
    assert rig.session.adopt(2, [memoryview(b"87654321")], 8) is None
    assert wire.UNLINK.unpack(rig.wire.sent[1]) == (2, 4, NUMBER, 0, 2, 3)
    assert not rig.session.kept


@pytest.mark.parametrize("status", [-errno.EPIPE, -errno.ECONNRESET])
def test_what_goes_wrong_with_it_is_the_next_ones_affair(rig: Rig, status: int) -> None:
    """But for a server that has taken it back by itself."""
    request, _ = rig.request(8)
    assert rig.session.keep(request)
    rig.feed(submitted(request.sequence, status=status))
    if status == -errno.EPIPE:
        adopt(rig, 8)
        assert rig.back == [(3, TransferStatus.STALL, 0)]
    else:
        assert rig.session.adopt(0x81, [], 8) is None
        assert len(rig.wire.sent) == 1


def test_another_process_goes_on_with_it(rig: Rig) -> None:
    (first, _), (second, _), (third, _) = rig.request(8), rig.request(8), rig.request(8)
    out, _ = rig.request(4, is_in=False, data=b"once")
    for request in (out, third, second, first):
        assert rig.session.keep(request)
    rig.feed(submitted(first.sequence, b"first") + submitted(second.sequence, status=-errno.EPIPE))
    rig.feed(submitted(out.sequence, actual=4))
    state = unpack(SessionState, json.loads(json.dumps(pack(rig.session.state()))))
    rig.session = Session.made_of(state)
    rig.session.sender = rig.wire
    memory = [adopt(rig, 8) for _ in range(3)]
    adopt(rig, 4, b"once")
    rig.feed(submitted(third.sequence, b"third"))
    assert rig.back == [(3, COMPLETED, 5), (4, TransferStatus.STALL, 0), (6, COMPLETED, 4), (5, COMPLETED, 5)]
    assert (bytes(memory[0][:5]), bytes(memory[2][:5])) == (b"first", b"third")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"endpoint": 0x80}, r"session.kept\[0\].endpoint: of endpoint 0 nothing is kept"),
        ({"length": 3}, r"session.kept\[0\].moved: it is more than was asked for"),
        ({"data": b""}, r"session.kept\[0\].data: it is not what was moved"),
        ({"endpoint": 1}, r"session.kept\[0\].data: it is not what was moved"),
    ],
)
def test_what_was_kept_must_make_sense(rig: Rig, change: dict[str, Any], said: str) -> None:
    request, _ = rig.request(8)
    assert rig.session.keep(request)
    rig.feed(submitted(request.sequence, b"some"))
    state = rig.session.state()
    state.kept[0] = replace(state.kept[0], **change)
    with pytest.raises(StateError, match=said):
        Session.made_of(state)
