"""Guest memory that the client has mapped and does not share: what lies there fails at once, and is told once.

A NUMA node or a memory module of QEMU's without `share=on` is such. Linux takes whatever it is given: buffers, rings,
contexts. It waits five seconds for each command and thirty for each transfer of a drive that nobody answers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from tests.unit.xhci.isochronous_kit import CONFIGURATION, IN, OUT, works
from tests.unit.xhci.kit import (
    BULK_IN,
    BULK_OUT,
    CHAIN,
    CRCR,
    DCBAAP,
    IOC,
    USBCMD,
    USBSTS,
    DirectBus,
    FakeDevice,
    GuestDriver,
    Rig,
    Speed,
    codes,
    make,
    reg,
    spec,
    stream_device,
)
from usbvfiod_core.testing.driver import Td, UsbDevice, endpoint_dwords
from usbvfiod_core.testing.fake_device import INTERRUPT_IN
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.xhci.complaints import LIMIT, TRB_ERROR

PRIVATE = 0x2_0000_0000
GIB = 1 << 30
ERROR = spec.CC_TRANSACTION_ERROR


@pytest.fixture
def rig(make_rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture) -> Rig:
    """A device and a guest with a GiB of private memory at PRIVATE."""
    rig = make_rig()
    rig.bus.memory.map(PRIVATE, GIB)
    caplog.clear()
    return rig


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def ended(td: Td) -> tuple[int, int]:
    return td.completion_code, td.events[-1].length


# -- buffers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [BULK_IN, BULK_OUT, INTERRUPT_IN])
def test_a_transfer_fails_and_the_next_one_works(rig: Rig, address: int, caplog: pytest.LogCaptureFixture) -> None:
    pipe = rig.usb.pipe(address)
    td = pipe.submit_trbs([make.normal(PRIVATE + 0x1000, 100, IOC)])
    rig.handle()
    assert ended(td) == (ERROR, 100)
    assert td.events[-1].pointer == td.addresses[0]
    assert pipe.state == spec.EP_HALTED
    assert rig.device.submitted == [], "the device is not asked"
    (message,) = told(caplog)
    assert f"{PRIVATE:#x}-{PRIVATE + GIB:#x}" in message
    assert "share=on" in message
    pipe.recover()
    rig.works()


def test_a_soft_retry_fails_as_well(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Linux tries a bulk transfer three times more before it gives it back."""
    td = rig.bulk_in.submit_trbs([make.normal(PRIVATE, 512, IOC)])
    rig.handle()
    for _ in range(3):
        rig.bulk_in.retry()
        rig.handle()
        assert rig.bulk_in.state == spec.EP_HALTED
    assert {event.completion_code for event in td.events} == {ERROR}
    rig.bulk_in.recover()
    rig.works()
    assert len(told(caplog)) == 1


def test_a_buffer_of_which_a_part_is_private(rig: Rig) -> None:
    shared = rig.ram.allocate(512)
    trbs = [make.normal(shared, 512, CHAIN), make.normal(PRIVATE, 512, CHAIN), make.normal(shared, 512, IOC)]
    td = rig.bulk_out.submit_trbs(trbs)
    rig.handle()
    assert ended(td) == (ERROR, 512)
    assert rig.device.received[BULK_OUT] == [], "all of it or nothing"
    rig.bulk_out.recover()
    rig.works()


def test_what_is_in_front_of_it_is_done_first(rig: Rig) -> None:
    rig.device.answers(BULK_IN, b"good")
    first = rig.bulk_in.submit(length=4)
    second = rig.bulk_in.submit_trbs([make.normal(PRIVATE, 512, IOC)])
    rig.handle()
    assert first.result() == b"good"
    assert second.completion_code == ERROR
    rig.bulk_in.recover()
    rig.works()


@pytest.mark.parametrize("is_in", [True, False])
def test_a_control_transfer(rig: Rig, is_in: bool) -> None:
    setup = SetupPacket(0x80, 6, 0x0100, 0, 18) if is_in else SetupPacket(0x40, 1, 0, 0, 18)
    stages = [
        make.setup_stage(setup),
        make.data_stage(PRIVATE, 18, is_in=is_in, flags=spec.TRB_ISP),
        make.status_stage(is_in=not is_in),
    ]
    control = rig.usb.control
    td = control.submit_trbs(stages, is_in=is_in)
    rig.handle()
    assert td.completion_code == ERROR
    assert control.state == spec.EP_HALTED
    control.recover()
    assert rig.usb.get_descriptor(1, 0, 18)[:2] == b"\x12\x01"


