"""How punctual timers of a server's loop are."""

from __future__ import annotations

import time

from usbvfiod_core.daemon.loop import ServerLoop

SECONDS = 0.0003


def lateness(loop: ServerLoop, timers: int) -> list[float]:
    """By how many seconds each of so many timers is late, which follow each other after SECONDS; negative: early."""
    late: list[float] = []

    def tick(due: float) -> None:
        late.append(time.perf_counter() - due)
        if len(late) > timers:
            loop.stop()
        else:
            loop.call_later(SECONDS, tick, time.perf_counter() + SECONDS)

    loop.call_soon(tick, time.perf_counter())
    loop.run_forever()
    return late[1:]
