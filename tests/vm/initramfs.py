"""The guest's root file system: an initramfs of busybox, a few tools and the modules that USB needs.

It is made from the Debian tree without root (the archive is written here, device nodes are only entries in it) and kept
beside the tree under a name that covers everything it is made of, so a change to `guest_init.sh` costs a second. It is
not compressed, and neither are the modules in it: an emulated processor unpacks slowly.

There are two recipes: `GUEST` is all a guest has; `SYSTEM` is what a guest starts from whose root is the Debian tree
itself.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from tests.vm import tree as debian

HERE = Path(__file__).parent
SHELL = HERE / "guest_shell.sh"
BUSYBOX = "usr/bin/busybox"
UNUSED_AFTER = 24 * 3600.0  # seconds after which an image of another recipe is taken to be nobody's

# Loaded in this order at boot, with what they depend on. usbtest comes before the drivers of real classes have a say
# about a vendor specific device; what binds to which device is the kernel's decision as on any system.
MODULES = (
    "xhci_pci",
    "usb_storage",
    "uas",
    "sd_mod",
    "sg",
    "usbhid",
    "hid_generic",
    "evdev",
    "usbtest",
    "crc32c_generic",  # ext4 asks for it by its algorithm's name; newer kernels have it in their library
    "ext4",
    "vfat",
    "nls_cp437",
    "nls_ascii",
)

# Modules of MODULES that newer kernels do without.
OLD_MODULES = ("crc32c_generic",)

# There for `modprobe` in a test: a host controller and the kernel's own gadget zero behind it, sound, serial ports and
# network adapters.
LOADABLE_MODULES = ("dummy_hcd", "usb_f_ss_lb", "snd_usb_audio", "cdc_acm", "cdc_ncm")

# Beside busybox's applets. Perl is the way to an ioctl (usbtest, usbfs) and to exact timing.
PROGRAMS = (
    "usr/bin/lsusb",
    "usr/bin/dd",  # busybox's does not say how long it took; a script must give this one's path to get it
    "usr/bin/perl",
    "usr/bin/evtest",
    "usr/bin/aplay",
    "usr/bin/amixer",
    "usr/sbin/mkfs.ext4",
    "usr/sbin/e2fsck",
    "usr/sbin/debugfs",
    "usr/bin/sg_compare_and_write",
    "usr/bin/sg_dd",
    "usr/bin/sg_format",
    "usr/bin/sg_inq",
    "usr/bin/sg_luns",
    "usr/bin/sg_modes",
    "usr/bin/sg_persist",
    "usr/bin/sg_raw",
    "usr/bin/sg_readcap",
    "usr/bin/sg_reassign",
    "usr/bin/sg_requests",
    "usr/bin/sg_sanitize",
    "usr/bin/sg_sync",
    "usr/bin/sg_turs",
    "usr/bin/sg_unmap",
    "usr/bin/sg_vpd",
    "usr/bin/sg_write_buffer",
    "usr/bin/sg_write_long",
    "usr/bin/sg_write_same",
    "usr/bin/sg_write_verify",
    "usr/sbin/blkdiscard",
)
CONFIGURATION = ("etc/mke2fs.conf", "usr/share/alsa")  # files, or directories with all that is in them
HWDB_SOURCES = ("20-usb-classes.hwdb", "20-usb-vendor-model.hwdb")  # the names lsusb prints


# The way to the root file system and to QEMU's monitor, then the drivers of every kind of device that tests give away,
# so that there is something to take them from. All others are in the tree for `modprobe`.
SYSTEM_MODULES = (
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    "virtio_console",
    *(name for name in MODULES if name not in ("ext4", "vfat", "nls_cp437", "nls_ascii")),
    "ehci_pci",
    "usbmon",
    "cdc_acm",
    "cdc_ncm",
    "rndis_host",
    "usblp",
    "ftdi_sio",
    "snd_usb_audio",
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is in an initramfs: its `init`, the modules that are loaded by it and those that can be, the programs."""

    init: Path
    modules: tuple[str, ...]
    loadable: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    configuration: tuple[str, ...] = ()
    hardware_names: bool = False


GUEST = Recipe(HERE / "guest_init.sh", MODULES, LOADABLE_MODULES, PROGRAMS, CONFIGURATION, hardware_names=True)
SYSTEM = Recipe(HERE / "system_init.sh", SYSTEM_MODULES)


