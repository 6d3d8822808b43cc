"""A connection to the control socket of one server, in asyncio: docs/control.md is what is spoken."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from usbvfiod_core.daemon.answers import understood

PROTOCOL: Final = 1
TIMEOUT: Final = 15.0
"""Seconds for an answer; that to `attach` may take eight."""
AT_ONCE: Final = 0.01
"""Seconds of processor time that what one server says takes without a pause."""
OTHERS: Final = 4
"""How much longer that pause is: no server takes more than a fifth of the time."""
MAX_LINE: Final = 2 << 20
"""Bytes of an answer: the status of 255 devices is less than one megabyte."""

Json = dict[str, Any]


class Lost(Exception):
    """The server does not answer, or not in a way that we understand."""


class Refused(Exception):
    """The server answers with an error, which `kind` says more of."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Link:
    """A connection, made by `connect`. `heard` is called with each event; `ended` is set when it is over."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Callable[[Json], object]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._heard = heard
        self._count = 0
        self._waiting: dict[int, tuple[asyncio.Future[Json], Callable[[Json], object]]] = {}
        self._task: asyncio.Task[None] | None = None
        self.greeting: Json = {}
        self.ended = asyncio.Event()
        self.why = ""
        """Why it is over, for people."""

    @classmethod
    async def connect(cls, path: Path, heard: Callable[[Json], object]) -> Link:
        """A connection whose server has greeted. Raises Lost."""
        try:
            async with asyncio.timeout(TIMEOUT):
                reader, writer = await asyncio.open_unix_connection(path, limit=MAX_LINE)
                link = cls(reader, writer, heard)
                try:
                    link.greeting = await link._line()
                except BaseException:
                    writer.close()
                    raise
        except TimeoutError:
            raise Lost("it does not answer") from None
        except OSError as error:
            raise Lost(error.strerror or str(error)) from None
        if link.greeting.get("control") != PROTOCOL:
            writer.close()
            raise Lost(link.greeting["error"]["message"] if "error" in link.greeting else "it is another program")
        link._task = asyncio.create_task(link._read())
        return link

    async def request(
        self,
        name: str,
        *,
        fds: Sequence[int] = (),
        at_once: Callable[[Json], object] = lambda answer: None,
        **arguments: Any,
    ) -> Json:
        """Ask, and return the answer. `fds` go with it, and stay the caller's. Raises Refused and Lost.

        `at_once` gets the answer, unless it is an error, before events that came behind it are heard: whoever awaits
        this may run later than that.
        """
        if self.ended.is_set():
            raise Lost(self.why)
        self._count += 1
        number = self._count
        future: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future, at_once
        try:
            self._send(json.dumps({"request": name, "id": number, **arguments}).encode() + b"\n", fds)
            async with asyncio.timeout(TIMEOUT):
                answer: Json = await future
        except TimeoutError:
            raise Lost(f"it has not answered within {TIMEOUT:.0f} s") from None
        finally:
            self._waiting.pop(number, None)
        if not answer["ok"]:
            raise Refused(answer["error"]["kind"], answer["error"]["message"])
        return answer

    def close(self, why: str = "it was closed") -> None:
        """End it, and say why."""
        if self._task is not None:
            self._task.cancel()
        self._end(why)

    # -- own ---------------------------------------------------------------------------------------------------------

    def _send(self, line: bytes, fds: Sequence[int]) -> None:
        if fds:  # streams cannot send these; nothing that was written before waits where there are some
            with socket.socket(fileno=os.dup(self._writer.get_extra_info("socket").fileno())) as same:
                try:
                    line = line[socket.send_fds(same, [line], fds) :]
                except OSError as error:
                    raise Lost(error.strerror or str(error)) from None
        if line:
            self._writer.write(line)

    def _understood(self, message: Json) -> None:
        if "ok" not in message:
            self._heard(message)
        elif (waiting := self._waiting.get(message.get("id", 0))) is not None:
            future, at_once = waiting
            if message["ok"]:
                at_once(message)
            if not future.done():
                future.set_result(message)

    async def _read(self) -> None:
        spent = 0.0
        try:
            while True:
                message = await self._line()
                started = time.thread_time()
                self._understood(message)
                spent += time.thread_time() - started
                if spent > AT_ONCE:  # what is in the buffer comes without a wait, and others have a turn too
                    await asyncio.sleep(spent * OTHERS)
                    spent = 0.0
        except Lost as error:
            self._end(str(error))
        except Exception as error:
            self._end(f"it says what we do not understand: {type(error).__name__}: {error}")

    async def _line(self) -> Json:
        try:
            line = await self._reader.readline()
        except OSError as error:
            raise Lost(error.strerror or str(error)) from None
        except ValueError:
            raise Lost(f"it has sent {MAX_LINE} bytes and no end") from None
        if not line.endswith(b"\n"):
            raise Lost("it has ended")
        return understood(line, lambda what: Lost(f"it {what}"))

    def _end(self, why: str) -> None:
        if self.ended.is_set():
            return
        self.why = why
        self.ended.set()
        self._writer.close()
        for future, _ in self._waiting.values():
            if not future.done():
                future.set_exception(Lost(why))
                future.exception()  # seen, even if nobody waits for it any more
