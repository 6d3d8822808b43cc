"""Resets that are real only where they have to be, and the order of things around operations."""

from __future__ import annotations

import pytest

from usbvfiod_core.host.options import HostOptions, ResetPolicy
from usbvfiod_core.usb import requests as usb
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

from .conftest import DESCRIPTORS, IN, OUT, Bench

CLEAR_HALT = SetupPacket(usb.RECIPIENT_ENDPOINT, usb.CLEAR_FEATURE, usb.FEATURE_ENDPOINT_HALT, IN, 0)
READ_DEVICE = SetupPacket(usb.DIRECTION_IN, usb.GET_DESCRIPTOR, 0x0100, 0, 18)
VENDOR = SetupPacket(0x40, 0x5B, 0, 0, 0)


# -- resets ------------------------------------------------------------------------------------------------------------


def test_the_resets_of_enumeration_do_not_reach_the_device(bench: Bench) -> None:
    bench.scripted.answers[0] = (TransferStatus.COMPLETED, DESCRIPTORS[:18])
    bench.reset()
    bench.control(READ_DEVICE)
    bench.reset()
    bench.control(SetupPacket(0, usb.SET_CONFIGURATION, 1, 0, 0))
    bench.reset()
    assert bench.scripted.asked() == [("start", usb.GET_DESCRIPTOR)]


@pytest.mark.parametrize("what", ["bulk", "vendor", "no answer", "setting", "configuration"])
def test_a_device_that_was_used_is_reset(bench: Bench, what: str) -> None:
    bench.control(SetupPacket(0, usb.SET_CONFIGURATION, 1, 0, 0))
    if what == "bulk":
        bench.scripted.answers[OUT] = (TransferStatus.COMPLETED, b"")
        bench.submit(OUT, TransferType.BULK, b"data")
    elif what == "vendor":
        bench.scripted.answers[0] = (TransferStatus.COMPLETED, b"")
        bench.control(VENDOR)
    elif what == "no answer":
        bench.scripted.answers[0] = (TransferStatus.ERROR, b"")
        bench.control(READ_DEVICE)
    elif what == "setting":
        bench.control(SetupPacket(usb.RECIPIENT_INTERFACE, usb.SET_INTERFACE, 1, 0, 0))
    else:
        bench.control(SetupPacket(0, usb.SET_CONFIGURATION, 2, 0, 0))
    bench.scripted.asked()
    bench.reset()
    assert bench.scripted.asked() == [("reset_port",)]
    assert bench.scripted.configuration is None
    bench.reset()
    assert bench.scripted.asked() == []