def ensure(tree: Path, recipe: Recipe = GUEST, *, backported: bool = False) -> Path:
    """Return the initramfs of a recipe for a kernel of this tree, making it first if it is missing.

    Takes about two seconds, needs no root but a cache directory that can be written to. Raises `tree.VmError`.
    """
    return ensure_for(tree, recipe, debian.kernel(tree, backported=backported)[1])


def ensure_for(tree: Path, recipe: Recipe, release: str, *, native: Path | None = None) -> Path:
    """As `ensure`, for any kernel whose modules are in `tree`. If the programs in that are another processor's,
    `native` is a tree with a busybox like it that can say what it has."""
    image = tree.parent / f"initramfs-{_fingerprint(tree, recipe, release)}.cpio"
    if image.exists():
        return image
    try:
        with debian.build_lock(tree.parent):
            if image.exists():
                return image
            with tempfile.NamedTemporaryFile(dir=tree.parent, suffix=".cpio.building", delete=False) as output:
                try:
                    output.write(archive(contents(tree, recipe, release, native or tree)))
                    os.chmod(output.name, 0o644)
                    os.rename(output.name, image)
                except BaseException:
                    os.unlink(output.name)
                    raise
            for old in tree.parent.glob("initramfs-*.cpio"):
                if old.stat().st_mtime < time.time() - UNUSED_AFTER:
                    old.unlink()
    except PermissionError as error:
        raise debian.VmError(
            f"cannot write the guest's initramfs: {error}; run `make vm` as the cache's owner"
        ) from None
    return image


def _fingerprint(tree: Path, recipe: Recipe, release: str) -> str:
    """Of everything that an image is made of; the place of the checkout, which differs, is not among it."""
    digest = hashlib.sha256((tree / debian.STAMP).read_bytes())
    for source in (recipe.init, SHELL, Path(__file__)):
        digest.update(source.read_bytes())
    digest.update(json.dumps([tree.name, release, astuple(recipe)[1:]]).encode())
    return digest.hexdigest()[:12]


# An entry: path without leading slash, mode with the file type, contents (or a link's target), device number.
Entry = tuple[str, int, bytes, tuple[int, int]]


def archive(entries: list[Entry]) -> bytes:
    """A cpio archive in the "newc" form the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format)."""
    parts: list[bytes] = []
    for inode, (name, mode, data, (major, minor)) in enumerate([*entries, ("TRAILER!!!", 0, b"", (0, 0))], start=1):
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, major, minor, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        parts += [header + encoded, bytes(-(len(header) + len(encoded)) % 4), data, bytes(-len(data) % 4)]
    return b"".join(parts)


