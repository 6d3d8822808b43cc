"""The Debian tree the VM tests run from: QEMU, the guest's kernel and the guest's programs.

One `debootstrap` of Debian 13 with QEMU from its backports (the first release there that has a vfio-user client), built
once below the cache directory and named after its recipe. Nothing of it is installed on the system: QEMU runs through
the tree's own dynamic linker (`qemu_argv`), so using the tree needs no root; only building it does.

A tree is built under a temporary name and renamed when it is complete, so a directory with the final name is always
whole. Two builds at the same time are excluded by a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SUITE = "trixie"
BACKPORTS = f"{SUITE}-backports"

# From the release itself. The kernel is the one a Debian 13 guest has; the rest is what tests call in the guest.
PACKAGES = (
    "linux-image-amd64",
    "kmod",
    "busybox-static",
    "coreutils",
    "e2fsprogs",
    "usbutils",
    "udev",  # its hardware database has the names lsusb prints
    "sg3-utils",
    "evtest",
    "alsa-utils",
    "tshark",  # reads captures
    "usbip",  # stock peers of remote devices
    "usbredirect",
    "iproute2",  # namespaces, and networks that delay and lose
    "python3",  # runs the backends and their tests in the lab (lab.py); its packages come from the site directory
)
# From backports: vfio-user-pci came with 10.1, the release has 10.0; and a second, newer kernel beside the release's.
BACKPORTED_PACKAGES = ("qemu-system-x86", "linux-image-amd64")

QEMU = "usr/bin/qemu-system-x86_64"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
STAMP = "usbvfiod-stamp.json"
NEEDED_BYTES = 2_000_000_000  # the tree takes 0.7 GB, the packages on their way into it the rest
KEPT_TREES = 2

# Documentation and translations are most of a small system's files and no test reads them.
DPKG_EXCLUDES = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


class VmError(Exception):
    """The tree cannot be built or used. The message is one line, for the person at the terminal."""


def cache_directory() -> Path:
    """Where everything built for VM tests lives; not created here."""
    explicit = os.environ.get("USBVFIOD_CACHE")
    if explicit:
        return Path(explicit).expanduser().absolute() / "vm"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "usbvfiod" / "vm"


def recipe() -> str:
    """A short hash over everything that decides what is in a tree."""
    text = json.dumps([1, SUITE, PACKAGES, BACKPORTED_PACKAGES, DPKG_EXCLUDES])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def tree_directory() -> Path:
    """The tree of the present recipe, whether it exists or not."""
    return cache_directory() / f"{SUITE}-{recipe()}"


def why_unavailable() -> str | None:
    """Why the tree cannot be used as it stands, or None when it can."""
    if platform.machine() != "x86_64":
        return f"VM tests need an x86-64 machine, this is {platform.machine()}"
    tree = tree_directory()
    try:
        json.loads((tree / STAMP).read_text())
    except FileNotFoundError:
        return f"the VM test tree {tree} is not there; run `make vm` (as root)"
    except PermissionError:
        return f"the VM test tree {tree} is not readable for this user; set USBVFIOD_CACHE to one that is"
    except ValueError:
        return f"the VM test tree's stamp {tree / STAMP} is damaged; remove {tree} and run `make vm`"
    return None


def package_versions(tree: Path) -> dict[str, str]:
    """What the stamp says is installed: package name to version, the ones asked for only."""
    versions: dict[str, str] = json.loads((tree / STAMP).read_text())["packages"]
    return versions


def program_argv(tree: Path, program: str) -> list[str]:
    """How to start a program of the tree (a path relative to it) on this system, without chroot and without root."""
    directories = [tree / LIBRARIES, *(tree / LIBRARIES / name for name in ("pulseaudio", "systemd"))]
    loader = tree / LIBRARIES / "ld-linux-x86-64.so.2"
    libraries = ":".join(str(directory) for directory in directories)
    return [str(loader), "--library-path", libraries, "--argv0", Path(program).name, str(tree / program)]


def qemu_argv(tree: Path) -> list[str]:
    """`program_argv` for QEMU with the directories of its firmware; needs `qemu_environment` as well."""
    firmware = [tree / "usr/share/qemu", tree / "usr/share/seabios"]
    return program_argv(tree, QEMU) + [word for directory in firmware for word in ("-L", str(directory))]


def qemu_environment(tree: Path) -> dict[str, str]:
    """The environment for `qemu_argv`: its loadable modules are the tree's, nothing else is changed."""
    return {**os.environ, "QEMU_MODULE_DIR": str(tree / LIBRARIES / "qemu")}


