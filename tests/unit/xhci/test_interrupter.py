"""Interrupters (4.17, 5.5.2): when a message is sent, what the bits say, moderation, several targets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.xhci.kit import BULK_IN, BULK_OUT, USBCMD, USBSTS, Rig, codes, reg, spec
from usbvfiod_core.xhci.interrupter import IMOD_UNIT

IMAN = reg.interrupter_base(0) + spec.IMAN
IMOD = reg.interrupter_base(0) + spec.IMOD
ERDP = reg.interrupter_base(0) + spec.ERDP
RS, INTE = spec.USBCMD_RS, spec.USBCMD_INTE
IP, IE, EHB, EINT = spec.IMAN_IP, spec.IMAN_IE, spec.ERDP_EHB, spec.USBSTS_EINT


class Quiet(Rig):
    """A rig whose device takes all OUT data; `send` causes events, `take` handles them as an interrupt handler."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.device.auto_out.add(BULK_OUT)
        self.take()
        self.bus.write(USBSTS, EINT)
        self.bus.signals[:] = [0] * len(self.bus.signals)

    def send(self, **options: object) -> None:
        self.bulk_out.submit(b"x", **options)  # type: ignore[arg-type]

    def take(self, interrupter: int = 0) -> int:
        return self.driver.handle_events()

    @property
    def signals(self) -> int:
        return self.bus.signals[0]


@pytest.fixture
def quiet() -> Quiet:
    return Quiet()


def test_an_event_sets_ip_eint_and_ehb_and_sends_a_message(quiet: Quiet) -> None:
    quiet.bus.write(IMAN, IP)  # IE off, so that IP can be seen
    quiet.send()
    assert quiet.bus.read(IMAN) == IP
    assert quiet.bus.read(ERDP) & EHB
    assert quiet.usbsts & EINT
    assert quiet.signals == 0
    quiet.bus.write(IMAN, IE)
    assert quiet.signals == 1
    assert quiet.bus.read(IMAN) == IE, "a message clears IP (4.17.5)"


def test_no_second_message_while_the_handler_is_busy(quiet: Quiet) -> None:
    for _ in range(5):
        quiet.send()
    assert quiet.signals == 1
    quiet.take()
    assert quiet.signals == 1, "all events were taken"
    quiet.send()
    assert quiet.signals == 2


def test_events_that_came_while_the_handler_was_busy_interrupt_when_it_is_done(quiet: Quiet) -> None:
    quiet.send()
    ring = quiet.driver.event_rings[0]
    assert ring.take() is not None
    quiet.send()
    assert quiet.signals == 1
    quiet.driver.acknowledge()
    assert quiet.signals == 2


def test_moving_the_dequeue_pointer_without_ehb_is_silent(quiet: Quiet) -> None:
    """Linux moves ERDP every so many events in mid-handler."""
    quiet.send()
    quiet.send()
    ring = quiet.driver.event_rings[0]
    assert ring.take() is not None
    quiet.driver.write_64(ERDP, ring.dequeue)
    assert quiet.bus.read(ERDP) & EHB
    assert quiet.signals == 1
    quiet.driver.acknowledge()
    assert quiet.signals == 2


@pytest.mark.parametrize("order", ["IE first", "INTE first"])
def test_masked_interrupts_are_kept(quiet: Quiet, order: str) -> None:
    quiet.bus.write(IMAN, 0)
    quiet.bus.write(USBCMD, RS)
    quiet.send()
    assert quiet.bus.read(IMAN) == IP
    steps: list[tuple[int, int]] = [(IMAN, IE), (USBCMD, RS | INTE)]
    for offset, value in steps if order == "IE first" else reversed(steps):
        assert quiet.signals == 0
        quiet.bus.write(offset, value)
    assert quiet.signals == 1


def test_ip_is_cleared_by_writing_1_and_eint_is_another_bit(quiet: Quiet) -> None:
    quiet.bus.write(IMAN, 0)
    quiet.send()
    quiet.bus.write(USBSTS, EINT)
    assert not quiet.usbsts & EINT
    assert quiet.bus.read(IMAN) == IP, "clearing EINT clears no IP"
    quiet.bus.write(IMAN, 0)
    assert quiet.bus.read(IMAN) == IP
    quiet.bus.write(IMAN, IP | IE)
    assert quiet.bus.read(IMAN) == IE
    assert quiet.signals == 0


def test_eint_comes_with_every_ip(quiet: Quiet) -> None:
    for _ in range(3):
        quiet.send()
        assert quiet.usbsts & EINT
        quiet.bus.write(USBSTS, EINT)
        quiet.take()
    assert quiet.signals == 3


def test_bei_gives_the_event_without_the_interrupt(quiet: Quiet) -> None:
    quiet.send(bei=True)
    quiet.send(bei=True)
    assert quiet.signals == 0
    assert not quiet.usbsts & EINT
    assert quiet.driver.event_rings[0].waiting
    quiet.send()
    assert quiet.signals == 1
    assert quiet.take() == 3


