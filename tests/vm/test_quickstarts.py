"""What the quickstarts tell QEMU, told to a real QEMU: it connects to a server, and shares its memory with it.

No guest boots: QEMU's own start is what can go wrong with these arguments.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.vm import tree as debian
from tests.vm.server import UsbvfiodServer
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.testing.limits import PATIENCE, wait_until

pytestmark = pytest.mark.vm

ROOT = Path(__file__).resolve().parents[2]
QUICKSTARTS = ROOT / "docs/quickstart"
SHARED = ["-object", "memory-backend-memfd,id=ram,size=512M,share=on", "-machine", "memory-backend=ram"]
"""What libvirt makes of <memoryBacking>."""


def qemu() -> list[str]:
    """The arguments of the page on QEMU, without the drive."""
    text = (QUICKSTARTS / "qemu.md").read_text().replace("\\\n", " ")
    line = re.search(r"^qemu-system-x86_64 .*$", text, re.MULTILINE)
    assert line is not None
    words = shlex.split(line[0])[1:]
    assert words[-2:] == ["-drive", "file=root.img,if=virtio"]
    return [word.replace("accel=kvm:tcg", "accel=tcg").replace("2G", "512M") for word in words[:-2]]


def proxmox() -> list[str]:
    """The line `args:` of the page on Proxmox VE, behind what that gives QEMU itself."""
    line = re.search(r"^args: (.*)$", (QUICKSTARTS / "proxmox.md").read_text(), re.MULTILINE)
    assert line is not None
    return ["-machine", "type=q35", "-m", "512", *shlex.split(line[1].replace("4096M", "512M"))]


def domain(text: str) -> list[str]:
    """The arguments of a domain, behind what libvirt makes of the rest of it."""
    root = ElementTree.fromstring(text)
    assert root.find("memoryBacking/source[@type='memfd']") is not None
    assert root.find("memoryBacking/access[@mode='shared']") is not None
    words = [each.attrib["value"] for each in root.iter("{http://libvirt.org/schemas/domain/qemu/1.0}arg")]
    return ["-machine", "type=q35", "-m", "512", *SHARED, *words]


def libvirt() -> list[str]:
    """The domain of the page on libvirt."""
    match = re.search(r"```xml\n(.*?)```", (QUICKSTARTS / "libvirt.md").read_text(), re.DOTALL)
    assert match is not None
    return domain(match[1])


def contrib() -> list[str]:
    """The domain in contrib."""
    return domain((ROOT / "contrib/libvirt/domain.xml").read_text())


@pytest.mark.parametrize("arguments", [qemu, proxmox, libvirt, contrib], ids=lambda page: page.__name__)
def test_qemu_connects_and_shares_its_memory(arguments: Any) -> None:
    tree = debian.tree_directory()
    with UsbvfiodServer(["virtual:keyboard"]) as server:
        words = [re.sub(r'(?<="path":")[^"]*', str(server.socket_path), word) for word in arguments()]
        assert any(str(server.socket_path) in word for word in words)
        command = [*debian.qemu_argv(tree), *words, "-nodefaults", "-display", "none", "-S"]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=debian.qemu_environment(tree), text=True
        )
        try:
            wait_until(lambda: process.poll() is not None or memory(server) >= 511 << 20, "QEMU shares its memory")
            assert process.poll() is None, process.communicate()[1]
        finally:
            process.kill()
            process.communicate(timeout=PATIENCE)


def memory(server: UsbvfiodServer) -> int:
    """How many bytes the server's client shares with it. Of a PC's 512 MiB, those below the BIOS come and go."""
    with ControlConnection(server.control_path) as control:
        return int((control.request("status").get("memory") or {}).get("shared", 0))
