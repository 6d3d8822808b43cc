"""Each kind of device through each backend: a `usbvfiod` process gives it to a guest, whose driver uses it for real."""

from __future__ import annotations

import hashlib
import os
import random
import select
import socket
import struct
import subprocess
import termios
import threading
import tty
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lab import gadgets, usbip_devices
from tests.lab.card import ANSWER_TO_RESET, Card
from tests.lab.gadgets import Gadget
from tests.lab.guest_classes import (
    AUDIO,
    PRINTER,
    CardReader,
    MediaTransfer,
    NetworkAdapter,
    SerialPort,
    bulk_pair,
    endpoint,
    interfaces,
)
from tests.lab.guest_network import Station
from tests.lab.machine import Machine, outside, wire
from tests.lab.passing import Pass
from tests.lab.usbip import attach
from usbvfiod_core.testing.driver import DriverError
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.mass_storage import MassStorage, ScsiError
from usbvfiod_core.testing.uas import UasClient, UasError
from usbvfiod_core.usb.transfer import TransferType
from usbvfiod_core.xhci import spec

pytestmark = pytest.mark.long_with("libusb")  # its transfers are in the plugin's tests

CHUNK = 1 << 20


# -- storage --------------------------------------------------------------------------------------------------------


def exchange_image(mebibytes: int) -> tuple[Path, str]:
    """An image of random bytes that QEMU can open, and its SHA-256."""
    image = Path(f"/exchange/drive{os.getpid()}.img")
    content = random.Random(mebibytes).randbytes(mebibytes << 20)
    image.write_bytes(content)
    return image, hashlib.sha256(content).hexdigest()


def check_storage(disk: MassStorage, digest: str, mebibytes: int) -> str:
    """Read it all and compare, then write it all; the SHA-256 of what was written."""
    blocks, size = disk.read_capacity()
    assert blocks * size == mebibytes << 20
    step = CHUNK // size
    read = hashlib.sha256()
    for block in range(0, blocks, step):
        read.update(disk.read(block, step))
    assert read.hexdigest() == digest
    source = random.Random(digest)
    written = hashlib.sha256()
    for block in range(0, blocks, step):
        data = source.randbytes(CHUNK)
        written.update(data)
        disk.write(block, data)
    disk.synchronize_cache()
    return written.hexdigest()


@pytest.mark.parametrize("mebibytes", [4, pytest.param(64, marks=pytest.mark.long)])
@pytest.mark.parametrize("controller", ["xhci", "ehci"])
def test_a_drive_both_ways(passed: Pass, machine: Machine, controller: str, mebibytes: int) -> None:
    image, digest = exchange_image(mebibytes)
    device = machine.plug_drive(image, controller=controller)
    try:
        disk = MassStorage(passed(device).device, pipelined=False)  # QEMU's drive stalls what comes before the command
        written = check_storage(disk, digest, mebibytes)
        assert hashlib.sha256(image.read_bytes()).hexdigest() == written
    finally:
        machine.unplug(device)
        image.unlink()


@pytest.mark.parametrize("speed", ["high", "super"])
def test_a_drive_recovers_from_stalls_and_resets(passed: Pass, tmp_path: Path, speed: str) -> None:
    image = tmp_path / "image"
    content = os.urandom(1 << 20)
    image.write_bytes(content)
    with Gadget([gadgets.mass_storage(image, stall=True)], speed=speed) as gadget:
        given = passed(gadget.bind())
        disk = MassStorage(given.device, pipelined=False)
        disk.wait_ready()  # a host of another machine may have reset it
        for _ in range(3):
            assert disk.read(0, 8) == content[:4096]
            with pytest.raises(ScsiError):
                disk.command(bytes((0xC1,)).ljust(10, b"\0"), 512)  # no such command: the data stage is stalled
            with pytest.raises(ScsiError):
                disk.command(bytes((0x1A, 0, 0x0B, 0, 192, 0)), 192)  # no such mode page
            assert disk.read(8, 8) == content[4096:8192]
            disk.reset_recovery()
            assert disk.read(16, 8) == content[8192:12288]
            given.device.reset()
            disk = MassStorage(given.device, pipelined=False)
            with pytest.raises(ScsiError) as attention:
                disk.test_unit_ready()
            assert (attention.value.key, attention.value.code) == (6, 0x29)  # it has really been reset
            assert disk.read(24, 8) == content[12288:16384]
        gadget.remove()


