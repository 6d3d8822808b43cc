"""A connection to the control socket of one server, in asyncio: docs/control.md is what is spoken."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

PROTOCOL: Final = 1
TIMEOUT: Final = 15.0
"""Seconds for an answer; that to `attach` may take eight."""
MAX_LINE: Final = 4 << 20
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
        self._waiting: dict[int, asyncio.Future[Json]] = {}
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
            refusal = link.greeting.get("error")
            raise Lost(str(refusal.get("message")) if isinstance(refusal, dict) else "it is another program")
        link._task = asyncio.create_task(link._read())
        return link

    async def request(self, name: str, **arguments: Any) -> Json:
        """Ask, and return the answer. Raises Refused and Lost."""
        if self.ended.is_set():
            raise Lost(self.why)
        self._count += 1
        number = self._count
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(json.dumps({"request": name, "id": number, **arguments}).encode() + b"\n")
            async with asyncio.timeout(TIMEOUT):
                answer: Json = await future
        except TimeoutError:
            raise Lost(f"it has not answered within {TIMEOUT:.0f} s") from None
        finally:
            self._waiting.pop(number, None)
        if not answer["ok"]:
            error = answer.get("error") or {}
            raise Refused(str(error.get("kind")), str(error.get("message")))
        return answer

    def close(self, why: str = "it was closed") -> None:
        """End it, and say why."""
        if self._task is not None:
            self._task.cancel()
        self._end(why)

    # -- own ---------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while True:
                message = await self._line()
                if "ok" not in message:
                    self._heard(message)
                elif (future := self._waiting.get(message.get("id", 0))) is not None and not future.done():
                    future.set_result(message)
        except Lost as error:
            self._end(str(error))

    async def _line(self) -> Json:
        try:
            line = await self._reader.readline()
            message = json.loads(line) if line.endswith(b"\n") else None
        except OSError as error:
            raise Lost(error.strerror or str(error)) from None
        except (ValueError, RecursionError):
            raise Lost("it does not speak usbvfiod's control protocol") from None
        if message is None:
            raise Lost("it has ended")
        if not isinstance(message, dict):
            raise Lost("it does not speak usbvfiod's control protocol")
        return message

    def _end(self, why: str) -> None:
        if self.ended.is_set():
            return
        self.why = why
        self.ended.set()
        self._writer.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Lost(why))
                future.exception()  # seen, even if nobody waits for it any more
