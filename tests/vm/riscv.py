"""A riscv64 guest on QEMU's default board, whose interrupt controller knows no messages: PCI devices have their pins.

What it needs is not part of `make vm`, for its kernel alone is a download of 110 MB: `python -m tests.vm.riscv` puts it
beside the tree, in about a minute, and `test_riscv.py` is skipped where that was not done. Root is not needed. QEMU
runs with the libraries of the tree, which has the same release of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.vm import initramfs
from tests.vm import tree as debian
from tests.vm.guest import Board

ARCHITECTURE = "riscv64"
KERNEL = f"linux-image-{ARCHITECTURE}"
QEMU = f"usr/bin/qemu-system-{ARCHITECTURE}"
RECIPE = initramfs.Recipe(initramfs.HERE / "guest_init.sh", ("xhci_pci", "usb_storage", "sd_mod", "usbtest"))


def directory() -> Path:
    """Where it is unpacked, whether it is there or not; named after the tree's recipe, whose QEMU it has."""
    return debian.cache_directory() / f"{ARCHITECTURE}-{debian.recipe()}"


def why_unavailable() -> str | None:
    """Why there is no such guest, or None if there is."""
    if not (directory() / debian.STAMP).exists():
        return f"{directory()} is not there; run `python -m tests.vm.riscv`"
    return debian.why_unavailable()


def board() -> Board:
    """The board; 16550 ports are its console and, behind PCI, the shell."""
    root, tree = directory(), debian.tree_directory()
    (kernel,) = (root / "boot").glob("vmlinu?-*")
    release = kernel.name.partition("-")[2]
    return Board(
        [*debian.program_argv(tree, str(root / QEMU)), "-L", str(root / "usr/share/qemu")],
        "virt",
        kernel,
        initramfs.ensure_for(root, RECIPE, release, native=tree),
        ("-device", "pci-serial,chardev=shell"),
    )


def ensure() -> Path:
    """Download and unpack what is missing. Raises VmError."""
    root = directory()
    tree = debian.ensure()
    with debian.build_lock(root.parent):
        if (root / debian.STAMP).exists():
            return root
        with tempfile.TemporaryDirectory(dir=root.parent) as place:
            built = Path(place) / "built"
            versions = _unpack(tree, Path(place), built)
            (release,) = os.listdir(built / "usr/lib/modules")
            (built / "lib").symlink_to("usr/lib")
            _run([*debian.program_argv(tree, "usr/sbin/depmod"), "-b", str(built), release])
            (built / debian.STAMP).write_text(json.dumps({"packages": versions}, indent=1) + "\n")
            for old in root.parent.glob(f"{ARCHITECTURE}-*"):
                debian.remove(old)
            built.rename(root)
    return root


def _unpack(tree: Path, place: Path, built: Path) -> list[str]:
    """Fetch the packages with the system's apt, from the tree's mirror, and unpack them."""
    fields = (tree / "etc/apt/sources.list").read_text().split()
    uri = next(field for field in fields if "://" in field)
    signed = f"signed-by={tree}/usr/share/keyrings/debian-archive-keyring.gpg"
    lists, archives = place / "lists", place / "archives"
    for needed in (lists / "partial", archives / "partial", built):
        needed.mkdir(parents=True)
    (place / "status").touch()
    (place / "sources.list").write_text(
        f"deb [{signed} arch=amd64,{ARCHITECTURE}] {uri} {debian.SUITE} main\n"
        f"deb [{signed} arch=amd64] {uri} {debian.BACKPORTS} main\n"
    )
    options = {
        "Dir::State": place,
        "Dir::State::lists": lists,
        "Dir::State::status": place / "status",
        "Dir::Cache": place,
        "Dir::Etc::sourcelist": place / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Architecture": "amd64",
        "APT::Architectures": f"amd64,{ARCHITECTURE}",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    apt = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    _run(["apt-get", *apt, "-q", "update"])
    depends = _run(["apt-cache", *apt, "depends", f"{KERNEL}:{ARCHITECTURE}"])
    kernel = depends.split("Depends:")[1].split()[0]  # of this version, and with the architecture behind it
    wanted = ["qemu-system-riscv", "opensbi", f"busybox-static:{ARCHITECTURE}", kernel]
    _run(["apt-get", *apt, "-q", "-t", debian.BACKPORTS, "download", *wanted], archives)
    packages = sorted(archives.glob("*.deb"))
    for package in packages:
        _run(["dpkg-deb", "-x", str(package), str(built)])
    return [package.name for package in packages]


def _run(command: list[str], place: Path | None = None) -> str:
    result = subprocess.run(command, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode != 0:
        complaints = [line for line in result.stderr.splitlines() if line.startswith("E: ")]
        raise debian.VmError(f"{command[0]} failed: {(complaints or result.stderr.splitlines() or ['?'])[-1]}")
    return result.stdout


if __name__ == "__main__":
    try:
        print(f"vm: {ensure()}")
    except (debian.VmError, OSError) as error:
        sys.exit(f"vm: {error}")
