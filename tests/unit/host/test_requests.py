"""Which requests reach a host's device, and what the others become (checklist 5.1)."""

from __future__ import annotations

import pytest

from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.usb import requests as usb
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

from .conftest import FIRST, IN, OUT, SECOND, Bench

DEVICE_IN = usb.DIRECTION_IN
INTERFACE = usb.RECIPIENT_INTERFACE
ENDPOINT = usb.RECIPIENT_ENDPOINT
DONE = (TransferStatus.COMPLETED, b"")


def ask(bench: Bench, kind: int, request: int, value: int = 0, index: int = 0, length: int = 0) -> tuple[object, bytes]:
    """Submit a request that the core answers by itself, or by an operation; how it ended, and with which data."""
    setup = SetupPacket(kind, request, value, index, length)
    data: bytes | int = length if setup.is_in else bytes(length)
    transfer = bench.submit(0, TransferType.CONTROL, data, setup=setup)
    bench.loop.run_ready()
    return transfer.status, transfer.data if setup.is_in else b""


def use(bench: Bench) -> None:
    """Move something through an endpoint."""
    bench.scripted.answers[OUT] = (TransferStatus.COMPLETED, b"")
    bench.submit(OUT, TransferType.BULK, b"data")
    assert bench.scripted.asked() == [("start", OUT)]


@pytest.mark.parametrize(
    ("kind", "request_code", "value", "length"),
    [
        (0, usb.SET_ADDRESS, 5, 0),
        (0, usb.SET_CONFIGURATION, 0, 0),
        (0, usb.SET_FEATURE, usb.FEATURE_U1_ENABLE, 0),
        (0, usb.SET_FEATURE, usb.FEATURE_U2_ENABLE, 0),
        (0, usb.SET_FEATURE, usb.FEATURE_LTM_ENABLE, 0),
        (0, usb.SET_FEATURE, usb.FEATURE_DEVICE_REMOTE_WAKEUP, 0),
        (0, usb.CLEAR_FEATURE, usb.FEATURE_U1_ENABLE, 0),
        (0, usb.CLEAR_FEATURE, usb.FEATURE_DEVICE_REMOTE_WAKEUP, 0),
        (INTERFACE, usb.SET_FEATURE, usb.FEATURE_FUNCTION_SUSPEND, 0),
        (INTERFACE, usb.CLEAR_FEATURE, usb.FEATURE_FUNCTION_SUSPEND, 0),
        (0, usb.SET_SEL, 0, 6),
        (0, usb.SET_ISOCH_DELAY, 40, 0),
    ],
)
def test_what_is_the_hosts_business_is_acknowledged(
    bench: Bench, kind: int, request_code: int, value: int, length: int
) -> None:
    assert ask(bench, kind, request_code, value, 0, length) == DONE
    assert bench.scripted.asked() == []


@pytest.mark.parametrize(
    "setup",
    [
        SetupPacket(DEVICE_IN, usb.GET_DESCRIPTOR, 0x0100, 0, 18),
        SetupPacket(DEVICE_IN, usb.GET_DESCRIPTOR, 0x0301, 0x409, 255),
        SetupPacket(DEVICE_IN | INTERFACE, usb.GET_INTERFACE, 0, 0, 1),
        SetupPacket(DEVICE_IN | ENDPOINT, usb.GET_STATUS, 0, IN, 2),
        SetupPacket(DEVICE_IN | ENDPOINT, usb.SYNCH_FRAME, 0, IN, 2),
        SetupPacket(0, usb.SET_DESCRIPTOR, 0x0301, 0, 4),
        SetupPacket(ENDPOINT, usb.SET_FEATURE, usb.FEATURE_ENDPOINT_HALT, IN, 0),
        SetupPacket(ENDPOINT, usb.CLEAR_FEATURE, usb.FEATURE_ENDPOINT_HALT, 0, 0),
        SetupPacket(ENDPOINT, usb.CLEAR_FEATURE, usb.FEATURE_ENDPOINT_HALT, 0x85, 0),
        SetupPacket(0x21, 0xFF, 0, 0, 0),
        SetupPacket(0x40, 0x5B, 0, 0, 16),
        SetupPacket(0xFF, 0x99, 0, 0, 1),
        SetupPacket(0x7F, 0x99, 0, 0, 0),
    ],
    ids=str,
)
def test_everything_else_is_sent_to_the_device(bench: Bench, setup: SetupPacket) -> None:
    bench.scripted.answers[0] = (TransferStatus.STALL, b"")
    status, _ = ask(bench, setup.request_type, setup.request, setup.value, setup.index, setup.length)
    assert status is TransferStatus.STALL
    assert bench.scripted.asked() == [("start", setup.request)]


