"""Interrupts by MSI-X, MSI and the pin, as a driver has them: IMAN.IP, the level, and going from one to the other."""

from __future__ import annotations

import random

import pytest

from tests.unit.xhci.kit import BULK_IN, BULK_OUT, USBCMD, USBSTS, Rig, reg, spec
from usbvfiod_core.pci.interrupts import Mechanism
from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.usb.speed import Speed

IMAN = reg.interrupter_base(0) + spec.IMAN
RS, INTE, HCRST = spec.USBCMD_RS, spec.USBCMD_INTE, spec.USBCMD_HCRST
IP, IE, EINT = spec.IMAN_IP, spec.IMAN_IE, spec.USBSTS_EINT

MECHANISMS = list(Mechanism)


def rig(mechanism: Mechanism, **options: object) -> Rig:
    made = Rig(Speed.SUPER, bus=DirectBus(interrupts=mechanism), **options)  # type: ignore[arg-type]
    made.device.auto_out.add(BULK_OUT)
    made.driver.handle_events()
    made.bus.signals[:] = [0] * len(made.bus.signals)
    return made


def send(made: Rig, **options: object) -> None:
    made.bulk_out.submit(b"x", **options)  # type: ignore[arg-type]


def pending(made: Rig) -> int:
    return made.controller.pending_interrupts


@pytest.fixture
def pin() -> Rig:
    """A rig with three interrupters and the pin, which only the test unmasks."""
    made = rig(Mechanism.INTX, interrupters=3)
    made.bus.end_of_interrupt = lambda: None  # type: ignore[method-assign]
    made.bus.interrupts.unmask()
    return made


def test_the_pin_shows_ip_until_the_driver_clears_it(pin: Rig) -> None:
    send(pin)
    assert pin.bus.signals[0] == 1
    assert pin.bus.read(IMAN) == IP | IE, "there is no message to clear it"
    pin.bus.write(USBSTS, EINT)
    assert pending(pin) == 1, "EINT is another bit"
    pin.bus.interrupts.unmask()
    assert pin.bus.signals[0] == 2, "still high"
    pin.bus.write(IMAN, IP | IE)
    assert pending(pin) == 0
    pin.bus.interrupts.unmask()
    send(pin)
    assert pin.bus.signals[0] == 2, "the handler is busy"
    pin.driver.event_rings[0].take()
    pin.driver.acknowledge()
    assert pin.bus.signals[0] == 3, "one is left"


@pytest.mark.parametrize("register", ["IE", "INTE"])
def test_the_pin_follows_what_allows_it(pin: Rig, register: str) -> None:
    offset, off, on = (IMAN, 0, IE) if register == "IE" else (USBCMD, RS, RS | INTE)
    send(pin)
    assert pending(pin) == 1
    pin.bus.write(offset, off)
    assert pending(pin) == 0
    pin.bus.interrupts.unmask()
    assert pin.bus.signals[0] == 1
    pin.bus.write(offset, on)
    assert pending(pin) == 1
    assert pin.bus.signals[0] == 2


def test_any_interrupter_holds_the_pin(pin: Rig) -> None:
    for target in (2, 1):
        send(pin, interrupter=target)
    assert pending(pin) == 0b110
    assert pin.bus.signals[0] == 1
    for target, left in ((1, 0b100), (2, 0)):
        pin.bus.write(reg.interrupter_base(target) + spec.IMAN, IP | IE)
        assert pending(pin) == left
        pin.bus.interrupts.unmask()
        assert pin.bus.signals[0] == 2, "told again while the other one is pending"


def test_a_reset_lowers_the_pin_at_once() -> None:
    made = rig(Mechanism.INTX)
    send(made)
    assert pending(made) == 1
    with made.bus.together():
        made.bus.write(USBCMD, HCRST)
        assert made.controller.pending_interrupts == 0
    made.driver.start()
    assert made.driver.enumerate(made.port_id).get_string(2) == "Fake device"


def test_a_driver_that_polls_never_sees_the_pin() -> None:
    """SeaBIOS, OVMF: interrupts are not enabled."""
    made = rig(Mechanism.INTX, interrupts=False)
    for _ in range(20):
        made.usb.bulk_out(BULK_OUT, b"x")
    assert made.bus.signals == [0] * 8
    assert pending(made) == 0


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("moderation", [0, 160])
def test_no_completion_is_stranded(mechanism: Mechanism, moderation: int) -> None:
    made = rig(mechanism, interrupters=2, moderation=moderation, ring_trbs=256, event_segments=(16,))
    for number in range(150):
        tds = [made.bulk_out.submit(b"x", interrupter=number % 2) for _ in range(1 + number % 40)]
        for td in tds:
            td.result()
    assert made.driver.lost_interrupts == 0


def test_a_save_and_restore_with_the_pin() -> None:
    made = rig(Mechanism.INTX)
    send(made)
    made.driver.halt()
    assert pending(made) == 0, "Linux takes INTE away"
    made.driver.write_operational(spec.USBCMD, spec.USBCMD_CSS)
    made.driver.write_operational(spec.USBCMD, spec.USBCMD_CRS)
    assert not made.usbsts & spec.USBSTS_SRE
    made.bus.write(IMAN, IE)
    made.driver.run()
    assert pending(made) == 1, "the event was not read yet"
    made.driver.handle_events()
    made.works()
    assert made.driver.lost_interrupts == 0


@pytest.mark.parametrize("seed", range(4))
def test_going_from_one_to_the_other_loses_nothing(seed: int) -> None:
    """The driver sleeps until it is told, whatever way that takes; the level is told again, a message once."""
    choose = random.Random(seed)
    made = rig(choose.choice(MECHANISMS), ring_trbs=256)
    bus, driver = made.bus, made.driver
    for number in range(150):
        tds = [made.bulk_out.submit(b"x") for _ in range(choose.randrange(1, 5))]
        reading = made.bulk_in.submit(length=4)
        for _ in range(choose.randrange(3)):
            bus.use_interrupts(choose.choice(MECHANISMS))
            if choose.random() < 0.5:
                made.device.answers(BULK_IN, number.to_bytes(4, "little"))
                break
        else:
            made.device.answers(BULK_IN, number.to_bytes(4, "little"))
        bus.use_interrupts(choose.choice(MECHANISMS))
        for td in (*tds, reading):
            assert not td.done
        while not all(td.done for td in (*tds, reading)):
            assert bus.wait_for_any(1.0), "an interrupt was lost"
            driver.handle_events()
        assert reading.result() == number.to_bytes(4, "little")
    assert driver.lost_interrupts == 0