def test_a_driver_that_polls_and_never_clears_ehb(make_rig: Callable[..., Rig]) -> None:
    """SeaBIOS."""
    rig = make_rig(interrupts=False, event_segments=(16,))
    rig.device.auto_out.add(BULK_OUT)
    driver = rig.driver

    def acknowledge(interrupter: int = 0) -> None:
        driver.write_64(driver.interrupter_offset(interrupter) + spec.ERDP, driver.event_rings[interrupter].dequeue)

    driver.acknowledge = acknowledge  # type: ignore[method-assign]
    for _ in range(100):
        rig.usb.bulk_out(BULK_OUT, b"x")
    assert rig.bus.signals == [0] * 8


# -- moderation (4.17.2) -----------------------------------------------------------------------------------------


def test_imod_spaces_messages(quiet: Quiet) -> None:
    interval = 4000 * IMOD_UNIT
    quiet.bus.write(IMOD, 4000)
    quiet.send()
    assert quiet.signals == 1, "the first one comes at once"
    quiet.take()
    for _ in range(10):
        quiet.send()
    assert quiet.signals == 1
    quiet.bus.pause(interval * 0.9)
    assert quiet.signals == 1
    quiet.bus.pause(interval * 0.2)
    assert quiet.signals == 2, "no completion is stranded: the message comes by itself"
    assert quiet.take() == 10
    quiet.bus.pause(1.0)
    assert quiet.signals == 2, "nothing new, no message"
    quiet.send()
    assert quiet.signals == 3


def test_events_that_were_polled_meanwhile_are_not_signalled(quiet: Quiet) -> None:
    quiet.bus.write(IMOD, 4000)
    quiet.send()
    quiet.take()
    quiet.send()
    quiet.take()
    quiet.bus.pause(1.0)
    assert quiet.signals == 1


def test_a_reset_forgets_a_message_that_waits(quiet: Quiet) -> None:
    quiet.bus.write(IMOD, 0xFFFF)
    quiet.send()
    quiet.take()
    quiet.send()
    quiet.driver.start()
    signals = quiet.signals
    quiet.driver.event_rings[0].take()
    quiet.bus.pause(1.0)
    assert quiet.signals == signals or quiet.port.connected
    assert quiet.bus.read(IMOD) == quiet.driver.moderation


def test_the_default_interval_is_a_millisecond(rig: Rig) -> None:
    rig.driver.reset()
    assert rig.bus.read(IMOD) == 4000


# -- several interrupters ----------------------------------------------------------------------------------------


def test_transfer_events_go_to_the_interrupter_of_their_trb() -> None:
    rig = Quiet(interrupters=4)
    for target in (3, 0, 2, 1):
        rig.send(interrupter=target)
        events = rig.events(target)
        assert [event.type for event in events] == [spec.TRB_TRANSFER_EVENT]
        assert rig.bus.signals[target] == 1
    assert sum(rig.bus.signals) == 4
    rig.bulk_out.queue.clear()
    rig.driver.commands.no_op()
    assert rig.bus.signals == [2, 1, 1, 1, 0, 0, 0, 0], "commands report to the primary interrupter"


@pytest.mark.parametrize("target", [1, 7, 8, 1023])
def test_a_target_without_an_event_ring_falls_back_to_the_primary(target: int) -> None:
    rig = Quiet()
    rig.send(interrupter=target)
    assert len(rig.events(0)) == 1
    assert rig.signals == 1
    assert sum(rig.bus.signals) == 1


def test_events_about_no_trb_go_to_the_interrupter_of_the_slot() -> None:
    rig = Quiet(interrupters=3)
    source = rig.usb.input_context
    for target in (2, 1):
        source.clear()
        source.add(0)
        source.set_slot(0, 0, target << spec.SLOT_INTERRUPTER_SHIFT, 0)
        assert rig.command(spec.TRB_EVALUATE_CONTEXT, parameter=source.address) == spec.CC_SUCCESS
        rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_out.dci)
        assert codes(rig.events(target)) == [spec.CC_STOPPED_LENGTH_INVALID]
        rig.handle()
        rig.bulk_out.doorbell()
    rig.handle()
    # A slot that is configured anew says it again, and so do the endpoints that are made then.
    rig.usb.configure_endpoints(add=[rig.usb.interface(0).endpoints[0]], drop=[BULK_IN])
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    assert codes(rig.events(1)) == [spec.CC_STOPPED_LENGTH_INVALID]


def test_interrupters_are_busy_each_on_its_own() -> None:
    rig = Quiet(interrupters=2)
    rig.send(interrupter=1)
    rig.send(interrupter=0)
    rig.send(interrupter=1)
    assert rig.bus.signals[:2] == [1, 1]
    assert len(rig.events(1)) == 2
    assert rig.bus.read(ERDP) & EHB
    assert not rig.bus.read(ERDP + spec.INTERRUPTER_STRIDE) & EHB


def test_a_secondary_interrupter_is_disabled_by_a_size_of_zero() -> None:
    rig = Quiet(interrupters=2)
    base = rig.driver.interrupter_offset(1)
    rig.bus.write(base + spec.ERSTSZ, 0)
    rig.driver.write_64(base + spec.ERSTBA, 0)
    rig.send(interrupter=1)
    assert len(rig.events(0)) == 1
