"""The guest driver as Linux's: which registers it accesses, in which order, and in how many messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.counted_time import counted_time
from tests.unit.virtual.drive import read_10
from usbvfiod_core.pci.interrupts import Mechanism
from usbvfiod_core.shared_area import possible
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.driver import DriverError, GuestDriver, UsbDevice
from usbvfiod_core.testing.fake_device import BULK_IN, FakeDevice
from usbvfiod_core.testing.guest import Guest, ServedGuest
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.uas import UasClient
from usbvfiod_core.testing.vmm import CLOUD_HYPERVISOR, QEMU, Vmm
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.xhci import registers as reg
from usbvfiod_core.xhci import spec

USBSTS = reg.OPERATIONAL_BASE + spec.USBSTS
IMAN = reg.INTERRUPTER_PAGE + spec.IMAN
ERDP = reg.INTERRUPTER_PAGE + spec.ERDP
DOORBELL = reg.DOORBELL_BASE
OF_AN_INTERRUPT = [("read", USBSTS), ("write", USBSTS)]
OF_THE_RING = [("read", ERDP), ("read", ERDP + 4), ("write", ERDP), ("write", ERDP + 4)]


class Recording(DirectBus):
    """Keeps the accesses in `seen`, and the values that were written in `written`."""

    def __init__(self, interrupts: Mechanism = Mechanism.MSIX) -> None:
        super().__init__(interrupts=interrupts)
        self.seen: list[tuple[str, int]] = []
        self.written: list[tuple[int, int]] = []

    def read(self, offset: int, size: int = 4) -> int:
        self.seen.append(("read", offset))
        return super().read(offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.seen.append(("write", offset))
        self.written.append((offset, value))
        super().write(offset, value, size)


def recorded(bus: Recording, **options: bool) -> tuple[FakeDevice, UsbDevice]:
    fake = FakeDevice()
    guest = Guest(bus, linux=True, **options)
    usb = guest.plug(fake)
    bus.seen.clear()
    bus.written.clear()
    return fake, usb


@pytest.mark.parametrize("mechanism", Mechanism)
def test_a_transfer(mechanism: Mechanism) -> None:
    bus = Recording(mechanism)
    fake, usb = recorded(bus)
    fake.answers(BULK_IN, b"there")
    assert usb.bulk_in(BULK_IN, 64) == b"there"
    bell = DOORBELL + 4 * usb.slot_id
    pin = [("read", IMAN), ("write", IMAN)] if mechanism is Mechanism.INTX else []
    assert bus.seen == [("write", bell), ("read", bell), *OF_AN_INTERRUPT, *pin, *OF_THE_RING]
    assert dict(bus.written)[USBSTS] & spec.USBSTS_EINT
    assert dict(bus.written)[ERDP] & spec.ERDP_EHB
    bus.close()


def test_an_interrupt_for_several_transfers_is_one() -> None:
    bus = Recording()
    fake, usb = recorded(bus)
    waiting = [usb.submit_in(BULK_IN, 64) for _ in range(3)]
    bus.seen.clear()
    fake.answers(BULK_IN, b"one", b"two", b"three")
    assert [td.result() for td in waiting] == [b"one", b"two", b"three"]
    assert bus.seen == [*OF_AN_INTERRUPT, *OF_THE_RING]
    bus.close()


def test_many_events_move_the_pointer_on_the_way_and_end_the_interrupt_once() -> None:
    bus = Recording()
    fake = FakeDevice()
    usb = Guest(bus, linux=True, ring_trbs=256).plug(fake)
    waiting = [usb.submit_in(BULK_IN, 8) for _ in range(150)]
    bus.seen.clear()
    bus.written.clear()
    with counted_time(0):  # one turn is enough for all
        fake.answers(BULK_IN, *[b"x"] * 150)
        assert all(td.result() == b"x" for td in waiting)
    assert bus.seen == [*OF_AN_INTERRUPT, *OF_THE_RING, *OF_THE_RING]
    first, last = (value for offset, value in bus.written if offset == ERDP)
    assert not first & spec.ERDP_EHB
    assert last & spec.ERDP_EHB
    assert (last & ~0xF) - (first & ~0xF) == (150 - 129) * spec.TRB_SIZE
    bus.close()


def test_without_an_interrupt_nothing_is_touched() -> None:
    bus = Recording()
    fake, usb = recorded(bus)
    td = usb.submit_in(BULK_IN, 64)
    bus.seen.clear()
    assert usb.driver.handle_events() == 0
    with pytest.raises(DriverError, match="not done"):
        td.wait(0.5)
    assert [access for access in bus.seen if access != ("read", USBSTS)] == []  # which the message quotes
    fake.answers(BULK_IN, b"late")
    assert td.result() == b"late"
    bus.close()


def read_bulk_only(usb: UsbDevice) -> Callable[[], object]:
    disk = MassStorage(usb, pipelined=False)
    disk.wait_ready()
    return lambda: disk.read(8, 8)


def read_by_uas(usb: UsbDevice) -> Callable[[], object]:
    client = UasClient(usb)
    return lambda: client.command(read_10(8, 8), 4096)


@pytest.mark.parametrize(
    ("transport", "begin", "interrupts"),
    [("bot", read_bulk_only, 3), ("auto", read_by_uas, 1)],
    ids=["bulk-only", "uas"],
)
def test_a_read_of_a_drive(
    transport: str, begin: Callable[[UsbDevice], Callable[[], object]], interrupts: int, tmp_path: Path
) -> None:
    """Three transfers each. By UAS all of them wait side by side, and one interrupt tells of all: that is what makes it
    twice as fast in a guest."""
    image = tmp_path / "drive.img"
    image.write_bytes(bytes(1 << 20))
    bus = Recording()
    options = {"image": str(image), "transport": transport}
    usb = Guest(bus, linux=True).plug(open_device(VirtualBackend(), "flash", options, bus.loop))
    read = begin(usb)
    read()
    bus.seen.clear()
    before = bus.signals[0]
    read()
    bells = [access for access in bus.seen if access[1] >= DOORBELL]
    assert len(bells) == 3 * 2
    assert bus.signals[0] - before == interrupts
    assert len(bus.seen) == 3 * 2 + interrupts * 6
    bus.unplug(usb.port.port_id)
    bus.close()


@pytest.mark.parametrize("options", [{"interrupters": 2}, {"qword_writes": True}])
def test_what_linux_does_not_do_is_refused(options: dict[str, int]) -> None:
    bus = DirectBus()
    with pytest.raises(DriverError, match="Linux"):
        GuestDriver(bus, linux=True, **options)  # type: ignore[arg-type]  # one option or the other
    bus.close()


@pytest.mark.parametrize(
    ("vmm", "messages"),
    [
        pytest.param(QEMU, 8, id="QEMU"),
        pytest.param(
            CLOUD_HYPERVISOR,
            4,
            id="Cloud Hypervisor",
            marks=pytest.mark.skipif(not possible(), reason="needs an x86-64 host with pages of 4 KiB"),
        ),
    ],
)
def test_messages_for_a_transfer(vmm: Vmm, messages: int, tmp_path: Path) -> None:
    """ERDP's four accesses cost none where the client has mapped it."""
    guest = ServedGuest(tmp_path / "usb.sock", vmm=vmm, linux=True)
    fake = FakeDevice()
    usb = guest.plug(fake)
    count: Callable[[], int] = guest.bus.client.next_id
    before = count()
    for _ in range(10):
        guest.server.call(lambda: fake.answers(BULK_IN, b"there"))
        assert usb.bulk_in(BULK_IN, 64) == b"there"
    assert count() - before - 1 == 10 * messages
    guest.close()
