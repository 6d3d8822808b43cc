"""Which interfaces are taken when, and what is given back."""

from __future__ import annotations

import pytest
from fake_libusb import CONFIGURATIONS, descriptors
from libusb_bench import Bench
from usbvfiod_libusb import status

from usbvfiod_core import DeviceError, TransferStatus, TransferType
from usbvfiod_core.host.options import HostOptions, ResetPolicy
from usbvfiod_core.usb.descriptors import Configuration, Interface
from usbvfiod_core.usb.requests import SetupPacket


def test_all_interfaces_are_taken_and_given_back() -> None:
    bench = Bench()
    assert bench.asked() == [("claim", 0), ("claim", 3)]
    bench.close()
    assert bench.asked() == [("release", 3), ("release", 0), ("connect", 0), ("connect", 3)]


def test_drivers_do_not_get_the_device_if_they_shall_not() -> None:
    bench = Bench(HostOptions(reattach=False))
    bench.close()
    assert bench.asked()[2:] == [("release", 3), ("release", 0)]


def test_another_configuration_has_its_own_interfaces_and_the_first_is_put_back() -> None:
    bench = Bench().configured()
    bench.asked()
    assert bench.control(SetupPacket(0, 9, 2, 0, 0)).status is TransferStatus.COMPLETED
    assert bench.asked() == [("release", 3), ("release", 0), ("configure", 2), ("claim", 0), ("claim", 1)]
    bench.close()
    assert bench.asked() == [("release", 1), ("release", 0), ("configure", 1), ("connect", 0), ("connect", 1)]


@pytest.mark.parametrize("host", [0, 1, None])
def test_a_configuration_of_value_0_is_one(host: int | None) -> None:
    zero = Configuration(CONFIGURATIONS[1].interfaces, 0)
    bench = Bench(configuration=host, raw=descriptors((CONFIGURATIONS[0], zero)))
    assert bench.asked() == ([] if host is None else [("claim", 0), ("claim", 1 if host == 0 else 3)])
    assert bench.control(SetupPacket(0, 9, 0, 0, 0)).status is TransferStatus.COMPLETED
    assert bench.handle.claimed == {0, 1}
    assert (("configure", 0) in bench.asked()) == (host != 0)
    assert bench.control(SetupPacket(0, 9, 1, 0, 0)).status is TransferStatus.COMPLETED
    assert bench.asked()[2:] == [("configure", 1), ("claim", 0), ("claim", 3)]
    bench.close()
    assert (("configure", 0) in bench.asked()) == (host == 0)


@pytest.mark.parametrize("again", [False, True])
def test_a_configuration_that_is_refused_leaves_the_former_one(again: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Linux has none at all then, and no interface to claim, until the former one is set again."""
    bench = Bench().configured()
    bench.asked()
    bench.handle.errors |= {"configure": [status.ERROR_OTHER] * (1 + again), "claim": [status.ERROR_NOT_FOUND] * 2}
    assert bench.control(SetupPacket(0, 9, 2, 0, 0)).status is TransferStatus.STALL
    tried = [("release", 3), ("release", 0), ("configure", 2), ("claim", 0), ("claim", 3), ("configure", 1)]
    claimed = [("claim", 0), ("claim", 3)]
    assert bench.asked() == tried + claimed * (not again)
    assert bench.control(SetupPacket(0, 9, 1, 0, 0)).status is TransferStatus.COMPLETED
    assert bench.asked() == ([("configure", 1), *claimed] if again else [])
    assert bench.handle.claimed == {0, 3}
    assert bench.events.notes == []
    assert not [message for message in caplog.messages if "without interface" in message]
    bench.close()


def test_lost_races_for_an_interface_are_tried_again() -> None:
    bench = Bench()
    bench.handle.errors["claim"] = [status.ERROR_BUSY] * 3
    assert bench.control(SetupPacket(0, 9, 2, 0, 0)).status is TransferStatus.COMPLETED
    assert bench.handle.claimed == {0, 1}


@pytest.mark.parametrize("code", [status.ERROR_INVALID_PARAM, status.ERROR_NOT_FOUND])
def test_an_interface_that_linux_has_left_out_is_left_out(code: int) -> None:
    bench = Bench(errors={"claim": [0, code]}).configured()
    assert bench.handle.claimed == {0}
    assert bench.events.notes == ["without interface 3, which the host cannot give"]
    assert bench.submit_packets(0x83, [10]).status is TransferStatus.ERROR
    assert bench.control(SetupPacket(0, 9, 2, 0, 0)).status is TransferStatus.COMPLETED
    assert bench.events.notes[1:] == [""]
    bench.close()


def test_numbers_that_libusb_has_not_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    detached: list[int] = []
    monkeypatch.setattr("usbvfiod_core.host.node.disconnect", lambda fd, number: detached.append(number))
    many = Configuration(tuple(Interface(each, 0xFF) for each in (0, 31, 32, 255)))
    bench = Bench(raw=descriptors((many,)))
    assert (bench.handle.claimed, detached) == ({0, 31}, [32, 255])
    assert bench.events.notes == ["without interfaces 32, 255, which the host cannot give"]
    bench.close()


@pytest.mark.parametrize(("index", "expected"), [(0x0700, TransferStatus.ERROR), (0x0701, TransferStatus.STALL)])
def test_a_printers_device_id_has_its_interface_in_the_high_byte(index: int, expected: TransferStatus) -> None:
    """libusb does not say what is wrong; a request to what is not there is stalled."""
    bench = Bench(raw=descriptors((Configuration((Interface(7, 7, 1, 2), Interface(2, 0xFF))),))).configured()
    bench.handle.submit_errors = [status.ERROR_IO]
    assert bench.control(SetupPacket(0xA1, 0, 0, index, 0)).status is expected
    bench.close()


def test_a_device_of_which_linux_has_nothing_is_not_opened() -> None:
    with pytest.raises(DeviceError, match="Linux has none of its interfaces"):
        Bench(errors={"claim": [status.ERROR_INVALID_PARAM] * 2})


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (HostOptions(), [("reset",), ("connect", 0), ("connect", 3)]),
        (HostOptions(reset=ResetPolicy.NEVER), [("connect", 0), ("connect", 3)]),
        (HostOptions(reattach=False), []),
    ],
)
def test_a_device_that_was_used_is_reset_before_the_drivers_get_it(
    options: HostOptions, wanted: list[tuple[object, ...]]
) -> None:
    bench = Bench(options).configured()
    transfer = bench.submit(0x01, TransferType.BULK, b"x")
    bench.sent().end(status.TRANSFER_COMPLETED, 1)
    bench.wait(transfer)
    bench.asked()
    bench.close()
    assert bench.asked()[2:] == wanted


def test_one_that_does_not_come_back_from_it_gets_none() -> None:
    bench = Bench(errors={"reset": [status.ERROR_NOT_FOUND]}).configured()
    transfer = bench.submit(0x01, TransferType.BULK, b"x")
    bench.sent().end(status.TRANSFER_COMPLETED, 1)
    bench.wait(transfer)
    bench.close()
    assert bench.asked()[-1] == ("reset",)


def test_an_unconfigured_device_is_unconfigured_again() -> None:
    bench = Bench(configuration=None)
    assert bench.control(SetupPacket(0, 9, 2, 0, 0)).status is TransferStatus.COMPLETED
    bench.asked()
    bench.close()
    assert bench.asked()[2:] == [("configure", None)]
