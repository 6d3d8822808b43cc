"""`usbvfiod demo`: everything at work, with no VM, no hardware and no privileges.

A server process serves a virtual flash drive, and this process plays the virtual machine: it connects to the socket,
shares memory, and drives the controller with the test kit's xHCI driver. A keyboard is attached, used and detached by
the commands that a user would type. Whatever is not as it should be is an error.
"""

from __future__ import annotations

import hashlib
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UsbvfiodError
from .numbers import WholeNumber
from .output import say

if TYPE_CHECKING:
    from ..testing.driver import GuestDriver, UsbDevice
    from ..testing.mass_storage import MassStorage

MEBIBYTE = 1 << 20
COMMAND_BYTES = MEBIBYTE
SMALL_BYTES = 4096
SMALL_SECONDS = 0.5
TEXT = "Hello, guest!"
KEYBOARD_ENDPOINT = 0x81


class DemoError(UsbvfiodError):
    """The demonstration did not show what it should have."""


@click.command()
@click.option(
    "--size",
    "mebibytes",
    metavar="MIB",
    type=WholeNumber(1, 4096),
    default=64,
    show_default=True,
    help="Size of the drive in MiB; a quarter of it is written and read.",
)
def demo(mebibytes: int) -> None:
    """Serve a virtual flash drive and drive it, without a VM.

    A server process serves the drive; this process connects as a VMM does and uses the drive as a guest's xHCI driver
    does. Shows what the guest sees, what is written and read back, the speed, and a keyboard that is attached, used
    and detached while the server runs.
    """
    from ..testing.driver import GuestDriver
    from ..testing.mass_storage import MassStorage
    from ..testing.served import ServerProcess

    with tempfile.TemporaryDirectory(prefix="usbvfiod-demo-") as name:
        directory = Path(name)
        image, path, control = directory / "drive.img", directory / "usb.sock", directory / "control.sock"
        with image.open("wb") as file:
            file.truncate(mebibytes * MEBIBYTE)
        device = f"virtual:flash?image={image}"

        _title("The server")
        _say(f"$ usbvfiod --socket-path {path} --control-path {control} --device '{device}'")
        started = time.perf_counter()
        server = ServerProcess(path, ("--control-path", str(control), "--device", device))
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
                    _title("A keyboard, plugged in while the guest runs")
                    _say(f"$ export USBVFIOD_CONTROL={control}")
                    _plug_keyboard(driver, control)
            finally:
                bus.close()
        finally:
            code = server.stop()
        _title("The end")
        if code != 0 or path.exists():
            raise DemoError(f"the server ended with exit code {code}: {server.output.strip()}")
        _say("the server ended on SIGTERM with exit code 0 and removed its socket")
    _title("Devices, and what happens to their transfers, come from plugins")
    _run("plugins")
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


def _plug_keyboard(driver: GuestDriver, control: Path) -> None:
    from ..virtual.usages import CHARACTERS, MODIFIERS

    _run("attach", "virtual:keyboard?name=keys", control=control)
    usb = driver.enumerate()
    _show_device(usb)
    _run("send", "keys", "type", TEXT, control=control)
    characters = {usage: character for character, usage in CHARACTERS.items()}
    typed = ""
    for _ in range(2 * len(TEXT)):  # a key goes down, and up
        modifiers, _reserved, usage, *_more = usb.interrupt_in(KEYBOARD_ENDPOINT, 8)
        if usage:
            typed += characters[usage, bool(modifiers & MODIFIERS["shift"])]
    if typed != TEXT:
        raise DemoError(f"the guest has read {typed!r} instead of {TEXT!r}")
    _say(f"the guest reads: {typed}")
    _run("detach", "keys", control=control)
    driver.poll_until(lambda: not usb.port.connected, "the keyboard is still there")
    _say(f"port {usb.port.port_id} is empty again; the drive has not noticed")


def _run(*arguments: str, control: Path | None = None) -> None:
    """Run a command of usbvfiod as a user would, showing what is typed and what it says."""
    _say(f"$ {shlex.join(['usbvfiod', *arguments])}")
    command = [sys.executable, "-m", "usbvfiod_core", *arguments]
    environment = {**os.environ, **({"USBVFIOD_CONTROL": str(control)} if control is not None else {})}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise DemoError(f"{shlex.join(command)}: {(result.stdout + result.stderr).strip()}")
    for line in result.stdout.splitlines():
        _say(line)


def _rate(length: int, work: Callable[[], None]) -> str:
    start = time.perf_counter()
    work()
    return f"{length / (time.perf_counter() - start) / 1e6:,.0f} MB/s"


def _show_commands() -> None:
    program = _program()
    _title("The same with a real VM")
    _say("In one terminal:")
    _say("$ truncate -s 1G drive.img")
    _say(f"$ {program} --socket-path /tmp/usb.sock --control-path /tmp/control.sock \\")
    _say("    --device 'virtual:flash?image=drive.img'")
    _say("In another, with QEMU 10.1 or newer (add a disk of your own to boot from):")
    _say("$ qemu-system-x86_64 -M q35,accel=kvm:tcg,memory-backend=mem -m 2G \\")
    _say("    -object memory-backend-memfd,id=mem,size=2G,share=on \\")
    _say('    -device \'{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/tmp/usb.sock"}}\'')
    _say("In a third, while it runs:")
    _say("$ export USBVFIOD_CONTROL=/tmp/control.sock")
    _say(f"$ {program} attach 'virtual:keyboard?name=keys'")
    _say(f"$ {program} list")
    _title("Where to read on, in the source tree")
    _say("README.md          other VMMs, devices of this host, installing it for good")
    _say("docs/tutorial.md   a plugin of your own, tested without a VM")
    _say(f"{program} --help, {program} doctor")


def _program() -> str:
    """What a user types for this program in the directory where the demonstration ran."""
    found, called = shutil.which("usbvfiod"), Path(sys.argv[0])
    if called.name != "usbvfiod" or (found is not None and Path(found).samefile(called)):
        return "usbvfiod"
    called = called.resolve()
    return shlex.quote(str(called.relative_to(Path.cwd()) if called.is_relative_to(Path.cwd()) else called))


def _title(text: str) -> None:
    say()
    click.secho(text, bold=True)


def _say(text: str) -> None:
    say(f"  {text}")
