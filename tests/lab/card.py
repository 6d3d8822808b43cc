"""A smartcard for QEMU's card reader: the other end of `ccid-card-passthru`.

The messages are those of libcacard's vscard_common.h: type, reader and length in network order, then the data.
"""

from __future__ import annotations

import os
import select
import struct
import threading
from collections.abc import Callable
from pathlib import Path

INIT, ERROR, READER_ADD, READER_REMOVE, ATR, CARD_REMOVE, APDU = range(1, 8)
HEADER = struct.Struct(">III")
VERSION = 0x00000002
ANSWER_TO_RESET = bytes.fromhex("3b 13 00 75 73 62")  # T=0, three historical bytes: "usb"


class Card:
    """Answers each command by `answer(apdu)`; `stop` takes it out and ends its thread."""

    def __init__(self, wire: Path, answer: Callable[[bytes], bytes]) -> None:
        self._fd = os.open(wire, os.O_RDWR | os.O_CLOEXEC)
        self._answer = answer
        self._wake, self._stop = os.pipe2(os.O_CLOEXEC)
        self.inserted = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="card", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take the card out and end; raises what went wrong meanwhile."""
        os.close(self._stop)
        self._thread.join(10)
        os.close(self._fd)
        os.close(self._wake)
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            self._send(INIT, b"VSCD" + struct.pack(">II", VERSION, 0))
            self._send(READER_ADD)
            self._send(ATR, ANSWER_TO_RESET)
            self.inserted.set()
            while True:
                header = self._receive(HEADER.size)
                if header is None:
                    break
                kind, _, length = HEADER.unpack(header)
                data = self._receive(length) or b""
                if kind == APDU:
                    self._send(APDU, self._answer(data))
            self._send(CARD_REMOVE)
            self._send(READER_REMOVE)
        except BaseException as error:
            self.error = error

    def _send(self, kind: int, data: bytes = b"") -> None:
        os.write(self._fd, HEADER.pack(kind, 0, len(data)) + data)

    def _receive(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            ready = select.select([self._fd, self._wake], [], [])[0]
            if self._wake in ready:
                return None
            data += os.read(self._fd, count - len(data))
        return data
