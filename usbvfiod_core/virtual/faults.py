"""The option `fault` of every virtual device: what goes wrong, where, and how often.

    virtual:flash?image=FILE&fault=stall@in:65536

One fault, or several with commas between them, each written

    KIND@ENDPOINT[.STREAM][#TRANSFER][:BYTE][*]

KIND       see `KINDS`; the kind `delay` has its milliseconds behind it: `delay=20@in`
ENDPOINT   an address in hexadecimal (`81`, `02`; `00` is the control pipe), or `in`, `out` (all endpoints of that
           direction but the control pipe, counted together), `control`, `any`
STREAM     one bulk stream; without it all of them
#TRANSFER  at this transfer, counted from 1; of an isochronous endpoint at this packet
:BYTE      behind so many bytes of that transfer, or without #TRANSFER of all that moves there. Sizes may end in k or M
*          again and again: at every TRANSFERth transfer, after every BYTE bytes; else once

Without #TRANSFER and :BYTE it is the first transfer. With #TRANSFER alone the device never learns of the transfer. With
:BYTE a device that is read from has done its part, and what is behind that byte is lost; one that is written to gets
what is in front of it and nothing else (in a control transfer nothing at all).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import ConfigError
from ..state import U64
from ..usb.transfer import Transfer, TransferStatus


@dataclass(frozen=True, slots=True)
class Kind:
    """What one kind of fault does: the status of the transfer or packet it happens to, and what else."""

    name: str
    meaning: str
    status: TransferStatus
    packet_status: TransferStatus
    """Of an isochronous packet, which has no handshake."""
    halts: bool = False
    """The endpoint is halted until the driver clears it; the control pipe is not (USB 2.0 8.5.3.4)."""
    only_in: bool = False
    holds: bool = False
    """The transfer does not end."""
    waits: bool = False
    """The transfer is as it would be, but late."""
    unplugs: bool = False
    """The device is gone."""


_S = TransferStatus
KINDS = {
    kind.name: kind
    for kind in (
        Kind("stall", "the endpoint answers STALL and is halted", _S.STALL, _S.ERROR, halts=True),
        Kind("short", "a short packet ends the transfer", _S.COMPLETED, _S.COMPLETED, only_in=True),
        Kind("babble", "the device sends more than was asked for", _S.BABBLE, _S.BABBLE, only_in=True),
        Kind("error", "a transaction error: bad CRC, no answer", _S.ERROR, _S.ERROR),
        Kind("drop", "NAK for ever, until the driver cancels; a packet is missed", _S.CANCELLED, _S.MISSED, holds=True),
        Kind("delay", "the answer is late", _S.COMPLETED, _S.COMPLETED, waits=True),
        Kind("disconnect", "the device is gone", _S.DISCONNECTED, _S.DISCONNECTED, unplugs=True),
    )
}

MAX_NUMBER = 1 << 48
MAX_DELAY = 3_600_000
_WORDS = ("in", "out", "control", "any")
_UNITS = {"": 1, "k": 1 << 10, "M": 1 << 20}
_FAULT = re.compile(
    r"(?P<kind>[a-z]+)(?:=(?P<delay>[0-9]{1,9}))?@(?P<endpoint>[0-9A-Za-z]+)(?:\.(?P<stream>[0-9]{1,5}))?"
    r"(?:#(?P<transfer>[0-9]{1,18}))?(?::(?P<byte>[0-9]{1,18})(?P<unit>[kM]?))?(?P<every>\*?)",
    re.ASCII,
)


@dataclass
class FaultState:
    """What one fault has counted; `next` is None if it never happens again."""

    count: U64
    transfers: U64
    moved: U64
    next: U64 | None


class Fault:
    """One fault of one device, with what it has counted.

    For each transfer that it `concerns` (for each packet of an isochronous one) `begins` is called when it starts. If
    that says so, `place` is asked once it is known what moves, and then `passes` or `happens` is told.
    """

    def __init__(
        self,
        kind: Kind,
        endpoint: int | str,
        *,
        stream: int | None = None,
        transfer: int | None = None,
        byte: int | None = None,
        every: bool = False,
        delay: float = 0.0,
    ) -> None:
        self.kind = kind
        self.endpoint = endpoint
        self.stream = stream
        self.transfer = 1 if transfer is None and byte is None else transfer
        self.byte = byte
        self.every = every
        self.delay = delay
        """Seconds."""
        self.count = 0
        """How often it has happened."""
        self._transfers = 0
        self._moved = 0
        self._next = self.byte if self.transfer is None else self.transfer

    def state(self) -> FaultState:
        """What it has counted."""
        return FaultState(self.count, self._transfers, self._moved, self._next)

    def take_state(self, state: FaultState) -> None:
        """Go on counting from there."""
        self.count, self._transfers, self._moved, self._next = (
            state.count,
            state.transfers,
            state.moved,
            state.next,
        )

    @property
    def spent(self) -> bool:
        """Whether it will never happen again."""
        return self._next is None

    @property
    def asks_device(self) -> bool:
        """Whether the device does its part of the transfer first."""
        return self.byte is not None or self.kind.waits

    def concerns(self, transfer: Transfer) -> bool:
        """Whether it may ever happen to a transfer like this."""
        if self.stream is not None and transfer.stream_id != self.stream:
            return False
        if self.kind.only_in and not transfer.is_in:
            return False
        endpoint = self.endpoint
        if endpoint == "any" or endpoint == transfer.endpoint:
            return True
        if transfer.setup is not None:
            return endpoint == "control"
        return endpoint == ("in" if transfer.is_in else "out")

    def begins(self) -> bool:
        """A transfer starts; whether this could happen in it."""
        if self._next is None:
            return False
        if self.transfer is None:
            return True
        self._transfers += 1
        if self._transfers != self._next:
            return False
        self._advance(self.transfer)
        return True

    def place(self, length: int) -> int | None:
        """Behind how many of the `length` bytes that a transfer moves it happens; None if not in them."""
        if self.transfer is not None:
            return min(self.byte or 0, length)
        if self._next is not None and self._next < self._moved + length:
            return max(self._next - self._moved, 0)  # at once, if something else was in its place
        return None

    def passes(self, length: int) -> None:
        """A transfer has moved so many bytes, and it has not happened."""
        self._moved += length

    def happens(self, length: int) -> None:
        """It has, behind so many bytes of the transfer."""
        self.count += 1
        self._moved += length
        if self.transfer is None and self.byte is not None:
            self._advance(self.byte)

    def _advance(self, step: int) -> None:
        if self._next is not None:
            self._next = self._next + step if self.every else None


def choose(faults: Iterable[Fault], length: int, *, possible: bool = True) -> tuple[int, Fault] | None:
    """The first of the faults that happens in the `length` bytes that a transfer moves, with its place; all are told.
    None happens if it is not `possible`: the transfer did not end well."""
    faults = list(faults)
    places = [(fault.place(length), fault) for fault in faults]
    chosen = min(
        ((place, fault) for place, fault in places if place is not None and possible),
        key=lambda each: each[0],
        default=None,
    )
    for fault in faults:
        if chosen is not None and fault is chosen[1]:
            fault.happens(chosen[0] if not fault.kind.waits else length)
        else:
            fault.passes(length if chosen is None or chosen[1].kind.waits else chosen[0])
    return chosen


def parse_faults(text: str) -> list[Fault]:
    """The faults of an option `fault`. Raises ConfigError that names the one that is wrong."""
    return [_parse(part) for part in text.split(",")]


def _parse(text: str) -> Fault:
    def wrong(why: str) -> ConfigError:
        return ConfigError(f"fault={text!r}: {why}")

    match = _FAULT.fullmatch(text)
    if match is None:
        raise wrong("write KIND@ENDPOINT[.STREAM][#TRANSFER][:BYTE][*], for example stall@in:65536 or drop@81#3")
    kind = KINDS.get(match["kind"])
    if kind is None:
        raise wrong(f"there is no kind {match['kind']!r}; there are {', '.join(KINDS)}")
    if (match["delay"] is not None) != kind.waits:
        raise wrong("delay needs a time (delay=MILLISECONDS), and no other kind takes one")
    delay = int(match["delay"] or 0)
    if delay > MAX_DELAY:
        raise wrong(f"a delay is at most {MAX_DELAY} milliseconds")
    endpoint = _endpoint(match["endpoint"])
    if endpoint is None:
        raise wrong(f"{match['endpoint']!r} is not an endpoint; write an address like 81 or 02, or {', '.join(_WORDS)}")
    if kind.only_in and (endpoint == "out" or (isinstance(endpoint, int) and 0 < endpoint < 0x80)):
        raise wrong(f"{kind.name} is possible for IN transfers only")
    stream = _number(match["stream"])
    if stream is not None and (not 1 <= stream <= 65533 or endpoint in (0, "control")):
        raise wrong("a stream is a number from 1 to 65533 of a bulk endpoint")
    transfer, byte = _number(match["transfer"]), _number(match["byte"], _UNITS[match["unit"] or ""])
    if transfer == 0:
        raise wrong("transfers are counted from 1")
    if max(transfer or 0, byte or 0) > MAX_NUMBER:
        raise wrong(f"numbers are at most {MAX_NUMBER}")
    every = bool(match["every"])
    if every and transfer is None and byte == 0:
        raise wrong("after every 0 bytes is not possible")
    if kind.unplugs and every:
        raise wrong("a device disconnects once")
    return Fault(kind, endpoint, stream=stream, transfer=transfer, byte=byte, every=every, delay=delay / 1000)


def _endpoint(text: str) -> int | str | None:
    if text in _WORDS:
        return text
    digits = text.removeprefix("0x")
    if not re.fullmatch(r"[0-9A-Fa-f]{1,2}", digits):
        return None
    address = int(digits, 16)
    return None if address & 0x70 or address == 0x80 else address


def _number(text: str | None, unit: int = 1) -> int | None:
    return None if text is None else int(text) * unit