def test_test_mode_is_refused(bench: Bench) -> None:
    assert ask(bench, 0, usb.SET_FEATURE, usb.FEATURE_TEST_MODE, 0x100)[0] is TransferStatus.STALL
    assert bench.scripted.asked() == []


# -- descriptors -------------------------------------------------------------------------------------------------------


def test_a_configuration_is_answered_without_remote_wakeup(bench: Bench) -> None:
    wanted = FIRST[:7] + b"\x80" + FIRST[8:]
    assert ask(bench, DEVICE_IN, usb.GET_DESCRIPTOR, 0x0200, 0, 255) == (TransferStatus.COMPLETED, wanted)
    assert ask(bench, DEVICE_IN, usb.GET_DESCRIPTOR, 0x0200, 0, 9) == (TransferStatus.COMPLETED, wanted[:9])
    assert ask(bench, DEVICE_IN, usb.GET_DESCRIPTOR, 0x0201, 0, 255) == (TransferStatus.COMPLETED, SECOND)
    assert ask(bench, DEVICE_IN, usb.GET_DESCRIPTOR, 0x0202, 0, 255)[0] is TransferStatus.STALL


def test_remote_wakeup_stays_if_asked_for() -> None:
    bench = Bench(HostOptions(remote_wakeup=True))
    assert ask(bench, DEVICE_IN, usb.GET_DESCRIPTOR, 0x0200, 0, 255) == (TransferStatus.COMPLETED, FIRST)


# -- configurations ----------------------------------------------------------------------------------------------------


def test_the_configuration_that_is_set_costs_nothing(bench: Bench) -> None:
    assert ask(bench, DEVICE_IN, usb.GET_CONFIGURATION, 0, 0, 1) == (TransferStatus.COMPLETED, b"\0")
    assert ask(bench, 0, usb.SET_CONFIGURATION, 1) == DONE
    assert ask(bench, DEVICE_IN, usb.GET_CONFIGURATION, 0, 0, 1) == (TransferStatus.COMPLETED, b"\1")
    assert bench.scripted.asked() == []


def test_a_used_configuration_is_set_again(bench: Bench) -> None:
    use(bench)
    assert ask(bench, 0, usb.SET_CONFIGURATION, 1) == DONE
    assert bench.scripted.asked() == [("reset_configuration",)]
    assert ask(bench, 0, usb.SET_CONFIGURATION, 1) == DONE
    assert bench.scripted.asked() == []


@pytest.mark.parametrize(
    ("request_type", "again"), [(0x40, True), (0x21, True), (0x02, True), (0xC0, False), (0xA1, False), (0x81, False)]
)
def test_a_device_that_is_used_by_requests_alone_begins_anew(bench: Bench, request_type: int, again: bool) -> None:
    """Programs set the configuration that is set (pyusb, libmtp, hackrf_transfer): for a real device it is a light
    reset. Of what only reads, as Windows does before it sets one, it needs none."""
    assert ask(bench, 0, usb.SET_CONFIGURATION, 1) == DONE
    bench.scripted.answers[0] = (TransferStatus.COMPLETED, b"")
    assert ask(bench, request_type, 0x0A)[0] is TransferStatus.COMPLETED
    bench.scripted.asked()
    for wanted in ([("reset_configuration",)] if again else [], []):
        assert ask(bench, 0, usb.SET_CONFIGURATION, 1) == DONE
        assert bench.scripted.asked() == wanted


def test_a_reset_that_was_made_needs_no_other(bench: Bench) -> None:
    bench.scripted.answers[0] = (TransferStatus.COMPLETED, b"")
    ask(bench, 0x40, 0x0A)
    bench.reset()
    assert bench.scripted.asked()[-1] == ("reset_port",)
    assert ask(bench, 0, usb.SET_CONFIGURATION, 1) == DONE
    assert bench.scripted.asked() == []


def test_another_configuration_is_set(bench: Bench) -> None:
    assert ask(bench, 0, usb.SET_CONFIGURATION, 2) == DONE
    assert bench.scripted.asked() == [("set_configuration", 2)]
    assert ask(bench, DEVICE_IN, usb.GET_CONFIGURATION, 0, 0, 1) == (TransferStatus.COMPLETED, b"\2")
    active = bench.scripted.active_configuration()
    assert active is not None
    assert active.value == 2


def test_a_configuration_that_is_not_there_is_refused(bench: Bench) -> None:
    assert ask(bench, 0, usb.SET_CONFIGURATION, 3)[0] is TransferStatus.STALL
    assert bench.scripted.asked() == []