@pytest.mark.parametrize("address", [IN, OUT])
def test_an_isochronous_endpoint_goes_on(make_rig: Callable[..., Rig], address: int) -> None:
    rig = make_rig(device=FakeDevice(Speed.HIGH, configurations=[CONFIGURATION]))
    rig.bus.memory.map(PRIVATE, GIB)
    pipe = rig.usb.pipe(address)
    trb = make.trb(spec.TRB_ISOCH, PRIVATE, 100, IOC | spec.TRB_SIA)
    tds = [pipe.submit_trbs([trb]) for _ in range(3)]
    rig.handle()
    assert [td.completion_code for td in tds] == [ERROR] * 3
    works(rig, address)


def test_buffers_are_told_of_once_whatever_the_guest_does(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    for page in range(200):
        td = rig.bulk_in.submit_trbs([make.normal(PRIVATE + (page << 12), 512, IOC)])
        rig.handle()
        assert td.completion_code == ERROR
        rig.bulk_in.recover()
    assert len(told(caplog)) == 1
    counted = next(each for each in rig.controller.statistics() if each.address == BULK_IN)
    assert counted.errors == {"Transaction Error": 200}
    rig.bus.memory.map(PRIVATE + GIB, GIB)
    rig.bulk_in.submit_trbs([make.normal(PRIVATE + GIB, 512, IOC)])
    rig.handle()
    assert len(told(caplog)) == 2, "another module of memory"


def test_mistakes_of_the_driver_are_told_within_bounds(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A buffer that is no memory at all is the driver's mistake, and a TRB Error as ever."""
    for number in range(3 * LIMIT):
        rig.bulk_in.submit_trbs([make.normal(0xDEAD_0000 + (number << 12), 512, IOC)])
        rig.bus.run()
        assert rig.bulk_in.state == spec.EP_ERROR
        rig.events()
        rig.bulk_in.queue.clear()
        rig.driver.commands.set_dequeue(rig.slot_id, rig.bulk_in.dci, *rig.bulk_in.ring.position)
    assert len(told(caplog)) == LIMIT + 1
    assert "no further TRB errors" in told(caplog)[-1]
    rig.bulk_in.submit_trbs([make.normal(PRIVATE, 512, IOC)])
    rig.handle()
    assert len(told(caplog)) == LIMIT + 2, "another kind of trouble is told all the same"
    rig.bus.reset()
    caplog.clear()
    rig.controller.complaints.say(TRB_ERROR, "after a reset of the machine there is room again")
    assert len(told(caplog)) == 1


# -- rings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_link", [False, True])
def test_a_transfer_ring_in_private_memory(rig: Rig, by_link: bool, caplog: pytest.LogCaptureFixture) -> None:
    pipe = rig.bulk_in
    pipe.stop()
    if by_link:
        ring = rig.ram.allocate(64, align=64)
        rig.ram.window(ring, 16).cast("I")[:] = memoryview(bytes(16)).cast("I")
        link = make.link(PRIVATE)
        view = rig.ram.dwords(ring, 4)
        view[0], view[1], view[2], view[3] = PRIVATE & 0xFFFF_FFFF, PRIVATE >> 32, 0, link.control | 1
        start = ring
    else:
        start = PRIVATE
    rig.driver.commands.set_dequeue(rig.slot_id, pipe.dci, start, 1)
    pipe.doorbell()
    rig.bus.run()
    (event,) = [event for event in rig.events() if event.type == spec.TRB_TRANSFER_EVENT]
    assert (event.completion_code, event.pointer) == (ERROR, start)
    assert pipe.state == spec.EP_HALTED
    assert pipe.dequeue == (start, 1)
    assert len(told(caplog)) == 1
    rig.driver.commands.reset_endpoint(rig.slot_id, pipe.dci)
    rig.driver.commands.set_dequeue(rig.slot_id, pipe.dci, *pipe.ring.position)
    rig.works()


def command_ring_in_private_memory(rig: Rig) -> None:
    rig.driver.halt()
    rig.bus.write(CRCR, PRIVATE & 0xFFFF_FFFF | spec.CRCR_RCS)
    rig.bus.write(CRCR + 4, PRIVATE >> 32)


def contexts_in_private_memory(rig: Rig) -> None:
    rig.driver.halt()
    rig.bus.write(DCBAAP, PRIVATE & 0xFFFF_FFFF)
    rig.bus.write(DCBAAP + 4, PRIVATE >> 32)


@pytest.mark.parametrize("enable", [0, spec.USBCMD_INTE, spec.USBCMD_HSEE])
@pytest.mark.parametrize("move", [command_ring_in_private_memory, contexts_in_private_memory])
def test_a_controller_that_could_do_nothing_does_not_start(
    rig: Rig, move: Callable[[Rig], None], enable: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver sees at once that HCH stays, and with interrupts enabled it is told besides."""
    move(rig)
    rig.bus.write(USBSTS, spec.USBSTS_EINT)
    rig.bus.wait_for_any(0)
    with rig.bus.together():
        rig.bus.write(USBCMD, spec.USBCMD_RS | enable)
        assert rig.usbsts & (spec.USBSTS_HSE | spec.USBSTS_HCH) == spec.USBSTS_HSE | spec.USBSTS_HCH
    assert not rig.bus.read(USBCMD) & spec.USBCMD_RS
    assert bool(rig.usbsts & spec.USBSTS_EINT) is bool(enable)
    assert rig.bus.wait_for_interrupt(0, 0) is bool(enable)
    (message,) = told(caplog)
    assert "share=on" in message
    for _ in range(50):  # a driver that tries for ever
        rig.driver.reset()
        move(rig)
        rig.bus.write(USBCMD, spec.USBCMD_RS)
    assert told(caplog) == [message]
    rig.driver.start()
    rig.usb = rig.driver.enumerate(rig.port_id)
    rig.works()


def test_a_command_ring_that_goes_on_in_private_memory(rig: Rig) -> None:
    """By a Link TRB: then the controller stops, and says so."""
    ring = rig.ram.allocate(64, align=64)
    view = rig.ram.dwords(ring, 4)
    view[0], view[1], view[2], view[3] = PRIVATE & 0xFFFF_FFFF, PRIVATE >> 32, 0, make.link(PRIVATE).control | 1
    rig.driver.halt()
    rig.bus.write(CRCR, ring & 0xFFFF_FFFF | spec.CRCR_RCS)
    rig.bus.write(CRCR + 4, ring >> 32)
    rig.bus.write(USBCMD, spec.USBCMD_RS | spec.USBCMD_INTE)
    rig.bus.wait_for_any(0)
    rig.driver.ring_doorbell(0, 0)
    assert rig.usbsts & (spec.USBSTS_HSE | spec.USBSTS_HCH) == spec.USBSTS_HSE | spec.USBSTS_HCH
    assert rig.bus.wait_for_interrupt(0, 0)


@pytest.mark.parametrize("what", ["table", "segment"])
def test_an_event_ring_in_private_memory(bus: DirectBus, what: str) -> None:
    """The controller does not start, which a driver sees within the 16 ms of HCH."""
    bus.memory.map(PRIVATE, GIB)
    driver = GuestDriver(bus)
    driver.reset()
    driver.set_up()
    table = PRIVATE
    if what == "segment":
        table = bus.ram.allocate(64, align=64)
        bus.ram.write_u64(table, PRIVATE)
        bus.ram.write_u64(table + 8, 256)
    base = reg.interrupter_base(0)
    bus.write(base + spec.ERSTSZ, 1)
    bus.write(base + spec.ERSTBA, table & 0xFFFF_FFFF)
    bus.write(base + spec.ERSTBA + 4, table >> 32)
    with bus.together():
        bus.write(USBCMD, spec.USBCMD_RS)
        assert bus.read(USBSTS) & spec.USBSTS_HCH, "it does not even seem to start"
    assert bus.read(USBSTS) & (spec.USBSTS_HSE | spec.USBSTS_HCH) == spec.USBSTS_HSE | spec.USBSTS_HCH
    driver.start()
    assert not bus.read(USBSTS) & spec.USBSTS_HSE


# -- contexts ----------------------------------------------------------------------------------------------------------


CONTEXT_COMMANDS = [
    spec.TRB_ADDRESS_DEVICE,
    spec.TRB_CONFIGURE_ENDPOINT,
    spec.TRB_EVALUATE_CONTEXT,
    spec.TRB_GET_PORT_BANDWIDTH,
]


@pytest.mark.parametrize("type", CONTEXT_COMMANDS)
def test_an_input_context_in_private_memory(rig: Rig, type: int, caplog: pytest.LogCaptureFixture) -> None:
    usb = rig.usb
    if type == spec.TRB_ADDRESS_DEVICE:
        usb.disable()
        usb = rig.usb = UsbDevice(rig.driver, rig.port)
    slot_id, flags = (0, 3 << 16) if type == spec.TRB_GET_PORT_BANDWIDTH else (usb.slot_id, 0)
    for _ in range(5):
        trb = make.command(type, parameter=PRIVATE, slot_id=slot_id, flags=flags)
        assert rig.driver.command(trb).completion_code == spec.CC_PARAMETER_ERROR
    assert rig.running
    assert len(told(caplog)) == 1
    if type == spec.TRB_ADDRESS_DEVICE:
        usb.address_device()
        assert len(usb.get_descriptor(1, 0, 18)) == 18
    else:
        rig.works()


@pytest.mark.parametrize("array", [False, True])
def test_an_output_context_in_private_memory(rig: Rig, array: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The slot is refused before anything of it was done, and can be given back."""
    rig.usb.disable()
    usb = rig.usb = UsbDevice(rig.driver, rig.port)
    source = usb.input_context
    if array:
        rig.bus.write(DCBAAP, PRIVATE & 0xFFFF_FFFF)
        rig.bus.write(DCBAAP + 4, PRIVATE >> 32)
    else:
        rig.ram.write_u64(rig.driver.dcbaa + 8 * usb.slot_id, PRIVATE)
    for type, flags in (
        (spec.TRB_ADDRESS_DEVICE, 0),
        (spec.TRB_ADDRESS_DEVICE, spec.TRB_BSR),
        (spec.TRB_EVALUATE_CONTEXT, 0),
    ):
        source.clear()
        source.add(0)
        source.add(1)
        source.set_slot(usb.speed << 20 | 1 << 27, usb.port.port_id << 16, 0, 0)
        source.set_endpoint(1, 0, spec.EP_TYPE_CONTROL << 3 | 64 << 16, usb.control.ring.base | 1, 0, 0)
        assert rig.command(type, parameter=source.address, flags=flags) == spec.CC_PARAMETER_ERROR
    assert rig.command(spec.TRB_DISABLE_SLOT) == spec.CC_SUCCESS
    assert rig.running
    assert len(told(caplog)) == 1
    usb.forget()
    rig.bus.write(DCBAAP, rig.driver.dcbaa & 0xFFFF_FFFF)
    rig.bus.write(DCBAAP + 4, rig.driver.dcbaa >> 32)
    rig.usb = rig.driver.enumerate(rig.port_id)
    rig.works()


def test_an_addressed_slot_whose_context_moves_to_private_memory(rig: Rig) -> None:
    context = rig.usb.context.address
    rig.ram.write_u64(rig.driver.dcbaa + 8 * rig.slot_id, PRIVATE)
    assert rig.command(spec.TRB_RESET_DEVICE) == spec.CC_PARAMETER_ERROR
    assert rig.command(spec.TRB_CONFIGURE_ENDPOINT, flags=spec.TRB_DC) == spec.CC_PARAMETER_ERROR
    rig.ram.write_u64(rig.driver.dcbaa + 8 * rig.slot_id, context)
    rig.works()
    assert codes(rig.events()) == []


@pytest.mark.parametrize("array", [PRIVATE + 0x1000, PRIVATE - 0x40], ids=["all of it", "the end of it"])
def test_a_stream_context_array_in_private_memory(
    make_rig: Callable[..., Rig], array: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver is told when it configures the endpoint, and not by a controller that dies at the first doorbell."""
    rig = make_rig(device=stream_device())
    rig.bus.memory.map(PRIVATE, GIB)
    pipe, source = rig.usb.pipe(BULK_IN), rig.usb.input_context
    source.clear()
    source.copy_slot(rig.usb.context)
    source.add(0)
    source.drop(pipe.dci)
    source.add(pipe.dci)
    bulk = endpoint_dwords(type=spec.EP_TYPE_BULK_IN, max_packet_size=1024, dequeue=array, max_primary_streams=3)
    source.set_endpoint(pipe.dci, *bulk)
    code = rig.command(spec.TRB_CONFIGURE_ENDPOINT, parameter=source.address)
    assert code == spec.CC_PARAMETER_ERROR
    assert rig.running
    assert len(told(caplog)) == 1
    rig.device.answers(BULK_IN, b"as before")
    assert rig.usb.bulk_in(BULK_IN, 64) == b"as before"


# -- a device that works until the guest has more memory ---------------------------------------------------------------


def test_memory_that_is_plugged_in_later(make_rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture) -> None:
    rig = make_rig()
    rig.works()
    rig.bus.memory.map(PRIVATE, 256 << 20)
    rig.works()
    td = rig.bulk_out.submit_trbs([make.normal(PRIVATE, 4096, IOC)])
    rig.handle()
    assert td.completion_code == ERROR
    rig.bulk_out.recover()
    rig.works()
    assert len(told(caplog)) == 1
    rig.bus.memory.unmap(PRIVATE, 256 << 20)
    rig.device.answers(BULK_IN, TransferStatus.COMPLETED)
    rig.bulk_in.submit(length=8).wait()
