"""What the controller counts for people."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import pytest

from tests.unit.xhci.kit import BULK_IN, BULK_OUT, FakeDevice, Rig, Speed, make, spec
from usbvfiod_core.testing.fake_device import INTERRUPT_IN, INTERRUPT_OUT
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.xhci.statistics import EndpointStatistics, percentile


def counted(rig: Rig, address: int) -> EndpointStatistics:
    (found,) = [each for each in rig.controller.statistics() if (each.port_id, each.address) == (rig.port_id, address)]
    return found


def test_every_endpoint_of_a_device(rig: Rig) -> None:
    found = rig.controller.statistics()
    assert [each.address for each in found] == [0, BULK_OUT, INTERRUPT_OUT, BULK_IN, INTERRUPT_IN]
    assert [each.type for each in found] == ["control", "bulk", "interrupt", "bulk", "interrupt"]
    assert {(each.port_id, each.slot_id, each.state) for each in found} == {(rig.port_id, rig.slot_id, "Running")}
    assert json.loads(json.dumps(asdict(found[1]))) == {
        "port_id": rig.port_id,
        "slot_id": rig.slot_id,
        "address": BULK_OUT,
        "type": "bulk",
        "state": "Running",
        "transfers": 0,
        "bytes": 0,
        "errors": {},
        "missed": 0,
        "queued": 0,
        "latency": [],
        "nanoseconds": 0,
    }


def test_transfers_and_bytes(rig: Rig) -> None:
    before = counted(rig, 0)
    rig.works()
    assert (counted(rig, BULK_OUT).transfers, counted(rig, BULK_OUT).bytes) == (1, 3)
    assert (counted(rig, BULK_IN).transfers, counted(rig, BULK_IN).bytes) == (1, 4), "a short packet"
    after = counted(rig, 0)
    assert (after.transfers - before.transfers, after.bytes - before.bytes) == (1, 18)


def test_what_was_told_stays_and_the_counters_behind_it_go_on(rig: Rig) -> None:
    before = rig.controller.statistics()
    [here] = [each for each in rig.controller.hub.counted().values() if each]
    rig.works()
    assert before[3].transfers == 0
    moved = [each.address for each, was in zip(rig.controller.statistics(), before, strict=True) if each != was]
    assert moved == [0, BULK_OUT, BULK_IN]
    assert moved == sorted(address for address, counters, _ in here if counters.transfers)
    rig.bulk_in.submit(length=8)
    rig.bulk_in.submit(length=8)
    rig.device.finish(rig.device.held[BULK_IN][0], TransferStatus.STALL)
    rig.bus.run()
    found = counted(rig, BULK_IN)
    assert (found.state, found.errors) == ("Halted", {"Stall": 1})
    for address, counters, queued in rig.controller.hub.counted()[found.port_id]:
        told = counted(rig, address)
        assert (told.bytes, told.transfers, told.nanoseconds) == (
            counters.bytes,
            counters.transfers,
            counters.nanoseconds,
        )
        assert (told.queued, told.type) == (queued, counters.type.name.lower())


def test_what_the_device_has_is_queued(rig: Rig) -> None:
    for _ in range(3):
        rig.bulk_in.submit(length=8)
    assert counted(rig, BULK_IN).queued == 3
    rig.device.finish(rig.device.held[BULK_IN][0], b"x")
    rig.bus.run()
    assert (counted(rig, BULK_IN).queued, counted(rig, BULK_IN).transfers) == (2, 1)
    rig.bulk_in.stop()
    assert counted(rig, BULK_IN).queued == 0


def test_no_ops_move_nothing(rig: Rig) -> None:
    rig.bulk_out.submit_trbs([make.trb(spec.TRB_NO_OP, control=spec.TRB_IOC)])
    assert counted(rig, BULK_OUT).transfers == 0


def test_what_was_moved_before_a_stop_counts_once(rig: Rig) -> None:
    td = rig.bulk_in.submit(length=100)
    rig.device.cancels = False
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    rig.device.finish(rig.device.held[BULK_IN][0], (TransferStatus.CANCELLED, b"x" * 60))
    rig.bus.run()
    rig.device.answers(BULK_IN, b"y" * 40)
    rig.bulk_in.doorbell()
    rig.handle()
    assert td.completion_code == spec.CC_SUCCESS
    assert (counted(rig, BULK_IN).transfers, counted(rig, BULK_IN).bytes) == (1, 100)


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (TransferStatus.STALL, "Stall"),
        (TransferStatus.BABBLE, "Babble"),
        (TransferStatus.ERROR, "Transaction Error"),
    ],
)
def test_errors_by_kind(rig: Rig, status: TransferStatus, name: str) -> None:
    for count in (1, 2):
        rig.device.answers(BULK_IN, status)
        rig.bulk_in.submit(length=8).wait()
        assert counted(rig, BULK_IN).errors == {name: count}
        assert counted(rig, BULK_IN).state == "Halted"
        rig.bulk_in.recover()
    assert counted(rig, BULK_IN).transfers == 0
    assert counted(rig, BULK_IN).percentile(0.5) is None


def test_trb_errors(rig: Rig) -> None:
    rig.bulk_out.submit_trbs([make.trb(spec.TRB_STATUS_STAGE)])
    assert counted(rig, BULK_OUT).errors == {"TRB Error": 1}
    assert counted(rig, BULK_OUT).state == "Error"


def test_what_the_guest_cancels_is_no_error(rig: Rig) -> None:
    rig.bulk_in.submit(length=8)
    rig.bulk_in.stop()
    assert (counted(rig, BULK_IN).errors, counted(rig, BULK_IN).state) == ({}, "Stopped")


def test_counters_belong_to_the_device(rig: Rig) -> None:
    """They outlive a new configuration and a new slot, and end with the device."""
    rig.works()
    rig.usb.set_configuration(0)
    assert (counted(rig, BULK_IN).state, counted(rig, BULK_IN).bytes) == ("Disabled", 4)
    rig.usb.disable()
    assert (counted(rig, BULK_IN).slot_id, counted(rig, BULK_IN).bytes) == (0, 4)
    rig.usb = rig.driver.enumerate(rig.port_id)
    rig.works()
    assert (counted(rig, BULK_IN).slot_id, counted(rig, BULK_IN).bytes) == (rig.slot_id, 8)
    rig.bus.unplug(rig.port_id)
    assert rig.controller.statistics() == []
    rig.bus.plug(FakeDevice(Speed.HIGH), rig.port_id)
    assert rig.controller.statistics() == [], "an old slot says nothing about a new device"


def test_devices_are_told_apart(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    other = FakeDevice(Speed.SUPER)
    port_id = rig.bus.plug(other)
    rig.driver.enumerate(port_id)
    rig.works()
    assert {each.port_id for each in rig.controller.statistics()} == {rig.port_id, port_id}
    assert [each.bytes for each in rig.controller.statistics() if each.address == BULK_IN] == [4, 0]


def test_latency_is_known_to_a_factor_of_two(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000_000
    monkeypatch.setattr("usbvfiod_core.xhci.engine.monotonic_ns", lambda: now)
    for number in range(1, 101):
        td = rig.bulk_in.submit(length=1)
        now += 2_000_000 if number > 98 else 200_000 if number > 80 else 20_000
        rig.device.answers(BULK_IN, b"x")
        td.wait()
    found = counted(rig, BULK_IN)
    for part, truth in ((0.5, 20), (0.9, 200), (0.99, 2000)):
        told = found.percentile(part)
        assert told is not None
        assert truth / 2 <= told <= truth * 2
    assert found.nanoseconds == 80 * 20_000 + 18 * 200_000 + 2 * 2_000_000
    assert sum(found.latency) == found.transfers == 100
    assert found.latency[-1] == 2, "it ends with the longest"
    assert len(found.latency) == (2_000_000).bit_length() + 1


@pytest.mark.parametrize(
    ("counts", "part", "expected"),
    [
        ({}, 0.5, None),
        ({0: 1}, 0.99, 0.0),
        ({10: 1}, 1.0, 1.024),
        ({10: 2}, 0.5, 0.768),
        ({10: 1, 11: 1}, 0.5, 1.024),
        ({10: 99, 20: 1}, 0.99, 1.024),
        ({10: 98, 20: 2}, 0.99, 786.432),
        ({64: 1}, 1.0, 2**64 / 1000),
    ],
)
def test_percentiles(counts: dict[int, int], part: float, expected: float | None) -> None:
    assert percentile([counts.get(bits, 0) for bits in range(65)], part) == expected
