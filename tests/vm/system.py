"""A guest with a whole system: the Debian tree is its root, so it has Python, its modules, and programs of every kind.

    with System(directory, vfio_user_arguments(socket_path)) as guest:
        print(guest.run("python3 -c 'import usb.core'"))

What is written goes to memory. The checkout is at /usbvfiod, with its plugins, and the Python packages of its tests are
there, too: `python3` imports all of them.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.vm import bytecode, initramfs, lab_packages
from tests.vm import tree as debian
from tests.vm.guest import Guest, Running
from usbvfiod_core.daemon import confinement
from usbvfiod_core.testing import limits
from usbvfiod_core.testing.limits import scaled

BOOT_TIMEOUT = 240.0
SLOWNESS = 2.0  # of limits inside, on top of what they are here; the processor is emulated
INSIDE = Path("/usbvfiod")


class System(Guest):
    """A guest with the tree as its root. `exchange` is a directory of this system that it sees at /exchange."""

    def __init__(
        self, directory: Path, arguments: Sequence[str] = (), *, timeout: float = BOOT_TIMEOUT, **options: Any
    ) -> None:
        reason = debian.why_unavailable()
        if reason:
            raise debian.VmError(reason)
        tree = debian.tree_directory()
        self.exchange = directory / "exchange"
        self.exchange.mkdir()
        site = lab_packages.ensure(tree)
        self._write_environment()
        shares = {"tree": tree, "checkout": lab_packages.CHECKOUT, "site": site, "exchange": self.exchange}
        shares["bytecode"] = bytecode.compiled(tree, site, lab_packages.CHECKOUT, INSIDE)
        words = [word for number, share in enumerate(shares.items(), 1) for word in _share(number, *share)]
        super().__init__(
            directory,
            [*words, *arguments],
            recipe=initramfs.SYSTEM,
            timeout=timeout,
            **options,
        )

    def python(self, module: str, *arguments: object, timeout: float = 240.0) -> str:
        """Run a module of tests/vm/inside in it, as `run` does."""
        return self.wait(self.start_python(module, *arguments), timeout)

    def start_python(self, module: str, *arguments: object) -> Running:
        """Start a module of tests/vm/inside in it, as `start` does."""
        words = " ".join(shlex.quote(str(argument)) for argument in arguments)
        return self.start(f"cd {INSIDE} && exec python3 -m tests.vm.inside.{module} {words}")

    def _write_environment(self) -> None:
        """The shell variables of all that runs in it."""
        places = lab_packages.metadata(self.exchange / "distributions")
        path = [str(INSIDE / place.relative_to(lab_packages.CHECKOUT)) for place in places]
        variables = {"PYTHONPATH": ":".join([*path, "/exchange/distributions", "/site"]), "PYTHONUNBUFFERED": "1"}
        variables["USBVFIOD_EXCHANGE"] = str(self.exchange)
        variables[limits.VARIABLE] = str(scaled(SLOWNESS))
        variables[confinement.VARIABLE] = os.environ.get(confinement.VARIABLE, "kill")
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
        (self.exchange / "environment").write_text("".join(lines))


def _share(number: int, tag: str, path: Path) -> list[str]:
    """QEMU's arguments for a directory of this system that the guest mounts by 9p; only /exchange can be written to.

    Linux resets a virtio device when the guest wakes, after which its driver for 9p waits for ever, unless the device
    says that it keeps its state; which only one behind a root port can.
    """
    access = "" if tag == "exchange" else ",readonly=on"
    filesystem = f"local,id={tag},path={path},security_model=none,multidevs=remap{access}"
    device = f"virtio-9p-pci,fsdev={tag},mount_tag={tag},bus=share{number},x-pcie-pm-no-soft-reset=on"
    port = f"pcie-root-port,id=share{number},chassis={number}"
    return ["-fsdev", filesystem, "-device", port, "-device", device]
