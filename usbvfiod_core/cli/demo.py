"""`usbvfiod demo`: everything at work, with no VM, no hardware and no privileges.

A server process serves a virtual flash drive, and this process plays the virtual machine: it connects to the socket,
shares memory, and drives the controller with the test kit's xHCI driver. Whatever is not as it should be is an error.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UsbvfiodError

if TYPE_CHECKING:
    from ..testing.driver import GuestDriver, UsbDevice
    from ..testing.mass_storage import MassStorage

MEBIBYTE = 1 << 20
COMMAND_BYTES = MEBIBYTE
SMALL_BYTES = 4096
SMALL_SECONDS = 0.5


class DemoError(UsbvfiodError):
    """The demonstration did not show what it should have."""


@click.command()
@click.option(
    "--size",
    "mebibytes",
    metavar="MIB",
    type=click.IntRange(1, 4096),
    default=64,
    show_default=True,
    help="Size of the drive in MiB; a quarter of it is written and read.",
)
def demo(mebibytes: int) -> None:
    """Serve a virtual flash drive and drive it, without a VM.

    A server process serves the drive; this process connects as a VMM does and uses the drive as a guest's xHCI driver
    does. Shows what the guest sees, what is written and read back, and the speed.
    """
    from ..testing.driver import GuestDriver
    from ..testing.mass_storage import MassStorage
    from ..testing.served import ServerProcess

    with tempfile.TemporaryDirectory(prefix="usbvfiod-demo-") as name:
        directory = Path(name)
        image, path = directory / "drive.img", directory / "usb.sock"
        with image.open("wb") as file:
            file.truncate(mebibytes * MEBIBYTE)
        device = f"virtual:flash?image={image}"

        _title("The server")
        _say(f"$ usbvfiod --socket-path {path} --device '{device}'")
        started = time.perf_counter()
        server = ServerProcess(path, ("--device", device))
        try:
            _say(f"process {server.process.pid} serves after {(time.perf_counter() - started) * 1000:.0f} ms")
            bus = server.connect()
            try:
                with GuestDriver(bus) as driver:
                    _title("What a guest sees")
                    usb = driver.enumerate()
                    disk = MassStorage(usb)
                    _show_controller(driver)
                    _show_device(usb)
                    _show_disk(disk)
                    _title("Data")
                    _move_data(disk, image, max(mebibytes // 4, 1) * MEBIBYTE)
            finally:
                bus.close()
        finally:
            code = server.stop()
        _title("The end")
        if code != 0 or path.exists():
            raise DemoError(f"the server ended with exit code {code}: {server.output.strip()}")
        _say("the server ended on SIGTERM with exit code 0 and removed its socket")
    _show_commands()


def _show_controller(driver: GuestDriver) -> None:
    capabilities = driver.capabilities
    major, minor = capabilities.version >> 8, capabilities.version >> 4 & 0xF
    ports = ", ".join(f"{each.ports} USB {each.major}" for each in capabilities.protocols)
    _say(
        f"an xHCI {major}.{minor} controller: {ports} ports, {capabilities.max_slots} slots, "
        f"{driver.bus.vectors} MSI-X vectors, {64 if capabilities.addresses_64_bits else 32}-bit addresses"
    )


def _show_device(usb: UsbDevice) -> None:
    descriptor = usb.descriptor
    if descriptor is None or usb.configuration is None:
        raise DemoError("the drive has no descriptors, or no configuration")
    names = [usb.get_string(index) for index in (descriptor.manufacturer, descriptor.product) if index]
    serial = usb.get_string(descriptor.serial_number) if descriptor.serial_number else ""
    identity = f"{descriptor.vendor_id:04x}:{descriptor.product_id:04x} {' '.join(names)}"
    _say(
        f"port {usb.port.port_id}: {usb.speed.name.lower()} speed, {identity}"
        + (f", serial {serial}" if serial else "")
    )
    for interface in usb.configuration.interfaces:
        endpoints = ", ".join(
            f"{each.address:#04x} {'in' if each.address & 0x80 else 'out'} {each.max_packet_size}"
            for each in interface.endpoints
        )
        kind = f"{interface.class_code:02x}/{interface.subclass:02x}/{interface.protocol:02x}"
        _say(f"interface {interface.number}: class {kind}; endpoints {endpoints}")


def _show_disk(disk: MassStorage) -> None:
    identity = disk.inquiry()
    blocks, size = disk.read_capacity()
    _say(f"SCSI: {identity.vendor} {identity.product}, {blocks} blocks of {size} bytes")


def _move_data(disk: MassStorage, image: Path, length: int) -> None:
    pattern = random.Random(2).randbytes(COMMAND_BYTES)
    per_command = COMMAND_BYTES // disk.block_size
    commands = length // COMMAND_BYTES
    stamps = [number.to_bytes(8, "little") for number in range(commands)]
    expected = hashlib.sha256()
    for stamp in stamps:
        expected.update(stamp)
        expected.update(pattern[8:])

    def write() -> None:
        disk.buffer[:COMMAND_BYTES] = pattern
        for number, stamp in enumerate(stamps):
            disk.buffer[:8] = stamp
            disk.write_buffer(number * per_command, per_command)
        disk.synchronize_cache()

    _say(f"{length >> 20} MiB written and flushed, 1 MiB a command: {_rate(length, write)}")
    found = hashlib.sha256()

    def read() -> None:
        for number in range(commands):
            disk.read(number * per_command, per_command)

    _say(f"{length >> 20} MiB read, 1 MiB a command: {_rate(length, read)}")
    for number in range(commands):
        found.update(disk.read(number * per_command, per_command))
    with image.open("rb") as file:
        stored = hashlib.sha256(file.read(length))
    if found.digest() != expected.digest():
        raise DemoError("what was read back is not what was written")
    if stored.digest() != expected.digest():
        raise DemoError("the image file does not hold what was written")
    _say(f"what was read back, and the image file, are what was written: sha256 {expected.hexdigest()[:16]}...")
    blocks = SMALL_BYTES // disk.block_size
    places = random.Random(3)
    count = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SMALL_SECONDS:
        disk.read(places.randrange(length // SMALL_BYTES) * blocks, blocks)
        count += 1
    _say(f"4 KiB reads anywhere, one at a time: {count / elapsed:,.0f} a second, {elapsed / count * 1e6:.0f} µs each")
    _say("(the guest's driver is in Python here)")


def _rate(length: int, work: Callable[[], None]) -> str:
    start = time.perf_counter()
    work()
    return f"{length / (time.perf_counter() - start) / 1e6:,.0f} MB/s"


def _show_commands() -> None:
    program = os.path.basename(sys.argv[0]) if sys.argv[0].endswith("usbvfiod") else "usbvfiod"
    _title("The same with a real VM")
    _say("truncate -s 1G drive.img")
    _say(f"{program} --socket-path /tmp/usb.sock --device 'virtual:flash?image=drive.img'")
    click.echo()
    _say("QEMU, 10.1 or newer (add your own disk or kernel):")
    _say("qemu-system-x86_64 -M q35,memory-backend=mem -m 2G \\")
    _say("  -object memory-backend-memfd,id=mem,size=2G,share=on \\")
    _say('  -device \'{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/tmp/usb.sock"}}\'')
    click.echo()
    _say("Cloud Hypervisor (add your own disk or kernel):")
    _say("cloud-hypervisor --memory size=2G,shared=on --user-device socket=/tmp/usb.sock")


def _title(text: str) -> None:
    click.echo()
    click.secho(text, bold=True)


def _say(text: str) -> None:
    click.echo(f"  {text}")