def test_uas(passed: Pass, machine: Machine, backend: str) -> None:
    """With streams where the backend has them; libusb's binding has none and does it at high speed."""
    image, digest = exchange_image(2)
    controller = "xhci" if backend == "usbfs" else "ehci"
    device = machine.plug_drive(image, "usb-uas", controller=controller)
    try:
        client = UasClient(passed(device).device)
        assert bool(client.streams) == (backend == "usbfs")
        client.device.driver.timeout = 60.0
        with suppress(UasError):
            client.command(bytes(6))  # a drive that has been reset tells it once
        read = hashlib.sha256()
        for first in range(0, 2 * 2048, 1024):
            commands = [client.submit(rw_10(0x28, block, 128), 65536) for block in range(first, first + 1024, 128)]
            for command in commands:
                read.update(command.result())
        assert read.hexdigest() == digest
        data = random.Random(7).randbytes(1 << 20)
        pieces = [(block, data[block * 512 : block * 512 + 65536]) for block in range(0, 2048, 128)]
        for start in range(0, len(pieces), 4):
            batch = [client.submit(rw_10(0x2A, block, 128), data=piece) for block, piece in pieces[start : start + 4]]
            for command in batch:
                command.result()
        client.command(bytes((0x35,)).ljust(10, b"\0"))
        assert image.read_bytes()[: 1 << 20] == data
    finally:
        machine.unplug(device)
        image.unlink()


def rw_10(operation: int, block: int, count: int) -> bytes:
    return struct.pack(">BBIBHB", operation, 0, block, 0, count, 0)


# -- HID ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("controller", ["xhci", "ehci"])
def test_a_keyboard(passed: Pass, machine: Machine, controller: str) -> None:
    device = machine.plug("usb-kbd", controller=controller)
    try:
        guest = passed(device).device
        assert guest.configuration is not None
        address = endpoint(guest.configuration.interfaces[0], TransferType.INTERRUPT, is_in=True).address
        guest.control_out(0x21, 0x0A, 0, 0)  # SET_IDLE: a report for each change only
        for key, usage in (("a", 4), ("b", 5), ("1", 0x1E)):
            reports = [guest.submit_in(address, 8) for _ in range(2)]
            machine.press(key)
            assert [td.result() for td in reports] == [bytes((0, 0, usage, 0, 0, 0, 0, 0)), bytes(8)]
        td = guest.submit_in(address, 8)
        guest.pipe(address).cancel(td)
        td = guest.submit_in(address, 8)
        machine.press("c")
        assert td.result()[2] == 6
    finally:
        machine.unplug(device)


def test_a_tablet(passed: Pass, machine: Machine) -> None:
    device = machine.plug("usb-tablet")
    try:
        guest = passed(device).device
        assert guest.configuration is not None
        address = endpoint(guest.configuration.interfaces[0], TransferType.INTERRUPT, is_in=True).address
        for x, y in ((0x1234, 0x0567), (0x7FFF, 0), (0, 0x7FFF)):
            td = guest.submit_in(address, 6)
            machine.point(x, y)
            assert struct.unpack_from("<HH", td.result(), 1) == (x, y)
    finally:
        machine.unplug(device)


# -- serial, network, printer ---------------------------------------------------------------------------------------


def pump(descriptor: int, outgoing: bytes, expected: int, seconds: float = 60.0) -> tuple[threading.Thread, bytearray]:
    """A thread that writes to and reads from the far end at once, until it has read what is expected."""
    received = bytearray()

    def run() -> None:
        left = memoryview(outgoing)
        while left or len(received) < expected:
            readable, writable, _ = select.select([descriptor], [descriptor] if left else [], [], seconds)
            if not readable and not writable:
                return
            if readable:
                received.extend(os.read(descriptor, 65536))
            if writable:
                left = left[os.write(descriptor, left[:4096]) :]

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, received


