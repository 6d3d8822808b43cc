"""Guests that are not interrupted by MSI-X: a Linux that uses no messages at all (`pci=nomsi`), one on a board that has
none, and one to which the controller offers none but plain MSI. QEMU survives that such a controller is taken out of
the running VM.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.vm import guest_usb, riscv, usbtest
from tests.vm.guest import Guest, GuestFactory, vfio_user_arguments
from tests.vm.server import UsbvfiodServer

pytestmark = pytest.mark.vm

DRIVER = "/sys/bus/pci/drivers/xhci_hcd"


@dataclass
class Machine:
    server: UsbvfiodServer
    image: Path
    guest: Guest

    @property
    def function(self) -> str:
        """The controller's PCI address."""
        return self.guest.run("cd /sys/bus/pci/devices; dirname $(grep -l 0x0c0330 */class)").strip()

    def interrupts(self) -> tuple[int, str]:
        """How many the driver has had, and of which kind they are, as the kernel says it."""
        line = self.guest.run("grep xhci.hcd /proc/interrupts")
        match = re.search(r":\s+(\d+)\s+(\S+)", line)
        assert match is not None, line
        return int(match[1]), match[2]

    def use_the_drive(self) -> int:
        """Read and write it, past the guest's cache; how many interrupts that took."""
        guest = self.guest
        before, _ = self.interrupts()
        (disk,) = guest_usb.wait_disks(guest)
        assert guest_usb.sha256(guest, disk.path) == guest_usb.image_sha256(self.image)
        written = guest.run(
            f"dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null && "
            f"dd if=/tmp/data of={disk.path} bs=64k seek=16 conv=fsync 2>/dev/null && "
            f"sha256sum < /tmp/data",
            60,
        )
        read = f"blockdev --flushbufs {disk.path}; dd if={disk.path} bs=64k skip=16 count=64 2>/dev/null | sha256sum"
        assert guest.run(read, 60) == written
        assert guest_usb.sha256(guest, disk.path) == guest_usb.image_sha256(self.image)
        return self.interrupts()[0] - before

    def use_the_loopback(self) -> None:
        """Let the kernel's own test have transfers of all kinds."""
        node = usbtest.find(self.guest)
        for case in (*usbtest.BULK_AND_CONTROL[:4], *usbtest.INTERRUPT):
            usbtest.run(self.guest, node, case)

    def rebind(self, *, messages: bool) -> None:
        """Give the controller to its driver anew, which may use messages or may not."""
        function = self.function
        self.guest.run(
            f"echo {function} > {DRIVER}/unbind; echo {int(messages)} > /sys/bus/pci/devices/{function}/msi_bus; "
            f"echo {function} > {DRIVER}/bind",
            60,
        )

    def check_logs(self) -> None:
        """Nobody complains, of lost or of spurious interrupts least of all."""
        assert "nobody cared" not in self.guest.dmesg()
        assert [line for line in guest_usb.usb_complaints(self.guest) if "USB disconnect" not in line] == []
        assert not re.search(r"WARNING|ERROR|Traceback", self.server.log())


@pytest.fixture
def boot(guest_factory: GuestFactory, random_image: Callable[[int], Path]) -> Iterator[Callable[..., Machine]]:
    servers: list[UsbvfiodServer] = []

    def start(*options: str, removable: bool = False, **guest_options: Any) -> Machine:
        image = random_image(8)
        server = UsbvfiodServer([f"virtual:flash?image={image}", "virtual:loopback?speed=high"], options)
        servers.append(server)
        arguments = vfio_user_arguments(server.socket_path)
        if removable:
            function = {**json.loads(arguments[1]), "bus": "root-port"}
            arguments = ["-device", "pcie-root-port,id=root-port,chassis=1", "-device", json.dumps(function)]
        return Machine(server, image, guest_factory(arguments, **guest_options))

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def test_a_guest_without_messages(boot: Callable[..., Machine]) -> None:
    machine = boot(kernel_arguments="pci=nomsi")
    assert machine.interrupts()[1] == "IO-APIC"
    assert machine.use_the_drive() > 50
    machine.use_the_loopback()
    machine.check_logs()


def test_a_guest_with_plain_msi_and_the_way_to_the_pin_and_back(boot: Callable[..., Machine]) -> None:
    machine = boot("--interrupts", "msi,intx", removable=True)
    guest = machine.guest
    for messages, kind in ((True, "PCI-MSI"), (False, "IO-APIC"), (True, "PCI-MSI")):
        assert machine.interrupts()[1].startswith(kind)
        assert machine.use_the_drive() > 50
        machine.use_the_loopback()
        machine.rebind(messages=not messages)
    machine.check_logs()
    # With MSI-X, QEMU 11.1 ends here.
    guest.qmp("device_del", id="usbvfiod")
    guest.qmp_event("DEVICE_DELETED", 30)
    assert guest.run("grep -c xhci.hcd /proc/interrupts || true").strip() == "0"
    guest.qmp("query-status")


@pytest.mark.parametrize(
    ("kernel_arguments", "kind"),
    [("", "PCI-MSIX"), pytest.param("pci=nomsi", "IO-APIC", marks=pytest.mark.long)],
)
def test_a_guest_that_writes_the_interrupters_registers_without_a_message(
    boot: Callable[..., Machine], kernel_arguments: str, kind: str
) -> None:
    """QEMU maps them as well if it is offered them, though it gains nothing by it."""
    machine = boot("--interrupter-page", "on", kernel_arguments=kernel_arguments)
    assert machine.interrupts()[1].startswith(kind)
    assert machine.use_the_drive() > 50
    machine.use_the_loopback()
    machine.rebind(messages=True)
    assert machine.use_the_drive() > 50
    machine.check_logs()


@pytest.mark.skipif(riscv.why_unavailable() is not None, reason=str(riscv.why_unavailable()))
def test_another_processor_on_a_board_without_messages(boot: Callable[..., Machine]) -> None:
    machine = boot(board=riscv.board())
    assert machine.guest.run("uname -m") == "riscv64\n"
    kind = machine.interrupts()[1]
    assert "PLIC" in machine.guest.run("grep xhci.hcd /proc/interrupts"), kind
    assert machine.use_the_drive() > 50
    machine.check_logs()
