"""README's ways of installing, typed line by line by an ordinary user of a fresh Debian, and the Debian packages."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.chroot import HOME, Chroot
from tests.e2e.readme import install_commands
from tests.e2e.test_install import check_beside

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes a chroot, which only root can"),
    pytest.mark.skipif(shutil.which("debootstrap", path="/usr/sbin:/usr/bin") is None, reason="needs debootstrap"),
]

OTHERS = ("mass-storage-quirks", "usbguard-rules", "usbip", "usbredir", "web")
"""Plugins that need nothing of the system."""


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def debian(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chroot]:
    """A fresh Debian."""
    directory = tmp_path_factory.mktemp(request.param) / "tree"
    try:
        with Chroot(directory, request.param) as tree:
            yield tree
    finally:
        assert not os.path.ismount(directory / "proc")
        shutil.rmtree(directory, ignore_errors=True)


def plugins(debian: Chroot, program: str) -> set[str]:
    """The plugins that a program uses."""
    listed = json.loads(debian.run(f"{program} plugins --json"))["plugins"]
    assert [plugin["error"] for plugin in listed] == [""] * len(listed)
    return {plugin["name"] for plugin in listed}


def test_make_install(debian: Chroot) -> None:
    for line in install_commands("make install"):
        output = debian.run(line)
    assert "mass-storage-quirks" in output
    program = f"{HOME}/.local/bin/usbvfiod"
    assert plugins(debian, program) == {"virtual", "usbfs", "libusb", *OTHERS}
    assert "the guest reads: Hello, guest!" in debian.run(f"{program} demo --size 8")
    check_beside(HOME / ".local", debian.tree)
    debian.run("make uninstall")
    assert not debian.path(program).exists()


def test_pipx(debian: Chroot) -> None:
    for line in install_commands("pipx install ."):
        debian.run(line)
    program = f"{HOME}/.local/bin/usbvfiod"
    assert plugins(debian, program) == {"virtual", "usbfs"}
    said = debian.run(f"{program} --socket-path usb.sock --device libusb:1-1 2>&1 || true")
    advice = re.search(r"there is no backend 'libusb'; `(.*)` brings it", said)
    assert advice is not None, said
    debian.run(advice[1])
    assert "libusb" in plugins(debian, program)
    debian.run("pipx uninstall usbvfiod")


def test_packages(debian: Chroot) -> None:
    """Last, because their library is then there for the others too."""
    for line in install_commands("make deb"):
        debian.run(line)
    assert debian.run("usbvfiod --version").startswith("usbvfiod ")
    assert plugins(debian, "usbvfiod") == {"virtual", "usbfs"}
    assert "the guest reads: Hello, guest!" in debian.run("usbvfiod demo --size 8")
    check_beside(Path("/usr"), debian.tree)
    assert "(usbvfiod)" in debian.run("id usbvfiod")
    for page in debian.path("/usr/share/man/man1").glob("usbvfiod*.1.gz"):
        debian.run(f"gzip --test /usr/share/man/man1/{page.name}")
    said = debian.run("usbvfiod --socket-path usb.sock --device libusb:1-1 2>&1 || true")
    assert "`sudo apt install ./usbvfiod-libusb_*_all.deb" in said
    debian.run("sudo apt install ./dist/usbvfiod-{mass-storage-quirks,usbguard-rules,usbip,usbredir,web}_*.deb")
    assert "--token-file" in debian.run("usbvfiod web --help")
    if debian.suite != "bookworm":  # whose module for libusb is too old
        debian.run("sudo apt install ./dist/usbvfiod-libusb_*.deb")
        assert plugins(debian, "usbvfiod") == {
            "virtual",
            "usbfs",
            "libusb",
            *OTHERS,
        }
        debian.run("usbvfiod devices")
    debian.run("sudo apt install --no-install-recommends lintian")
    print(debian.run("lintian --fail-on error dist/*.deb"))
    debian.run("sudo apt remove --purge 'usbvfiod*'")
    assert not debian.path("/usr/bin/usbvfiod").exists()
    assert not list(debian.path("/usr/lib/systemd/system").glob("usbvfiod*"))