@pytest.mark.parametrize("kibibytes", [256, pytest.param(1024, marks=pytest.mark.long)])
def test_a_serial_port_both_ways_through_open_and_close(passed: Pass, kibibytes: int) -> None:
    """So much each way in all, the port closed and opened between the parts."""
    parts = 8
    size = (kibibytes << 10) // parts
    with Gadget([gadgets.acm()]) as gadget:
        device = gadget.bind()
        port = SerialPort(passed(device).device)
        far = os.open(gadget.node("acm"), os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            tty.setraw(far, termios.TCSANOW)
            for part in range(parts):
                port.open()
                there = random.Random(part).randbytes(size)
                back = random.Random(part + parts).randbytes(size)
                thread, received = pump(far, back, len(there))
                port.write(there)
                assert port.read(size) == back
                thread.join(60)
                assert received == there
                assert port.close() == b""
        finally:
            os.close(far)


@pytest.mark.parametrize("mebibytes", [1, pytest.param(50, marks=pytest.mark.long)])
def test_a_network_adapter(passed: Pass, mebibytes: int) -> None:
    """Ping, then so much UDP each way, all of it compared."""
    with Gadget([gadgets.network("ncm")], speed="super") as gadget:
        adapter = NetworkAdapter(passed(gadget.bind()).device)
        name = gadget.network_interface
        subprocess.run(["busybox", "ip", "addr", "add", "10.77.0.1/24", "dev", name], check=True)
        subprocess.run(["busybox", "ip", "link", "set", name, "up"], check=True)
        station = Station(adapter, "10.77.0.2", "10.77.0.1")
        for number in range(5):
            station.ping(number)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            far.bind(("10.77.0.1", 7777))
            far.settimeout(PATIENCE)
            for first in range(0, mebibytes << 10, 12):
                payloads = [number.to_bytes(4, "big") * 256 for number in range(first, first + 12)]
                station.send_datagrams(8888, 7777, payloads)
                for payload in payloads:
                    data, sender = far.recvfrom(2048)
                    assert data == payload
                    far.sendto(data[::-1], sender)
                assert [station.receive_datagram(8888) for _ in payloads] == [payload[::-1] for payload in payloads]


def test_a_printer(passed: Pass) -> None:
    with Gadget([gadgets.printer()]) as gadget:
        guest = passed(gadget.bind()).device
        interface = interfaces(guest, PRINTER)[0]
        identity = guest.control_in(0xA1, 0, 0, interface.number << 8, 1024)
        assert b"MFG:usbvfiod" in identity
        page = random.Random(1).randbytes(200_000)
        paper = os.open(gadget.node("printer"), os.O_RDWR | os.O_NONBLOCK)
        try:
            thread, printed = pump(paper, b"", len(page))
            for start in range(0, len(page), 8192):
                guest.bulk_out(bulk_pair(interface)[1], page[start : start + 8192])
            thread.join(60)
            assert printed == page
        finally:
            os.close(paper)


# -- isochronous ----------------------------------------------------------------------------------------------------


def test_sound(passed: Pass, machine: Machine) -> None:
    """QEMU writes what its sound card plays into a file: a second of samples is in it as it was sent."""
    device = machine.plug("usb-audio", audiodev="sound")
    try:
        guest = passed(device).device
        setting = next(one for one in interfaces(guest, AUDIO) if one.endpoints)
        address = endpoint(setting, TransferType.ISOCHRONOUS, is_in=False).address
        for channel in (0, 1):
            guest.control_out(0x21, 1, 0x0201 + channel, 0x0200, struct.pack("<H", 0x0800))  # volume: unchanged
        guest.set_interface(setting.number, setting.alternate)
        samples = random.Random(48).randbytes(192 * 1000)
        packets = [samples[start : start + 192] for start in range(0, len(samples), 192)]
        pipe = guest.pipe(address)
        queued = [pipe.submit(packet) for packet in packets[:32]]
        for packet in packets[32:]:
            queued.append(pipe.submit(packet))
            queued[-32].result()
        for td in queued:
            assert td.completion_code == spec.CC_SUCCESS or td.result() == b""
        guest.set_interface(setting.number, 0)
    finally:
        machine.unplug(device)
    played = Path("/exchange/sound.wav").read_bytes()
    assert sum(packet in played for packet in packets) > 900


@pytest.mark.parametrize("speed", ["high", "super"])
def test_isochronous_packets_arrive_in_order(passed: Pass, speed: str) -> None:
    source = usbip_devices.SourceSink(speed)
    with attach(source) as attachment:
        guest = passed(attachment.wait()).device
        guest.set_interface(1, 1)
        pipe = guest.pipe(usbip_devices.ISOCHRONOUS_IN)
        queued = [pipe.submit(length=usbip_devices.PACKET_BYTES) for _ in range(32)]
        numbers = []
        for _ in range(500):
            data = queued.pop(0).result()
            assert len(data) == usbip_devices.PACKET_BYTES
            numbers.append(struct.unpack_from("<I", data)[0])
            queued.append(pipe.submit(length=usbip_devices.PACKET_BYTES))
        assert numbers == list(range(500))
        pipe.flush()
        sent = [bytes((number & 0xFF,)) * usbip_devices.PACKET_BYTES for number in range(200)]
        out = guest.pipe(usbip_devices.ISOCHRONOUS_OUT)
        writes = [out.submit(packet) for packet in sent[:32]]
        for packet in sent[32:]:
            writes.pop(0).result()
            writes.append(out.submit(packet))
        for td in writes:
            td.result()
        assert source.received[usbip_devices.ISOCHRONOUS_OUT] == sent


# -- media, cards, source and sink ----------------------------------------------------------------------------------


def test_media_transfer(passed: Pass, machine: Machine, tmp_path: Path) -> None:
    directory = Path(f"/exchange/media{os.getpid()}")
    directory.mkdir(exist_ok=True)
    content = random.Random(3).randbytes(300_000)
    (directory / "picture.jpg").write_bytes(content)
    device = machine.plug("usb-mtp", rootdir=str(outside(directory)))
    try:
        player = MediaTransfer(passed(device).device)
        assert player.operation(0x1002, 1).code == 0x2001
        handles = player.operation(0x1007, 0xFFFFFFFF, 0, 0xFFFFFFFF)
        assert handles.code == 0x2001
        count, *objects = struct.unpack(f"<{len(handles.data) // 4}I", handles.data)
        assert count == len(objects) == 1
        assert player.operation(0x1009, objects[0]).data == content
        assert player.operation(0x1003).code == 0x2001
    finally:
        machine.unplug(device)


def test_a_smartcard(passed: Pass, machine: Machine) -> None:
    children = [("ccid-card-passthru", {"chardev": "wire0"})]
    device = machine.plug("usb-ccid", children=children)
    card = Card(wire("wire0"), lambda apdu: apdu[::-1] + b"\x90\x00")
    try:
        guest = passed(device).device
        assert card.inserted.wait(PATIENCE)
        reader = CardReader(guest)
        assert reader.message(CardReader.POWER_ON)[::2] == (0, ANSWER_TO_RESET)
        for length in (5, 20, 200):
            apdu = bytes(range(length))
            status, error, answer = reader.message(CardReader.TRANSFER, apdu)
            assert (status, error) == (0, 0)
            assert answer == apdu[::-1] + b"\x90\x00"
    finally:
        card.stop()
        machine.unplug(device)


@pytest.mark.parametrize("speed", ["full", "high", "super"])
def test_source_and_sink(passed: Pass, speed: str) -> None:
    with Gadget([gadgets.source_sink(pattern=1)], identity="0525:a4a0", speed=speed) as gadget:
        guest = passed(gadget.bind()).device
        assert guest.configuration is not None
        bulk_in, bulk_out = bulk_pair(guest.configuration.interfaces[0])
        size = guest.pipe(bulk_in).max_packet_size
        data = guest.bulk_in(bulk_in, 64 * size)
        assert data == bytes(index % size % 63 for index in range(64 * size))
        guest.bulk_out(bulk_out, data)
        guest.bulk_out(bulk_out, data[:100], scatter=True, split=(1, 2, 30))
        for address in (bulk_in, bulk_out):
            guest.control_out(0x02, 3, 0, address)  # SET_FEATURE(ENDPOINT_HALT)
            with pytest.raises(DriverError) as stalled:
                guest.bulk_in(address, size) if address & 0x80 else guest.bulk_out(address, data[:size])
            assert stalled.value.completion_code == spec.CC_STALL
            guest.pipe(address).recover()
        assert guest.bulk_in(bulk_in, size) == data[:size]
        guest.bulk_out(bulk_out, data)
        td = [guest.submit_in(bulk_in, 64 * size) for _ in range(8)]
        guest.pipe(bulk_in).flush()
        assert all(one.done for one in td)
        assert guest.bulk_in(bulk_in, size) == data[:size]