def kernel(tree: Path, *, backported: bool = False) -> tuple[Path, str]:
    """A guest kernel's image and its release (the name of its directory of modules): Debian's own, or the newer one."""
    images = {path.name.removeprefix("vmlinuz-"): path for path in (tree / "boot").glob("vmlinuz-*")}
    if len(images) != 2:
        raise VmError(f"{tree}/boot holds {len(images)} kernels where two are expected; remove {tree}, run `make vm`")
    order = sorted(images, key=lambda release: [int(number) for number in re.findall(r"\d+", release)])
    release = order[backported]
    return images[release], release


@contextlib.contextmanager
def build_lock(directory: Path) -> Iterator[int]:
    """Held while something in the cache directory is built; waits for another build and says so.

    Gives the lock's file descriptor: a process that inherits it holds the lock too, even if this one is killed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another build in {directory}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def ensure() -> Path:
    """Return the tree of the present recipe, building it first if it is missing.

    Building takes about two minutes and needs root, a Debian mirror and 2 GB. Raises VmError, and leaves nothing
    half-built, when it cannot be done.
    """
    tree = tree_directory()
    if why_unavailable() is None:
        return tree
    if platform.machine() != "x86_64":
        raise VmError(str(why_unavailable()))
    if os.geteuid() != 0:
        raise VmError(
            "building the VM test tree needs root (debootstrap): run `make vm` as root, or share a root's "
            "tree through USBVFIOD_CACHE"
        )
    cache = tree.parent
    with build_lock(cache) as lock:
        if why_unavailable() is None:  # the build we waited for made it
            return tree
        for leftover in [*cache.glob(f"{SUITE}-*.building"), tree]:
            remove(leftover)
        free = shutil.disk_usage(cache).free
        if free < NEEDED_BYTES:
            raise VmError(
                f"building the VM test tree needs {NEEDED_BYTES / 1e9:.1f} GB in {cache}, "
                f"only {free / 1e9:.1f} GB are free"
            )
        building = cache / f"{tree.name}.building"
        try:
            _Build(building, cache / "build.log", lock).run()
            building.rename(tree)
        finally:
            remove(building)
        others = [path for path in cache.glob(f"{SUITE}-*") if (path / STAMP).exists() and path != tree]
        others.sort(key=lambda path: (path / STAMP).stat().st_mtime, reverse=True)
        for old in others[KEPT_TREES - 1 :]:
            remove(old)
    return tree


def remove(tree: Path) -> None:
    """Delete a tree, after unmounting what an interrupted debootstrap may have left mounted in it."""
    if tree.exists():
        unmount(tree)
        shutil.rmtree(tree)


def unmount(tree: Path) -> None:
    """Unmount what debootstrap mounts in a tree; it leaves it there where it was killed or has no /proc itself."""
    for name in ("dev/pts", "dev", "sys", "proc"):
        while os.path.ismount(tree / name):
            subprocess.run(["umount", str(tree / name)], check=True)


class _Build:
    """One build of a tree at `tree`, a directory which does not exist yet; what the tools print goes to `log`."""

    def __init__(self, tree: Path, log: Path, lock: int) -> None:
        self._tree = tree
        self._log = log
        self._lock = lock

    def run(self) -> None:
        """Make the whole tree, its stamp last. Raises VmError."""
        started = time.monotonic()
        tree = self._tree
        self._log.write_text("")
        self._ensure_debootstrap()
        mirror = system_mirror()
        where = f" from {mirror}" if mirror else ""
        _say(f"debootstrap of Debian {SUITE}{where} into {tree.parent} (log: {self._log})")
        self._step("debootstrap", "debootstrap", "--variant=minbase", SUITE, str(tree), *([mirror] if mirror else []))
        unmount(tree)
        # Only now: debootstrap's own packages come in whole, what is added here should stay small and start nothing.
        _configure(tree)
        in_tree = ["chroot", str(tree), "apt-get", "-y", "-q", "--no-install-recommends"]
        _say("installing the guest's kernel and programs")
        self._step("apt-get update in the tree", *in_tree, "update")
        self._step("installing the guest's packages", *in_tree, "install", *PACKAGES)
        _say(f"installing QEMU and the newer kernel from {BACKPORTS}")
        self._step("installing QEMU and the newer kernel", *in_tree, "-t", BACKPORTS, "install", *BACKPORTED_PACKAGES)
        self._step("apt-get clean in the tree", *in_tree, "clean")
        asked = [*PACKAGES, *BACKPORTED_PACKAGES]
        query = ["chroot", str(tree), "dpkg-query", "-W", "-f", "${Package} ${Version}\n", *asked]
        listing = subprocess.run(query, check=True, capture_output=True, text=True).stdout
        packages = dict(line.split() for line in listing.splitlines())
        stamp = {"recipe": recipe(), "suite": SUITE, "packages": packages}
        (tree / STAMP).write_text(json.dumps(stamp, indent=1) + "\n")
        tree.chmod(0o755)
        _say(f"the tree is ready after {time.monotonic() - started:.0f} s, QEMU {packages['qemu-system-x86']}")

    def _ensure_debootstrap(self) -> None:
        if _has("debootstrap"):
            return
        if not _has("apt-get"):
            raise VmError("building the VM test tree needs debootstrap, which is not installed")
        _say("installing debootstrap")
        install = ["apt-get", "-y", "-q", "--no-install-recommends", "install", "debootstrap"]
        try:
            self._step("installing debootstrap", *install)
        except VmError:
            self._step("apt-get update", "apt-get", "-q", "update")
            self._step("installing debootstrap", *install)

    def _step(self, what: str, *command: str) -> None:
        """Run one program of the build; if it fails raise VmError with its own first complaint."""
        # INITRD=No keeps the kernel package from generating an initramfs: the guest has its own.
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "INITRD": "No"}
        environment["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin"
        with open(self._log, "ab") as output:
            output.write(f"+ {' '.join(command)}\n".encode())
            output.flush()
            start = output.tell()
            result = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                pass_fds=(self._lock,),  # if this process is killed, no other build starts before the step has ended
            )
        if result.returncode == 0:
            return
        with open(self._log, "rb") as written:
            written.seek(start)
            lines = [line.strip() for line in written.read().decode(errors="replace").splitlines() if line.strip()]
        complaints = [line for line in lines if line.startswith(("E: ", "Err:", "dpkg: error"))] or lines[-1:]
        reason = complaints[0] if complaints else f"exit status {result.returncode}"
        raise VmError(f"{what} failed: {reason} (whole log: {self._log})")


def _configure(tree: Path) -> None:
    """Give a fresh tree its backports, the system's way to the network, and rules that keep it small and quiet."""
    sources = tree / "etc/apt/sources.list"
    fields = next(line.split() for line in sources.read_text().splitlines() if line.startswith("deb "))
    uri = next(field for field in fields[1:] if "://" in field)
    (tree / "etc/apt/sources.list.d/backports.list").write_text(f"deb {uri} {BACKPORTS} main\n")
    shutil.copyfile("/etc/resolv.conf", tree / "etc/resolv.conf")
    (tree / "etc/apt/apt.conf.d/90usbvfiod").write_text(apt_configuration(tree))
    excludes = "".join(f"path-exclude={pattern}\n" for pattern in DPKG_EXCLUDES)
    (tree / "etc/dpkg/dpkg.cfg.d/usbvfiod").write_text(excludes)
    policy = tree / "usr/sbin/policy-rc.d"  # asked before a package starts a service: 101 means never
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)


