"""A device ends a transfer as none can end, and changes it before and after: its own transfers fail, and no more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tests.unit.xhci.isochronous_kit import CONFIGURATION, IN, packet, submit, works
from tests.unit.xhci.kit import BULK_IN, DirectBus, FakeDevice, Rig, Speed, codes, spec
from usbvfiod_core.usb.transfer import Transfer, TransferStatus

LENGTH = 100
DONE = TransferStatus.COMPLETED


class Impossible(FakeDevice):
    """Ends bulk IN transfers with `answer`, if there is one."""

    answer: Callable[[Any], object] | None = None

    def submit(self, transfer: Transfer) -> None:
        if transfer.endpoint == BULK_IN and self.answer is not None:
            type(self).answer(transfer)  # type: ignore[misc]
        else:
            super().submit(transfer)


def longer(transfer: Any) -> None:
    transfer.length = 1 << 40
    transfer.complete(DONE, 1 << 40)


def shorter(transfer: Any) -> None:
    transfer.length = -1
    transfer.windows.clear()
    transfer.complete(DONE, -1)


ANSWERS: dict[str, tuple[Callable[[Any], object], int]] = {
    "text": (lambda transfer: transfer.complete(DONE, "all of it"), spec.CC_TRANSACTION_ERROR),
    "a half": (lambda transfer: transfer.complete(DONE, 0.5), spec.CC_TRANSACTION_ERROR),
    "no outcome": (lambda transfer: transfer.complete("well done", LENGTH), spec.CC_TRANSACTION_ERROR),
    "a list of outcomes": (lambda transfer: transfer.complete([DONE], LENGTH), spec.CC_TRANSACTION_ERROR),
    "more than it was asked for": (longer, spec.CC_BABBLE),
    "less than nothing": (shorter, spec.CC_BABBLE),
}


@pytest.mark.faults("fake device: submit raised")  # by compiled code, which takes nothing of another type
@pytest.mark.parametrize("name", ANSWERS)
def test_it_fails_its_transfers(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    answer, code = ANSWERS[name]
    rig = Rig(bus=DirectBus(), device=Impossible(Speed.HIGH))
    with monkeypatch.context() as patch:
        patch.setattr(Impossible, "answer", staticmethod(answer))
        tds = [rig.bulk_in.submit(length=LENGTH) for _ in range(2)]
        assert tds[0].wait().completion_code == code
        rig.bus.pause(1.0)
        assert not tds[1].done
    rig.bulk_in.flush()
    rig.works()
    rig.close()


def test_one_that_counts_no_bytes_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(bus=DirectBus(), device=Impossible(Speed.HIGH))
    td = rig.bulk_in.submit(length=LENGTH)
    transfer: Any = rig.device.held[BULK_IN][0]
    with suppress(TypeError):  # of compiled code
        transfer.actual = object()
        transfer.complete(DONE)
        assert "fake device: it has counted no bytes, but a object" in caplog.text
        assert td.wait().completion_code == spec.CC_TRANSACTION_ERROR
        assert len([each for each in caplog.records if each.levelname == "ERROR"]) == 1
    rig.close()


def test_what_has_ended_does_not_change(rig: Rig) -> None:
    """The transfer in front is still under way, so that the driver has not been told yet."""
    first, second = (rig.bulk_in.submit(length=LENGTH) for _ in range(2))
    held: list[Any] = [*rig.device.held[BULK_IN]]
    held[1].complete(DONE, 8)
    for name, value in {"actual": 1 << 40, "length": 1, "status": TransferStatus.STALL, "windows": []}.items():
        setattr(held[1], name, value)
    for name in ("actual", "length", "status", "windows", "packets", "on_complete", "setup", "endpoint", "type"):
        with suppress(TypeError):  # of compiled code
            setattr(held[1], name, "nonsense")
    held[0].complete(DONE, LENGTH)
    rig.handle()
    assert [(*codes(td.events), td.actual) for td in (first, second)] == [
        (spec.CC_SUCCESS, LENGTH),
        (spec.CC_SHORT_PACKET, 8),
    ]


def test_packets_that_end_as_none_can(bus: DirectBus) -> None:
    rig = Rig(bus=bus, device=FakeDevice(Speed.HIGH, configurations=[CONFIGURATION]))
    td = submit(rig, IN)
    with suppress(TypeError):  # of compiled code
        rig.device.answers(IN, packet({}, 8))  # type: ignore[arg-type]
        rig.handle()
        assert codes(td.events) == [spec.CC_TRANSACTION_ERROR]
        works(rig, IN)