def test_a_reset_that_fails_is_tried_again_the_next_time(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.scripted.answers[OUT] = (TransferStatus.COMPLETED, b"")
    bench.submit(OUT, TransferType.BULK, b"data")
    bench.scripted.failures["reset_port"] = TransferStatus.ERROR
    bench.reset()
    assert "scripted: the reset failed" in caplog.text
    bench.scripted.failures.clear()
    bench.scripted.asked()
    bench.reset()
    assert bench.scripted.asked() == [("reset_port",)]


@pytest.mark.parametrize("policy", [ResetPolicy.AUTO, ResetPolicy.NEVER])
def test_after_a_reset_that_fails_the_configuration_is_set_again(policy: ResetPolicy) -> None:
    """Linux lets go of all endpoints before it asks the device for its present configuration again."""
    bench = Bench(HostOptions(policy))
    assert bench.control(SetupPacket(0, 9, 1, 0, 0)).status is TransferStatus.COMPLETED
    bench.scripted.answers[0] = (TransferStatus.COMPLETED, b"")
    bench.control(SetupPacket(0x40, 1, 0, 0, 0))
    operation = "reset_port" if policy is ResetPolicy.AUTO else "reset_configuration"
    bench.scripted.failures[operation] = TransferStatus.ERROR
    bench.reset()
    bench.scripted.failures.clear()
    bench.scripted.asked()
    assert bench.control(SetupPacket(0, 9, 1, 0, 0)).status is TransferStatus.COMPLETED
    assert bench.scripted.asked() == [("reset_configuration",)]


def test_a_device_that_does_not_survive_its_reset_is_unplugged(bench: Bench) -> None:
    bench.scripted.answers[OUT] = (TransferStatus.COMPLETED, b"")
    bench.submit(OUT, TransferType.BULK, b"data")
    bench.scripted.failures["reset_port"] = TransferStatus.DISCONNECTED
    bench.reset()
    assert bench.events.disconnections == 1


@pytest.mark.parametrize(
    ("policy", "quirk", "used", "wanted"),
    [
        (ResetPolicy.AUTO, True, True, [("reset_configuration",)]),
        (ResetPolicy.AUTO, True, False, []),
        (ResetPolicy.NEVER, False, True, [("reset_configuration",)]),
        (ResetPolicy.NEVER, False, False, []),
        (ResetPolicy.ALWAYS, False, False, [("reset_port",)]),
        (ResetPolicy.ALWAYS, True, True, [("reset_port",)]),
    ],
)
def test_the_policy_decides(policy: ResetPolicy, quirk: bool, used: bool, wanted: list[tuple[object, ...]]) -> None:
    bench = Bench(HostOptions(policy), reset_quirk=quirk)
    if used:
        bench.scripted.answers[OUT] = (TransferStatus.COMPLETED, b"")
        bench.submit(OUT, TransferType.BULK, b"data")
        bench.scripted.asked()
    bench.reset()
    assert bench.scripted.asked() == wanted


# -- operations --------------------------------------------------------------------------------------------------------


def test_what_is_submitted_during_an_operation_waits_in_order(bench: Bench) -> None:
    clearing = bench.submit(0, TransferType.CONTROL, b"", setup=CLEAR_HALT)
    transfers = [bench.submit(IN, TransferType.BULK, 4), bench.submit(OUT, TransferType.BULK, b"data")]
    again = bench.submit(0, TransferType.CONTROL, b"", setup=CLEAR_HALT)
    last = bench.submit(IN, TransferType.BULK, 4)
    assert bench.scripted.calls == [("pause",)]
    assert bench.scripted.in_flight == []
    bench.loop.run_ready()
    assert (clearing.status, again.status) == (TransferStatus.COMPLETED, TransferStatus.COMPLETED)
    halt = ("clear_halt", IN)
    started = [("start", IN), ("start", OUT)]
    assert bench.scripted.calls == [
        ("pause",), halt, ("resume",), *started, ("pause",), halt, ("resume",), ("start", IN)
    ]  # fmt: skip
    assert bench.scripted.in_flight == [*transfers, last]
    for transfer in [*transfers, last]:
        bench.cancel(transfer)


def test_what_waits_can_be_cancelled(bench: Bench) -> None:
    bench.submit(0, TransferType.CONTROL, b"", setup=CLEAR_HALT)
    waiting = bench.submit(IN, TransferType.BULK, 4)
    bench.cancel(waiting)
    assert waiting.status is TransferStatus.CANCELLED
    bench.loop.run_ready()
    assert ("start", IN) not in bench.scripted.calls


def test_what_is_in_flight_is_cancelled_after_the_operation(bench: Bench) -> None:
    running = bench.submit(IN, TransferType.BULK, 4)
    bench.submit(0, TransferType.CONTROL, b"", setup=CLEAR_HALT)
    bench.cancel(running)
    assert running.status is None
    bench.loop.run_ready()
    assert running.status is TransferStatus.CANCELLED
    assert bench.scripted.asked() == [("start", IN), ("clear_halt", IN), ("stop", IN)]


def test_a_device_that_goes_ends_what_waits(bench: Bench) -> None:
    bench.submit(0, TransferType.CONTROL, b"", setup=CLEAR_HALT)
    waiting = bench.submit(IN, TransferType.BULK, 4)
    bench.scripted.gone()
    bench.scripted.gone()
    assert waiting.status is TransferStatus.DISCONNECTED
    assert bench.events.disconnections == 1
    bench.loop.run_ready()


def test_closing_gives_the_device_back_after_what_is_under_way() -> None:
    bench = Bench()
    running = bench.submit(IN, TransferType.BULK, 4)
    clearing = bench.submit(0, TransferType.CONTROL, b"", setup=CLEAR_HALT)
    waiting = bench.submit(OUT, TransferType.BULK, b"data")
    bench.device.close()
    bench.device.close()
    told: list[list[tuple[object, ...]]] = []
    bench.device.when_closed(lambda: told.append(list(bench.scripted.calls)))
    assert waiting.status is TransferStatus.DISCONNECTED
    late = bench.submit(IN, TransferType.BULK, 4)
    assert late.status is TransferStatus.DISCONNECTED
    bench.loop.run_ready()
    assert clearing.status is TransferStatus.COMPLETED
    assert running.status is TransferStatus.DISCONNECTED
    (calls,) = told
    assert calls[-2:] == [("release",), ("released",)]
    bench.device.when_closed(lambda: told.append([]))
    assert told == [calls, []]
    assert bench.scripted.asked() == [("start", IN), ("clear_halt", IN), ("release",), ("released",)]
    assert ("resume",) not in bench.scripted.calls


def test_a_device_that_left_before_it_was_attached_says_so() -> None:
    bench = Bench()
    bench.scripted.gone()
    second = type(bench.events)(bench.loop)
    bench.device.attach(second)
    bench.loop.run_ready()
    assert second.disconnections == 1