@pytest.mark.parametrize("failure", [TransferStatus.ERROR, TransferStatus.STALL, RuntimeError("a bug")])
@pytest.mark.faults("scripted: RuntimeError: a bug")
def test_a_configuration_that_fails_is_a_stall(
    bench: Bench, failure: TransferStatus | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    bench.scripted.failures["set_configuration"] = failure
    assert ask(bench, 0, usb.SET_CONFIGURATION, 2)[0] is TransferStatus.STALL
    assert ask(bench, DEVICE_IN, usb.GET_CONFIGURATION, 0, 0, 1) == (TransferStatus.COMPLETED, b"\0")
    assert ("a bug" in caplog.text) == isinstance(failure, RuntimeError)


def test_unconfiguring_leaves_the_host_alone(bench: Bench) -> None:
    ask(bench, 0, usb.SET_CONFIGURATION, 1)
    assert ask(bench, 0, usb.SET_CONFIGURATION, 0) == DONE
    assert ask(bench, DEVICE_IN, usb.GET_CONFIGURATION, 0, 0, 1) == (TransferStatus.COMPLETED, b"\0")
    assert bench.scripted.asked() == []


# -- settings and halts ------------------------------------------------------------------------------------------------


def test_a_setting_is_selected_by_the_host_each_time(bench: Bench) -> None:
    ask(bench, 0, usb.SET_CONFIGURATION, 1)
    for alternate in (1, 1, 0):
        assert ask(bench, INTERFACE, usb.SET_INTERFACE, alternate, 0) == DONE
    assert bench.scripted.asked() == [("set_interface", 0, 1), ("set_interface", 0, 1), ("set_interface", 0, 0)]


@pytest.mark.parametrize(("interface", "alternate"), [(0, 2), (1, 1), (2, 0)])
def test_a_setting_that_is_not_there_is_refused(bench: Bench, interface: int, alternate: int) -> None:
    ask(bench, 0, usb.SET_CONFIGURATION, 1)
    assert ask(bench, INTERFACE, usb.SET_INTERFACE, alternate, interface)[0] is TransferStatus.STALL
    assert bench.scripted.asked() == []


def test_an_unconfigured_device_has_no_settings(bench: Bench) -> None:
    assert ask(bench, INTERFACE, usb.SET_INTERFACE, 0, 0)[0] is TransferStatus.STALL


@pytest.mark.parametrize("reserved", [0, 0x0100, 0xFF00, 0x0070, 0xFF70])
def test_a_halt_is_cleared_on_both_sides(bench: Bench, reserved: int) -> None:
    assert ask(bench, ENDPOINT, usb.CLEAR_FEATURE, usb.FEATURE_ENDPOINT_HALT, reserved | IN) == DONE
    assert bench.scripted.asked() == [("clear_halt", IN)]


def test_the_device_goes_in_an_operation(bench: Bench) -> None:
    bench.scripted.failures["clear_halt"] = TransferStatus.DISCONNECTED
    status, _ = ask(bench, ENDPOINT, usb.CLEAR_FEATURE, usb.FEATURE_ENDPOINT_HALT, IN)
    assert status is TransferStatus.DISCONNECTED
    assert bench.events.disconnections == 1
    assert bench.submit(IN, TransferType.BULK, 4).status is TransferStatus.DISCONNECTED


# -- status ------------------------------------------------------------------------------------------------------------


def test_status_shows_the_features_the_device_was_not_told_of(bench: Bench) -> None:
    bench.scripted.answers[0] = (TransferStatus.COMPLETED, b"\x0f\0")  # self-powered; U1, U2 and wake-up by the host
    assert ask(bench, DEVICE_IN, usb.GET_STATUS, 0, 0, 2) == (TransferStatus.COMPLETED, b"\x01\0")
    ask(bench, 0, usb.SET_FEATURE, usb.FEATURE_U1_ENABLE)
    ask(bench, 0, usb.SET_FEATURE, usb.FEATURE_DEVICE_REMOTE_WAKEUP)
    assert ask(bench, DEVICE_IN, usb.GET_STATUS, 0, 0, 2) == (TransferStatus.COMPLETED, b"\x07\0")
    ask(bench, 0, usb.CLEAR_FEATURE, usb.FEATURE_U1_ENABLE)
    assert ask(bench, DEVICE_IN, usb.GET_STATUS, 0, 0, 1) == (TransferStatus.COMPLETED, b"\x03")
    ptm_status = ask(bench, DEVICE_IN, usb.GET_STATUS, 1, 0, 2)
    assert ptm_status == (TransferStatus.COMPLETED, b"\x0f\0"), "as the device has it"
