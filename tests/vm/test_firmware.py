"""SeaBIOS boots from a flash drive: it knows bulk-only, which a drive with USB Attached SCSI has besides."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.vm import tree as debian
from tests.vm.server import UsbvfiodServer
from usbvfiod_core.testing.limits import PATIENCE, wait_until

pytestmark = pytest.mark.vm

# A boot sector that reads the sector behind it (INT 13h) and writes what it finds there to the first serial port.
BOOT_SECTOR = bytes.fromhex("31c0 8ed8 8ec0 b80102 b90200 30f6 bb007e cd13 be007e ac 84c0 7406 baf803 ee ebf5 f4 ebfd")
TEXT = b"read by the BIOS from the second sector"


@pytest.mark.parametrize("options", ["", "&transport=bot"], ids=["uas", "bulk-only"])
def test_seabios_boots_from_a_drive(options: str, tmp_path: Path) -> None:
    image, console = tmp_path / "boot.img", tmp_path / "console"
    image.write_bytes((BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa" + TEXT).ljust(1 << 20, b"\0"))
    tree = debian.tree_directory()
    with UsbvfiodServer([f"virtual:flash?image={image}{options}"], ["-v"]) as server:
        command = [
            *debian.qemu_argv(tree),
            *(
                "-object",
                "memory-backend-memfd,id=ram,size=64M,share=on",
                "-machine",
                "q35,accel=tcg,memory-backend=ram",
            ),
            *("-m", "64M", "-nographic", "-nodefaults", "-no-user-config", "-run-with", "exit-with-parent=on"),
            *("-serial", f"file:{console}", *server.arguments),
        ]
        with subprocess.Popen(
            command, env=debian.qemu_environment(tree), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as qemu:
            try:
                wait_until(
                    lambda: qemu.poll() is not None or (console.exists() and TEXT in console.read_bytes()),
                    "SeaBIOS has not booted from the drive",
                    PATIENCE,
                )
            finally:
                qemu.kill()
                said = qemu.stderr.read().decode() if qemu.stderr is not None else ""
        assert console.read_bytes().count(TEXT) == 1, said + server.log()
