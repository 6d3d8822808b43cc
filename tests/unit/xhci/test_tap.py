"""Who looks on at a device's transfers: switched on and off while it runs, and nothing in the way where nobody does."""

from __future__ import annotations

import traceback

import pytest

from tests.unit.xhci.kit import BULK_IN, BULK_OUT, Rig
from usbvfiod_core.usb.transfer import Transfer, TransferType
from usbvfiod_core.xhci.xhc import Route


class Onlooker:
    """Sees the transfers of bulk endpoints, and what becomes of them."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, TransferType]] = []
        self.seen: list[Transfer] = []

    def __call__(self, address: int, type: TransferType, route: Route) -> Route:
        self.asked.append((address, type))
        if type is not TransferType.BULK:
            return route

        def submit(transfer: Transfer) -> None:
            self.seen.append(transfer)
            route(transfer)

        return submit


def test_switched_on_and_off(rig: Rig) -> None:
    rig.works()
    tap = Onlooker()
    rig.controller.hub.tap(rig.port_id, tap)
    assert (0, TransferType.CONTROL) in tap.asked
    rig.works()
    assert [transfer.endpoint for transfer in tap.seen] == [BULK_OUT, BULK_IN]
    rig.controller.hub.tap(rig.port_id, None)
    rig.works()
    assert len(tap.seen) == 2


def test_endpoints_that_are_configured_later(rig: Rig) -> None:
    tap = Onlooker()
    rig.controller.hub.tap(rig.port_id, tap)
    tap.asked.clear()
    rig.usb.set_configuration(None)
    rig.usb.set_configuration(1)
    assert (BULK_IN, TransferType.BULK) in tap.asked
    rig.works()
    assert len(tap.seen) == 2


def test_it_goes_with_the_device(rig: Rig) -> None:
    rig.controller.hub.tap(rig.port_id, Onlooker())
    rig.controller.unplug(rig.port_id)
    assert rig.controller.hub.tap_at(rig.port_id) is None


def test_nothing_is_in_the_way_where_nobody_looks_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls that lead to the device are the same before, after, and with somebody who does not want to see it."""
    ways: list[list[str]] = []

    def answer(transfer: Transfer) -> int:
        ways.append([frame.name for frame in traceback.extract_stack()])
        return transfer.length

    def way() -> list[str]:
        rig.device.answers(BULK_OUT, answer)
        rig.usb.bulk_out(BULK_OUT, b"abc")
        return ways[-1]

    before = way()
    rig.controller.hub.tap(rig.port_id, Onlooker())
    assert len(way()) == len(before) + 1
    rig.controller.hub.tap(rig.port_id, lambda address, type, route: route)
    assert way() == before
    rig.controller.hub.tap(rig.port_id, None)
    assert way() == before
