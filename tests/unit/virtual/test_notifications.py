"""What a network adapter tells its guest, and how often."""

from __future__ import annotations

from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.virtual.notifications import Notifications

SPEED = bytes.fromhex("a12a000002000800 00102700 00102700")
ON, OFF = (bytes.fromhex(f"a100 0{connected}00 0200 0000") for connected in (1, 0))


class Listener:
    """A driver that hears all that is said, at the time of a virtual clock."""

    def __init__(self) -> None:
        self.loop = StepLoop()
        self.connected = True
        self.heard: list[tuple[float, bytes]] = []
        self.notifications = Notifications(self.loop, 2, 2_560_000, self.hear)

    def hear(self) -> None:
        for _ in range(9):
            if (message := self.notifications.next(self.connected)) is None:
                return
            self.heard.append((self.loop.time(), message))
        raise AssertionError("there is no end of what it says")

    def wait(self) -> list[tuple[float, bytes]]:
        """All that is said in the next minute, with the seconds since now."""
        self.heard.clear()
        start = self.loop.time()
        self.hear()
        self.loop.advance(60)
        return [(round(when - start, 3), message) for when, message in self.heard]


def test_the_speed_comes_once_and_the_connection_four_times() -> None:
    assert Listener().wait() == [(0, SPEED), (0, ON), (0.5, ON), (2.5, ON), (10.5, ON)]


def test_a_change_is_told_at_once_and_as_often() -> None:
    listener = Listener()
    listener.wait()
    listener.connected = False
    assert listener.wait() == [(0, OFF), (0.5, OFF), (2.5, OFF), (10.5, OFF)]
    assert listener.wait() == []


def test_what_nobody_asked_for_is_told_when_somebody_asks() -> None:
    listener = Listener()
    listener.hear()
    listener.loop.advance(0.4)
    listener.notifications._due = lambda: None
    listener.loop.advance(60)
    assert listener.notifications.next(True) == ON
    assert listener.notifications.next(True) is None


def test_a_driver_that_begins_anew_is_told_everything() -> None:
    listener = Listener()
    listener.hear()
    listener.notifications.restart()
    assert listener.wait() == [(0, SPEED), (0, ON), (0.5, ON), (2.5, ON), (10.5, ON)]


def test_another_process_tells_the_connection_again() -> None:
    heir = Listener()
    heir.notifications.go_on(is_speed_told=True, told=True)
    heir.notifications.start()
    assert heir.wait() == [(0.5, ON), (2.5, ON), (10.5, ON)]


def test_nothing_is_told_after_the_end() -> None:
    listener = Listener()
    listener.hear()
    listener.notifications.close()
    assert listener.wait() == []
