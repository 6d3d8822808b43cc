"""The same driver over a real socket, a memfd and eventfds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from usbvfiod_core.errors import ConfigError, UsbvfiodError
from usbvfiod_core.pci import vfio
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import DriverError, GuestDriver
from usbvfiod_core.testing.fake_device import BULK_IN, BULK_OUT, FakeDevice
from usbvfiod_core.testing.guest import ServedGuest
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.memory import GuestRam
from usbvfiod_core.testing.vmm import CLOUD_HYPERVISOR, QEMU
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.vfio_user import wire
from usbvfiod_core.xhci import spec

DATA = bytes(range(256)) * 1000


@pytest.fixture(params=[QEMU, CLOUD_HYPERVISOR], ids=lambda vmm: vmm.name)
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServedGuest]:
    guest = ServedGuest(tmp_path / "socket", vmm=request.param, ring_trbs=256)
    yield guest
    guest.close()


@pytest.mark.parametrize("speed", [Speed.LOW, Speed.FULL, Speed.HIGH, Speed.SUPER])
def test_devices_are_enumerated(guest: ServedGuest, speed: Speed) -> None:
    device = guest.plug(FakeDevice(speed))
    assert device.speed is speed
    assert device.get_string(2) == "Fake device"
    assert guest.driver.lost_interrupts == 0


def test_data_goes_both_ways(guest: ServedGuest) -> None:
    fake = FakeDevice(Speed.SUPER)
    fake.auto_out.add(BULK_OUT)
    device = guest.plug(fake)
    device.bulk_out(BULK_OUT, DATA, split=[1, 1000], scatter=True)
    assert fake.received[BULK_OUT] == [DATA]
    tds = [device.submit_in(BULK_IN, 100_000) for _ in range(3)]
    guest.server.call(lambda: fake.answers(BULK_IN, DATA[:100_000], DATA[:5], TransferStatus.ERROR))
    assert tds[0].result() == DATA[:100_000]
    assert tds[1].result() == DATA[:5]
    with pytest.raises(DriverError, match="Transaction Error"):
        tds[2].result()
    device.pipe(BULK_IN).recover()
    guest.server.call(lambda: fake.answers(BULK_IN, b"recovered"))
    assert device.bulk_in(BULK_IN, 100) == b"recovered"


def test_writes_together(guest: ServedGuest) -> None:
    fake = FakeDevice()
    fake.auto_out.add(BULK_OUT)
    device = guest.plug(fake)
    with guest.bus.together():
        tds = [device.submit_out(BULK_OUT, bytes([number])) for number in range(10)]
    for td in tds:
        td.result()
    assert fake.received[BULK_OUT] == [bytes([number]) for number in range(10)]


def test_a_device_is_pulled_out(guest: ServedGuest) -> None:
    fake = FakeDevice()
    device = guest.plug(fake)
    device.submit_in(BULK_IN, 100)
    guest.unplug(device)
    guest.server.wait_until(lambda: fake.closed)
    assert guest.plug(FakeDevice(), device.port.port_id).get_string(2) == "Fake device"


def test_a_new_client_finds_the_devices(guest: ServedGuest) -> None:
    fake = FakeDevice()
    device = guest.plug(fake)
    device.submit_in(BULK_IN, 100)
    guest.reconnect()
    again = guest.driver.enumerate(device.port.port_id)
    assert again.get_string(2) == "Fake device"
    assert not fake.closed
    assert len(fake.cancelled) == 1


def test_a_reset_of_the_function(guest: ServedGuest) -> None:
    device = guest.plug(FakeDevice())
    guest.bus.client.reset()
    guest.bus.enable()
    assert guest.driver.read_operational(spec.USBSTS) & spec.USBSTS_HCH
    guest.driver.start()
    assert guest.driver.enumerate(device.port.port_id).get_string(2) == "Fake device"


def test_several_interrupters_have_vectors_of_their_own(tmp_path: Path) -> None:
    guest = ServedGuest(tmp_path / "socket", interrupters=4)
    fake = FakeDevice()
    fake.auto_out.add(BULK_OUT)
    device = guest.plug(fake)
    for interrupter in range(4):
        before = guest.bus.signals[interrupter]
        device.bulk_out(BULK_OUT, b"x", interrupter=interrupter)
        guest.bus.wait_for_interrupt(interrupter, 0.1)
        assert guest.bus.signals[interrupter] > before
    assert guest.driver.lost_interrupts == 0
    guest.close()


def test_memory_that_is_taken_away_and_comes_back(guest: ServedGuest) -> None:
    fake = FakeDevice()
    device = guest.plug(fake)
    td = device.submit_in(BULK_IN, 100)
    guest.server.wait_until(lambda: fake.in_flight == 1)
    client, spans = guest.bus.client, guest.bus.ram.spans
    for span in spans:
        client.dma_unmap(span.address, span.size)
    assert len(fake.cancelled) == 1
    guest.bus.map_ram()
    guest.server.wait_until(lambda: fake.in_flight == 1)
    guest.server.call(lambda: fake.answers(BULK_IN, b"after the burst"))
    assert td.result() == b"after the burst"


def test_what_goes_wrong_on_the_servers_thread_is_raised(guest: ServedGuest) -> None:
    with pytest.raises(ConfigError, match="port 99"):
        guest.server.plug(FakeDevice(), 99)


def test_an_interrupt_that_does_not_come(guest: ServedGuest) -> None:
    start = time.monotonic()
    assert not guest.bus.wait_for_interrupt(3, 0.05)
    assert guest.bus.wait_for_any(0.05) == []
    assert time.monotonic() - start > 0.09


def test_the_function_is_as_vmms_expect_it(guest: ServedGuest) -> None:
    client = guest.bus.client
    flags, regions, irqs = client.get_info()
    assert flags == wire.DEVICE_FLAG_PCI | wire.DEVICE_FLAG_RESET
    assert (regions, irqs) == (vfio.NUM_REGIONS, vfio.NUM_IRQS)
    assert client.region_info(vfio.BAR0_REGION).size == 0x8000
    assert client.region_info(vfio.CONFIG_REGION).size in (256, 4096)
    assert client.irq_info(vfio.MSIX_IRQ).count == 8
    assert client.irq_info(vfio.MSI_IRQ).count == 8
    assert client.irq_info(vfio.INTX_IRQ).count == 1


# -- the daemon as a process -------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(DATA[:1000] * 1049)  # 1 MiB and a bit
    with path.open("r+b") as file:
        file.truncate(1 << 20)
    return path


@pytest.mark.parametrize("pipelined", [True, False])
def test_a_flash_drive_behind_the_daemon(usb_serve: Callable[..., SocketBus], image: Path, pipelined: bool) -> None:
    bus = usb_serve("--device", f"virtual:flash?image={image}")
    device = GuestDriver(bus, ring_trbs=128).start().enumerate()
    disk = MassStorage(device, pipelined=pipelined)
    assert disk.read_capacity() == (2048, 512)
    content = image.read_bytes()
    assert bytes(disk.read(0, 2048)) == content
    disk.write(7, b"usbvfiod" * 64 * 9)
    disk.synchronize_cache()
    assert image.read_bytes() == content[: 7 * 512] + b"usbvfiod" * 64 * 9 + content[16 * 512 :]


def test_a_daemon_that_cannot_serve_says_why(usb_serve: Callable[..., SocketBus]) -> None:
    with pytest.raises(UsbvfiodError, match=r"does not serve: .*no-such-backend"):
        usb_serve("--device", "no-such-backend:x")


def test_a_vmm_that_is_started_anew(usb_serve: Callable[..., SocketBus], image: Path) -> None:
    bus = usb_serve("--device", f"virtual:flash?image={image}")
    path = bus.client.socket.getpeername()
    first = MassStorage(GuestDriver(bus).start().enumerate())
    first.write(0, b"A" * 512)
    bus.close()
    time.sleep(0.1)
    with VfioUserClient.connect(path) as client:
        again = SocketBus(client, GuestRam())
        second = MassStorage(GuestDriver(again).start().enumerate())
        assert bytes(second.read(0, 1)) == b"A" * 512
        again.close()
