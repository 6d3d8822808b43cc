"""What the log says of a device's life in the guest, and that no guest can fill a disk with it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import pytest

from tests.unit.xhci.kit import BULK_IN, BULK_OUT, DirectBus, Rig, Speed, spec
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.xhci import journal

LOGGER = journal.log.name


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged since the last call, at the level of -v."""
    caplog.set_level(logging.DEBUG, LOGGER)

    def said() -> list[str]:
        texts = [record.getMessage() for record in caplog.records if record.name == LOGGER]
        caplog.clear()
        return texts

    return said


def test_a_life(make_rig: Callable[..., Rig], said: Callable[[], list[str]]) -> None:
    rig = make_rig()
    who = f"port {rig.port_id} ({rig.device.name})"
    assert said() == [
        "controller: reset",
        "controller: started by the guest",
        f"{who}: reset",
        f"{who}: slot 1: address 1",
        f"{who}: slot 1: configured, endpoints 0x81 bulk, 0x02 bulk, 0x83 interrupt, 0x04 interrupt",
    ]
    rig.device.answers(BULK_IN, TransferStatus.STALL)
    td = rig.bulk_in.submit(length=8)
    rig.handle()
    assert td.done
    rig.usb.suspend()
    rig.usb.resume()
    rig.usb.disable()
    rig.driver.halt()
    assert said() == [
        f"{who}: endpoint 0x81: Stall",
        f"{who}: suspended",
        f"{who}: resumed",
        f"{who}: slot 1: given back",
        "controller: halted by the guest",
    ]


def test_a_request_that_stalls_is_named(make_rig: Callable[..., Rig], said: Callable[[], list[str]]) -> None:
    rig = make_rig()
    said()
    rig.device.answers(0, TransferStatus.STALL)
    rig.usb.control.submit_control(SetupPacket(0xC0, 0x51, 0x1234, 7, 2))
    rig.handle()
    assert said() == [f"port {rig.port_id} ({rig.device.name}): endpoint 0x00: Stall at request c0 51 1234 0007 0002"]


def test_a_guest_that_resets_its_port_for_ever_fills_no_disk(
    make_rig: Callable[..., Rig], said: Callable[[], list[str]]
) -> None:
    rig = make_rig()
    said()
    resets, pause = 6000, 0.02
    for _ in range(resets):
        rig.port.reset()
        rig.bus.pause(pause)
    lines = said()
    assert len(lines) < resets * pause, "a line a second is more than there are"
    more = [int(match[1]) for line in lines if (match := re.search(r": and (\d+) more in \d+ s$", line))]
    periods = [int(match[1]) for line in lines if (match := re.search(r" more in (\d+) s$", line))]
    assert periods[:3] == [10, 20, 40]
    each = [line for line in lines if line.endswith(": reset")]
    assert len(each) <= journal.LINES * (len(more) + 1)
    rig.bus.pause(2 * journal.LONGEST_PERIOD)
    [last] = said()
    more.append(int(last.split(" and ")[1].split()[0]))
    assert sum(more) + len(each) == resets, "nothing is left out of the count"
    rig.port.reset()
    assert said() == [f"port {rig.port_id} ({rig.device.name}): reset"], "after a while it may speak again"


def test_one_device_does_not_silence_another(make_rig: Callable[..., Rig], said: Callable[[], list[str]]) -> None:
    rig = make_rig()
    other = type(rig.device)(Speed.SUPER)
    port_id = rig.bus.plug(other)
    for _ in range(3 * journal.LINES):
        rig.port.reset()
    said()
    rig.driver.enumerate(port_id)
    assert any(line.startswith(f"port {port_id} ") for line in said())


def test_nothing_at_the_default_level(make_rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    make_rig().works()
    assert [record for record in caplog.records if record.name == LOGGER] == []


def test_commands_and_transfers(bus: DirectBus, make_rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture) -> None:
    rig = make_rig(bus=bus)
    caplog.set_level(journal.TRACE, LOGGER)
    rig.works()
    assert caplog.records == [], "whoever changes the level says so"
    rig.controller.journal.refresh()
    rig.works()
    rig.device.answers(BULK_OUT, TransferStatus.STALL)
    rig.bulk_out.submit(b"abc")
    rig.handle()
    assert rig.command(spec.TRB_RESET_ENDPOINT, dci=rig.bulk_out.dci) == spec.CC_SUCCESS
    who = rf"port {rig.port_id} \({re.escape(rig.device.name)}\): endpoint"
    expected = [
        rf"{who} 0x00 80 06 0100 0000 0012: 18 of 18 bytes in \d+ us: Success",
        rf"{who} 0x02: 3 of 3 bytes in \d+ us: Success",
        rf"{who} 0x81: 4 of 64 bytes in \d+ us: Success",
        rf"{who} 0x02: 0 of 3 bytes in \d+ us: Stall",
        rf"{who} 0x02: Stall",
        rf"command Reset Endpoint, slot {rig.slot_id}: Success",
    ]
    texts = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert len(texts) == len(expected)
    assert [text for text, pattern in zip(texts, expected, strict=True) if not re.fullmatch(pattern, text)] == []
    caplog.clear()
    caplog.set_level(logging.INFO, LOGGER)
    rig.controller.journal.refresh()
    rig.usb.get_descriptor(1, 0, 18)
    assert caplog.records == []
