"""Many devices at one server: it is asked for one after the other."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable

import pytest
from usbvfiod_usbip.backend import UsbipBackend
from usbvfiod_usbip.options import UsbipOptions
from usbvfiod_usbip.turns import ServerAway, Turns

from tests.lab.usbip_exporter import Exporter, virtual_keyboard
from usbvfiod_core import DeviceAway
from usbvfiod_core.testing.limits import PATIENCE, wait_until
from usbvfiod_core.testing.loop import StepLoop

SERVER = "far"


class Crowd:
    """Threads that all ask, and what became of each."""

    def __init__(self, *asking: Callable[[], object]) -> None:
        self.answers: list[object] = [None] * len(asking)
        self._threads = [threading.Thread(target=self._run, args=each) for each in enumerate(asking)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int, ask: Callable[[], object]) -> None:
        try:
            self.answers[number] = ask()
        except DeviceAway as error:
            self.answers[number] = error

    def end(self) -> list[object]:
        for thread in self._threads:
            thread.join(PATIENCE)
        return self.answers


class OneAfterTheOther(Exporter):
    """Looks whether somebody else comes while somebody waits for an answer."""

    was_crowded = False

    def _answer(self, stream: socket.socket) -> None:
        self.was_crowded |= bool(select.select([self._listener], [], [], 0.1)[0])
        super()._answer(stream)


def test_a_server_is_asked_for_one_device_after_the_other() -> None:
    exporter = OneAfterTheOther({f"1-{number}": virtual_keyboard for number in range(1, 6)})
    with exporter:
        backend = UsbipBackend()

        def ask(busid: str) -> Callable[[], object]:
            loop = StepLoop(virtual_time=False)
            return lambda: backend.open(f"{exporter.host}/{busid}", UsbipOptions(), loop)

        devices = Crowd(*map(ask, exporter.devices)).end()
        assert [device.name for device in devices] == ["usbvfiod Keyboard"] * 5  # type: ignore[attr-defined]
        assert len(exporter.servers) == 5
        for device in devices:
            device.close()  # type: ignore[attr-defined]
    assert not exporter.was_crowded


@pytest.mark.parametrize(("patience", "asked"), [(2.0, [2.0]), (1.0, [2.0]), (3.0, [2.0, 3.0])])
def test_a_server_that_is_away_costs_the_time_of_one(patience: float, asked: list[float]) -> None:
    """Unless somebody would wait longer than the one who has asked."""
    turns, release, questions = Turns(), threading.Event(), []

    def ask(patience: float) -> object:
        def question() -> object:
            questions.append(patience)
            assert release.wait(PATIENCE)
            raise ServerAway("far does not answer")

        return turns.ask(SERVER, patience, question)

    first = Crowd(lambda: ask(2.0))
    wait_until(lambda: questions, "nobody asks")
    others = Crowd(*(lambda: ask(patience),) * 4)
    wait_until(lambda: turns._lines[SERVER].present == 5, "somebody does not wait")
    release.set()
    assert [str(answer) for answer in first.end() + others.end()] == ["far does not answer"] * 5
    assert questions == asked
    assert not turns._lines


def test_what_is_wrong_with_one_device_is_not_with_others() -> None:
    turns, release = Turns(), threading.Event()

    def refused() -> object:
        assert release.wait(PATIENCE)
        raise DeviceAway("1-1 is not exported")

    crowd = Crowd(
        *(lambda: turns.ask(SERVER, 1.0, refused),) * 2,
        *(lambda: turns.ask(SERVER, 1.0, lambda: "a device"),) * 2,
        lambda: turns.ask("another", 1.0, lambda: "at once"),
    )
    wait_until(lambda: crowd.answers[4] == "at once", "one server waits for another")
    release.set()
    assert sorted(map(str, crowd.end())) == ["1-1 is not exported"] * 2 + ["a device"] * 2 + ["at once"]
    assert not turns._lines


def test_the_next_question_is_asked_again() -> None:
    turns = Turns()

    def away() -> object:
        raise ServerAway("far does not answer")

    with pytest.raises(ServerAway):
        turns.ask(SERVER, 1.0, away)
    assert turns.ask(SERVER, 1.0, lambda: "back") == "back"
