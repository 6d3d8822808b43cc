"""A guest with memory that QEMU does not share with the server: it is told once, and the guest loses no time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vm import guest_usb
from tests.vm.guest import CommandError, GuestFactory
from tests.vm.server import UsbvfiodServer
from usbvfiod_core.testing.limits import scaled

pytestmark = pytest.mark.vm

MODULE = 128 << 20
AT_ONCE = 15.0
"""Seconds for what takes two on an idle machine; a drive's command has thirty until Linux gives it up."""


def told(server: UsbvfiodServer) -> list[str]:
    return [line for line in server.log().splitlines() if "share=on" in line]


def test_a_numa_node_that_is_not_shared(guest_factory: GuestFactory, random_image: Callable[[int], Path]) -> None:
    """Linux takes the memory of its own node for the controller: rings and contexts, too."""
    with UsbvfiodServer([f"virtual:flash?image={random_image(4)}", "virtual:keyboard"]) as server:
        guest = guest_factory(server.arguments, memory_mib=256, private_mib=256, private_first=True)
        guest.wait_until("dmesg | grep -q 'xhci_hcd.*startup error'")
        assert guest.run("ls /sys/bus/usb/devices").split() == [], "the controller has been given up"
        lines = told(server)
        assert "it does not share the guest's memory 0x10000000-0x20000000 (256 MiB)" in lines[0]
        assert len(lines) <= 4, "nor is there a line for each try"


@pytest.mark.long
def test_a_module_of_memory_that_is_plugged_in(
    guest_factory: GuestFactory, random_image: Callable[[int], Path]
) -> None:
    """The drive goes on working; what is read into the new memory fails, each time at once."""
    with UsbvfiodServer([f"virtual:flash?image={random_image(4)}"]) as server:
        guest = guest_factory(server.arguments, memory_slot=True, kernel_arguments="memhp_default_state=online_movable")
        (disk,) = guest_usb.wait_disks(guest)
        before = guest_usb.sha256(guest, disk.path)
        assert told(server) == []
        module: dict[str, Any] = {"qom-type": "memory-backend-ram", "id": "module", "size": MODULE}
        guest.qmp("object-add", **module)
        guest.qmp("device_add", driver="pc-dimm", id="dimm", memdev="module")
        guest.wait_until("grep -q Movable /sys/devices/system/memory/memory*/valid_zones")
        started = time.monotonic()
        with pytest.raises(CommandError, match=r"I/O error|Input/output error"):
            guest.run(f"dd if={disk.path} of=/dev/null bs=1M count=4 iflag=direct")  # a program's memory is movable
        assert time.monotonic() - started < scaled(AT_ONCE)
        assert guest_usb.sha256(guest, disk.path) == before, "a kernel's own is not"
        assert len(told(server)) == 2, "when it was plugged in, and when it was used"
