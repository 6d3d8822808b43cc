"""Interceptors between real devices and the controller: whatever they do to the way of a transfer, a guest's data is
right, and the guest's resets, cancellations and unplugging find nothing left behind."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.virtual.drive import read_10, write_10
from usbvfiod_core import Device, InterceptedTransfer, Interceptor, Loop, Speed, TransferStatus
from usbvfiod_core.hooks.interception import InterceptedDevice, intercept
from usbvfiod_core.testing.driver import DriverError
from usbvfiod_core.testing.fake_device import BULK_IN, BULK_OUT, FakeDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.uas import UasClient
from usbvfiod_core.virtual import VirtualBackend

BLOCKS, BLOCK = 512, 512

Verb = Callable[["Detour", InterceptedTransfer], None]

VERBS: dict[str, Verb] = {
    "nothing": lambda detour, transfer: None,
    "private": lambda detour, transfer: transfer.make_private(),
    "split": lambda detour, transfer: transfer.split(1024),
    "delay": lambda detour, transfer: transfer.delay(0.01),
    "hold": lambda detour, transfer: detour.keep(transfer),
    "private pieces": lambda detour, transfer: detour.both(transfer),
    "own copy": lambda detour, transfer: None if transfer.is_in else transfer.replace(transfer.read()),
}


class Detour(Interceptor):
    """Sends transfers by other ways, as a list of verbs says, again and again."""

    def __init__(self, plan: list[str]) -> None:
        self.plan = plan
        self.count = 0

    def keep(self, transfer: InterceptedTransfer) -> None:
        transfer.hold()
        self.call_later(0.02, transfer.pass_on)

    def both(self, transfer: InterceptedTransfer) -> None:
        transfer.make_private()
        transfer.split(1024)

    def bulk(self, transfer: InterceptedTransfer) -> None:
        self.count += 1
        VERBS[self.plan[self.count % len(self.plan)]](self, transfer)

    def bulk_completed(self, transfer: InterceptedTransfer) -> None:
        self.count += 1
        if self.plan[self.count % len(self.plan)] in ("delay", "hold"):
            transfer.delay(0.005)

    def control(self, transfer: InterceptedTransfer) -> None: ...

    def configuration_descriptor(self, raw: bytes) -> bytes:
        return raw


def behind(device: Device, loop: Loop, *plans: list[str]) -> InterceptedDevice:
    for plan in plans:
        device = intercept(device, Detour(plan), "detour", loop)
    assert isinstance(device, InterceptedDevice)
    return device


def left_behind(device: Device) -> list[object]:
    """What a row of interceptors still has in flight."""
    found: list[object] = []
    while True:
        if isinstance(device, InterceptedDevice):
            found += [*device.in_flight, *device._requests]
            found += [line for path in device._paths.values() if path is not None for line in path._lines]
        if not hasattr(device, "device"):
            return found
        device = device.device


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "drive.img"
    path.write_bytes(random.Random(4).randbytes(BLOCKS * BLOCK))
    return path


def check_data(guest: Guest, device: Device, uas: bool, image: Path) -> None:
    usb = guest.plug(device)
    content = bytearray(image.read_bytes())
    generator = random.Random(7)
    read, write = _uas(UasClient(usb)) if uas else _bulk_only(MassStorage(usb))
    for _ in range(12):
        block, count = generator.randrange(BLOCKS - 40), generator.randrange(1, 40)
        if generator.random() < 0.5:
            data = generator.randbytes(count * BLOCK)
            write(block, data)
            content[block * BLOCK : (block + count) * BLOCK] = data
        else:
            assert bytes(read(block, count)) == content[block * BLOCK : (block + count) * BLOCK]
    assert image.read_bytes() == content
    guest.bus.pause(0.1)  # a command's own transfer may be held on its way up when its status is there
    guest.unplug(usb)
    assert left_behind(device) == []


Read: TypeAlias = Callable[[int, int], "bytes | memoryview"]
Write: TypeAlias = Callable[[int, bytes], object]


def _bulk_only(disk: MassStorage) -> tuple[Read, Write]:
    return disk.read, disk.write


def _uas(client: UasClient) -> tuple[Read, Write]:
    def read(block: int, count: int) -> bytes:
        return client.command(read_10(block, count), count * BLOCK)

    def write(block: int, data: bytes) -> None:
        client.command(write_10(block, len(data) // BLOCK), data=data)

    return read, write


PLANS = st.lists(st.lists(st.sampled_from(sorted(VERBS)), min_size=1, max_size=3), min_size=1, max_size=2)


@settings(max_examples=30, deadline=None)
@given(plans=PLANS, options=st.sampled_from([{"speed": "high"}, {}, {"transport": "uas"}]))
def test_a_drive_behind_any_detour(
    tmp_path_factory: pytest.TempPathFactory, plans: list[list[str]], options: dict[str, str]
) -> None:
    image = tmp_path_factory.mktemp("detour") / "drive.img"
    image.write_bytes(random.Random(4).randbytes(BLOCKS * BLOCK))
    guest = Guest()
    try:
        device = behind(
            VirtualBackend().open("flash", {"image": str(image), **options}, guest.bus.loop),
            guest.bus.loop,
            *plans,
        )
        check_data(guest, device, "transport" in options, image)
    finally:
        guest.close()


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_guest_that_goes_away_in_the_middle(verb: str, usb_guest: Guest) -> None:
    fake = FakeDevice(Speed.HIGH)
    device = behind(fake, usb_guest.bus.loop, [verb], [verb])
    usb = usb_guest.plug(device)
    reading = [usb.submit_in(BULK_IN, 4096) for _ in range(4)]
    for _ in range(4):
        usb.submit_out(BULK_OUT, bytes(4096))
    usb_guest.bus.pause(0.5)
    usb.pipe(BULK_IN).cancel(reading[1])
    usb_guest.unplug(usb)
    assert (left_behind(device), fake.in_flight, fake.closed) == ([], 0, True)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_reset_in_the_middle(verb: str, usb_guest: Guest) -> None:
    fake = FakeDevice(Speed.HIGH)
    device = behind(fake, usb_guest.bus.loop, [verb])
    usb = usb_guest.plug(device)
    usb.submit_in(BULK_IN, 4096)
    usb.submit_out(BULK_OUT, bytes(4096))
    usb.reset()
    assert left_behind(device) == []
    assert fake.resets >= 1
    fake.auto_out.add(BULK_OUT)
    usb.bulk_out(BULK_OUT, b"again")
    assert b"".join(fake.received[BULK_OUT])[-5:] == b"again"


@pytest.mark.faults(r"plugin failing: Failing\.bulk_completed failed, the transfer fails: RuntimeError: no")
def test_a_failing_interceptor_is_a_transaction_error_and_no_more(usb_guest: Guest) -> None:
    class Failing(Interceptor):
        fails = True

        def bulk_completed(self, transfer: InterceptedTransfer) -> None:
            if self.fails:
                raise RuntimeError("no")

    failing, fake = Failing(), FakeDevice(Speed.HIGH)
    usb = usb_guest.plug(intercept(fake, failing, "failing", usb_guest.bus.loop))
    fake.answers(BULK_IN, b"lost", b"kept")
    with pytest.raises(DriverError, match="Transaction"):
        usb.bulk_in(BULK_IN, 64)
    usb.pipe(BULK_IN).recover()
    failing.fails = False
    assert usb.bulk_in(BULK_IN, 64) == b"kept"


def test_pulling_a_device_out_from_inside(usb_guest: Guest) -> None:
    class Yank(Interceptor):
        def bulk(self, transfer: InterceptedTransfer) -> None:
            self.unplug()
            transfer.refuse(TransferStatus.DISCONNECTED)

    fake = FakeDevice(Speed.HIGH)
    usb = usb_guest.plug(intercept(fake, Yank(), "yank", usb_guest.bus.loop))
    usb.submit_in(BULK_IN, 64)
    usb.port.wait_disconnected()
    usb.disable()
    assert fake.closed
