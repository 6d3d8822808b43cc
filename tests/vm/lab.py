"""The lab: a virtual machine whose Linux really owns USB devices, with the checkout and a Python to run it.

    with Lab(directory) as lab:
        print(lab.run("lsusb -t"))
        lab.pytest("tests/lab/test_gadgets.py")

Its root is the Debian tree itself, with a layer in memory above, so anything may be written. The checkout is at
/usbvfiod, `python3` imports the project and its plugins from there. Tests that run inside are in directories named
`lab` (see docs/testing.md); the modules beside them in tests/lab make the devices.

    .venv/bin/python -m tests.vm.lab [PYTEST ARGUMENTS]

boots one and runs pytest in it, or, without arguments, the shell scripts that are typed, a line each.
"""

from __future__ import annotations

import contextlib
import shlex
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from tests.vm import initramfs, lab_packages
from tests.vm import tree as debian
from tests.vm.guest import Guest, GuestError, GuestTimeout

BOOT_TIMEOUT = 120.0
MEMORY_MIB = 1536
TEST_TIMEOUT = 180  # seconds for one test inside; what takes one here takes five to ten there
INSIDE = Path("/usbvfiod")
WIRES = ("qmp", "wire0", "wire1")
"""A monitor of QEMU's, so that what runs in the lab plugs devices in and out; and what the devices may be wired to."""


class LabFailure(GuestError):
    """Tests in the lab failed; the message is what pytest printed there."""


class Lab(Guest):
    """A guest with the tree as its root. `exchange` is a directory of this system that it sees at /exchange."""

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str] = (),
        *,
        kernel_arguments: str = "",
        backported: bool = False,
        timeout: float = BOOT_TIMEOUT,
    ) -> None:
        reason = debian.why_unavailable()
        if reason:
            raise debian.VmError(reason)
        tree = debian.tree_directory()
        self.exchange = directory / "exchange"
        self.exchange.mkdir()
        site = lab_packages.ensure(tree)
        self._write_environment()
        initramfs.ensure(tree)  # for guests of the lab's own
        shares = {"tree": tree, "checkout": lab_packages.CHECKOUT, "site": site, "exchange": self.exchange}
        shares["cache"] = tree.parent
        with contextlib.ExitStack() as stack:
            # Of each pair QEMU has both ends: one is a device's of its own, the other a port in the lab.
            wires = {name: [stack.enter_context(end) for end in socket.socketpair()] for name in WIRES}
            numbers = {name: (near.fileno(), far.fileno()) for name, (near, far) in wires.items()}
            super().__init__(
                directory,
                [
                    *(word for tag, path in shares.items() for word in _share(tag, path)),
                    *_wires(numbers),
                    *("-device", "qemu-xhci,id=xhci,p2=8,p3=8", "-device", "usb-ehci,id=ehci"),
                    *("-audiodev", f"wav,id=sound,path={self.exchange}/sound.wav,out.frequency=48000"),
                    *arguments,
                ],
                memory_mib=MEMORY_MIB,
                processors=2,
                kernel_arguments=f"usbvfiod.lab {kernel_arguments}".strip(),
                backported=backported,
                recipe=initramfs.LAB,
                descriptors=[number for pair in numbers.values() for number in pair],
                timeout=timeout,
            )

    def pytest(self, *arguments: str, timeout: float = 300.0) -> dict[str, int]:
        """Run pytest in the lab, from the checkout's top; returns how many tests passed and how many were skipped.

        What it prints can be followed in pytest.log of `exchange`.
        Raises LabFailure with all that pytest printed if a test failed or none ran, GuestTimeout if it does not end.
        """
        report, log = self.exchange / "report.xml", self.exchange / "pytest.log"
        report.unlink(missing_ok=True)
        words = ["python3", "-m", "pytest", "-c", f"{INSIDE}/pyproject.toml", "-p", "no:cacheprovider", "-rs"]
        words += ["-o", f"timeout={TEST_TIMEOUT}", "--durations=5", "--junitxml=/exchange/report.xml"]
        command = shlex.join([*words, *arguments])
        running = self.start(f"cd {INSIDE} && {command} > /exchange/pytest.log 2>&1; echo pytest ended with $?")
        try:
            ending = self.wait(running, timeout)
        except GuestTimeout as error:
            raise GuestTimeout(f"{log.read_text(errors='replace')}\n{error}") from None
        output = f"{log.read_text(errors='replace')}\n{ending}"
        if not report.exists():
            raise LabFailure(output)
        suite = ElementTree.parse(report).getroot().find("testsuite")
        assert suite is not None
        total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
        if not output.endswith("pytest ended with 0\n") or total == skipped:
            raise LabFailure(output)
        return {"passed": total - skipped, "skipped": skipped}

    def _write_environment(self) -> None:
        """The shell variables of all that runs in the lab."""
        places = lab_packages.metadata(self.exchange / "distributions")
        path = [str(INSIDE / place.relative_to(lab_packages.CHECKOUT)) for place in places]
        variables = {"PYTHONPATH": ":".join([*path, "/exchange/distributions", "/site"]), "PYTHONUNBUFFERED": "1"}
        variables["USBVFIOD_EXCHANGE"] = str(self.exchange)
        variables["USBVFIOD_CACHE"] = "/var/cache/usbvfiod"
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
        (self.exchange / "environment").write_text("".join(lines))


def _share(tag: str, path: Path) -> list[str]:
    """QEMU's arguments for a directory of this system that the lab mounts by 9p; only /exchange can be written to."""
    access = "" if tag == "exchange" else ",readonly=on"
    filesystem = f"local,id={tag},path={path},security_model=none,multidevs=remap{access}"
    return ["-fsdev", filesystem, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]


def _wires(numbers: dict[str, tuple[int, int]]) -> list[str]:
    """QEMU's arguments for connections between itself and what runs in the lab, which are virtio serial ports there."""
    arguments = ["-device", "virtio-serial-pci"]
    for name, (near, far) in numbers.items():
        arguments += ["-chardev", f"socket,id={name},fd={near}", "-chardev", f"socket,id={name}-port,fd={far}"]
        arguments += ["-device", f"virtserialport,chardev={name}-port,name=usbvfiod.{name}"]
    return [*arguments, "-object", "monitor-qmp,id=inner,chardev=qmp"]


def main(arguments: Sequence[str]) -> int:
    """What `python -m tests.vm.lab` does; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="usbvfiod-lab-") as directory, Lab(Path(directory)) as lab:
        print(f"lab: {lab.boot_seconds:.0f} s to the shell; {lab.exchange}/pytest.log", file=sys.stderr)
        if arguments:
            try:
                print(lab.pytest(*arguments, timeout=3600))
            except GuestError as failure:
                print(failure)
                return 1
            return 0
        for line in sys.stdin:
            try:
                print(lab.run(line, timeout=3600), end="", flush=True)
            except GuestError as error:
                print(error)
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
