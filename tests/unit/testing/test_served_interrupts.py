"""The driver over a real socket with each kind of interrupt: eventfds, the pin's unmasking, vectors that are shared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest

from usbvfiod_core.pci import vfio
from usbvfiod_core.pci.interrupts import Mechanism
from usbvfiod_core.testing.fake_device import BULK_IN, BULK_OUT, FakeDevice
from usbvfiod_core.testing.guest import ServedGuest
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.vfio_user import wire
from usbvfiod_core.xhci import spec

KINDS = [(Mechanism.INTX, None), (Mechanism.MSI, None), (Mechanism.MSI, 2), (Mechanism.MSI, 1), (Mechanism.MSIX, None)]
DATA = bytes(range(256)) * 400


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0].value}-{kind[1] or 'all'}")
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServedGuest]:
    mechanism, vectors = request.param
    guest = ServedGuest(tmp_path / "socket", interrupts=mechanism, vectors=vectors, interrupters=4, ring_trbs=256)
    yield guest
    guest.close()


def test_data_goes_both_ways(guest: ServedGuest) -> None:
    fake = FakeDevice(Speed.SUPER)
    fake.auto_out.add(BULK_OUT)
    device = guest.plug(fake)
    device.bulk_out(BULK_OUT, DATA)
    assert fake.received[BULK_OUT] == [DATA]
    guest.server.call(lambda: fake.answers(BULK_IN, DATA))
    assert device.bulk_in(BULK_IN, len(DATA)) == DATA
    assert guest.driver.lost_interrupts == 0


def test_a_storm_of_events_on_all_interrupters(guest: ServedGuest) -> None:
    fake = FakeDevice(Speed.SUPER)
    fake.auto_out.add(BULK_OUT)
    device = guest.plug(fake)
    for _ in range(20):
        with guest.bus.together():
            tds = [device.submit_out(BULK_OUT, b"x", interrupter=number % 4) for number in range(80)]
        for td in tds:
            td.result()
    assert guest.driver.lost_interrupts == 0
    guest.bus.wait_for_any(0)
    used = min(guest.bus.vectors, 4)
    assert [bool(count) for count in guest.bus.signals] == [True] * used + [False] * (guest.bus.vectors - used)


def test_a_new_client(guest: ServedGuest) -> None:
    fake = FakeDevice()
    device = guest.plug(fake)
    device.submit_in(BULK_IN, 100)
    for _ in range(3):
        guest.reconnect()
        assert guest.driver.enumerate(device.port.port_id).get_string(2) == "Fake device"
    assert guest.driver.lost_interrupts == 0


def test_a_reset_of_the_function(guest: ServedGuest) -> None:
    device = guest.plug(FakeDevice())
    guest.bus.client.reset()
    guest.bus.enable()
    guest.driver.start()
    assert guest.driver.enumerate(device.port.port_id).get_string(2) == "Fake device"
    assert guest.driver.lost_interrupts == 0


def test_going_from_one_to_the_other(tmp_path: Path) -> None:
    """As QEMU carries it out, in the middle of transfers."""
    guest = ServedGuest(tmp_path / "socket", interrupts=Mechanism.MSIX)
    try:
        fake = FakeDevice(Speed.SUPER)
        device = guest.plug(fake)
        for number, mechanism in enumerate([Mechanism.INTX, Mechanism.MSI, Mechanism.INTX, Mechanism.MSIX] * 5):
            td = device.submit_in(BULK_IN, 64)
            guest.server.wait_until(lambda: fake.in_flight == 1)
            if number % 3:
                guest.server.call(lambda: fake.answers(BULK_IN, b"before"))
                guest.bus.use_interrupts(mechanism)
            else:
                guest.bus.use_interrupts(mechanism)
                guest.server.call(lambda: fake.answers(BULK_IN, b"after"))
            assert td.result() in (b"before", b"after")
        assert guest.driver.lost_interrupts == 0
    finally:
        guest.close()


def test_the_pin_unmasked_by_an_eventfd_while_interrupts_come(tmp_path: Path) -> None:
    """What KVM does, from a thread of its own: it ends each interrupt at a moment of its own choice."""
    guest = ServedGuest(tmp_path / "socket", interrupts=Mechanism.INTX)
    ended = os.eventfd(0, os.EFD_NONBLOCK)
    over = Event()

    def end_interrupts() -> None:
        while not over.wait(0.0005):
            os.eventfd_write(ended, 1)

    thread = Thread(target=end_interrupts)
    try:
        flags = wire.IRQ_DATA_EVENTFD | wire.IRQ_ACTION_UNMASK
        guest.bus.client.set_irqs(vfio.INTX_IRQ, flags, 0, 1, fds=[ended])
        guest.bus.end_of_interrupt = lambda: None  # type: ignore[method-assign]
        fake = FakeDevice(Speed.SUPER)
        fake.auto_out.add(BULK_OUT)
        thread.start()
        device = guest.plug(fake)
        for _ in range(300):
            device.bulk_out(BULK_OUT, b"x")
        assert guest.driver.lost_interrupts == 0
        assert not guest.driver.read_operational(spec.USBSTS) & spec.USBSTS_HSE
    finally:
        over.set()
        if thread.ident is not None:
            thread.join()
        guest.close()
        os.close(ended)