def contents(tree: Path, recipe: Recipe, release: str, native: Path) -> list[Entry]:
    """Everything in a recipe's root file system for this kernel, directories before what is in them. The busybox in
    `native` runs here."""
    files: dict[str, Entry] = {}

    def add(path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        parent = str(Path(path).parent)
        if parent != "." and parent not in files:
            add(parent, stat.S_IFDIR | 0o755)
        files[path] = (path, mode, data, device)

    for directory in ("proc", "sys", "dev", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64"):
        add(directory, stat.S_IFDIR | 0o755)
    for name in ("bin", "sbin", "lib", "lib64"):
        add(name, stat.S_IFLNK | 0o777, f"usr/{name}".encode())
    add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))  # the kernel opens it for init, before devtmpfs is there
    add("init", stat.S_IFREG | 0o755, recipe.init.read_bytes())
    add("guest_shell.sh", stat.S_IFREG | 0o755, SHELL.read_bytes())
    add(BUSYBOX, stat.S_IFREG | 0o755, (tree / BUSYBOX).read_bytes())
    for path in recipe.programs:
        add(path, stat.S_IFREG | 0o755, (tree / path).read_bytes())
        for soname, library in _libraries(tree, path):
            add(soname, stat.S_IFREG | 0o755, library.read_bytes())
    for configuration in recipe.configuration:
        top = tree / configuration
        for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if file.is_file():
                add(str(file.relative_to(tree)), stat.S_IFREG | 0o644, file.read_bytes())
    if recipe.hardware_names:
        add("etc/udev/hwdb.bin", stat.S_IFREG | 0o444, _hardware_names(tree))
    applets = subprocess.run([native / BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    for applet in applets:
        link = f"usr/bin/{applet}"
        if link not in files and f"usr/sbin/{applet}" not in files:
            add(link, stat.S_IFLNK | 0o777, b"busybox")
    modules, loaded = _modules(tree, recipe, release)
    dependencies = []
    for name, module in modules.items():
        path = f"usr/lib/modules/{release}/{name}.ko"
        add(path, stat.S_IFREG | 0o644, _unpacked(module.path))
        dependencies.append(f"{name}.ko: {' '.join(f'{needed}.ko' for needed in module.needs if needed in modules)}\n")
    add(f"usr/lib/modules/{release}/modules.dep", stat.S_IFREG | 0o644, "".join(dependencies).encode())
    load = "".join(f"/usr/lib/modules/{release}/{name}.ko\n" for name in loaded)
    add("usr/lib/modules/load", stat.S_IFREG | 0o644, load.encode())
    return list(files.values())


def _hardware_names(tree: Path) -> bytes:
    """The part of udev's hardware database that lsusb looks into; the whole one is five times as large."""
    with tempfile.TemporaryDirectory() as root:
        sources = Path(root) / "etc/udev/hwdb.d"
        sources.mkdir(parents=True)
        for name in HWDB_SOURCES:
            shutil.copyfile(tree / "usr/lib/udev/hwdb.d" / name, sources / name)
        command = [*debian.program_argv(tree, "usr/bin/systemd-hwdb"), f"--root={root}", "update"]
        subprocess.run(command, check=True)
        return (Path(root) / "etc/udev/hwdb.bin").read_bytes()


def _unpacked(module: Path) -> bytes:
    return lzma.decompress(module.read_bytes()) if module.suffix == ".xz" else module.read_bytes()


def _libraries(tree: Path, program: str) -> Iterator[tuple[str, Path]]:
    """What a program is linked with: (path in the guest, file), the dynamic linker included."""
    loader, *arguments = debian.program_argv(tree, program)
    listing = subprocess.run([loader, "--list", *arguments], capture_output=True, text=True)
    if listing.returncode != 0 or "not found" in listing.stdout:
        raise debian.VmError(f"the tree misses a library of {program}: {(listing.stderr or listing.stdout).strip()}")
    for name, path in re.findall(r"^\s*(\S+) => (\S+) \(", listing.stdout, re.MULTILINE):
        if name.startswith("/"):
            yield name.lstrip("/").replace("lib64/", "usr/lib64/", 1), Path(path)
        else:
            yield f"{debian.LIBRARIES}/{name}", Path(path)


@dataclass(frozen=True, slots=True)
class Module:
    """A module in the tree; `needs` are the names of the modules it cannot be loaded without."""

    path: Path
    needs: list[str]


def _modules(tree: Path, recipe: Recipe, release: str) -> tuple[dict[str, Module], list[str]]:
    """The modules the guest gets, each after those it needs, and the names of the ones to load at boot."""
    directory = tree / "usr/lib/modules" / release
    known: dict[str, Module] = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        known[_module_name(path)] = Module(directory / path, [_module_name(name) for name in needs.split()])
    # A soft dependency is one the symbols do not show, such as a host controller driver's on its firmware loader.
    for line in (directory / "modules.softdep").read_text().splitlines():
        match = re.match(r"softdep (\S+) pre: (.*?)(?: post:|$)", line)
        if match and _module_name(match[1]) in known:
            known[_module_name(match[1])].needs.extend(_module_name(name) for name in match[2].split())
    builtin = {_module_name(line) for line in (directory / "modules.builtin").read_text().splitlines()}
    ordered: dict[str, Module] = {}

    def visit(name: str) -> None:
        if name not in ordered and name in known:
            for needed in known[name].needs:
                visit(needed)
            ordered[name] = known[name]

    for name in (*recipe.modules, *recipe.loadable):
        if name not in known and name not in builtin and name not in OLD_MODULES:
            raise debian.VmError(f"the guest's kernel has no module {name}")
    for name in recipe.modules:
        visit(name)
    loaded = list(ordered)
    for name in recipe.loadable:
        visit(name)
    return ordered, loaded


def _module_name(path: str) -> str:
    return Path(path).name.split(".ko")[0].replace("-", "_")