def apt_configuration(tree: Path) -> str:
    """The system's proxy and certificate settings for apt in the tree; named files are copied to the same paths."""
    lines = ['Acquire::Languages "none";', 'Acquire::Retries "3";']
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True).stdout if _has("apt-config") else ""
    for line in dump.splitlines():
        if not re.match(r"Acquire::(http|https)::", line, re.IGNORECASE) or "Proxy-Auto-Detect" in line:
            continue  # a detection program is the system's and would not be found in the tree
        lines.append(line)
        _copy_named_file(tree, line)
    bundle = os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"
    if Path(bundle).is_file() and not any(re.match("Acquire::https::CAInfo ", line, re.IGNORECASE) for line in lines):
        inside = tree / "etc/apt/usbvfiod-certificates.pem"  # the minimal tree has none of its own
        shutil.copyfile(bundle, inside)
        lines.append(f'Acquire::https::CAInfo "/{inside.relative_to(tree)}";')
    return "\n".join(lines) + "\n"


def _copy_named_file(tree: Path, line: str) -> None:
    value = line.split('"')[1] if '"' in line else ""
    source = Path(value)
    if source.is_absolute() and source.is_file():
        target = tree / value.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _has(program: str) -> bool:
    return shutil.which(program) is not None


def system_mirror() -> str | None:
    """The Debian mirror this system's apt uses, or None where that is unknown (debootstrap then has its default)."""
    if not _has("apt-get"):
        return None
    form = "$(SITE)|$(LABEL)|$(RELEASE)"
    result = subprocess.run(["apt-get", "indextargets", "--format", form], capture_output=True, text=True)
    targets = [line.split("|") for line in result.stdout.splitlines() if line.count("|") == 2]
    usable = [target for target in targets if target[0].startswith(("http://", "https://"))]
    for site, label, _ in usable:
        if label == "Debian":
            return site
    # Before the first `apt-get update` there are no labels: then the site the system's own release comes from.
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return None
    if release.get("ID") == "debian":
        for site, _, name in usable:
            if name == release.get("VERSION_CODENAME"):
                return site
    return None


def _say(text: str) -> None:
    print(f"vm: {text}", file=sys.stderr, flush=True)
