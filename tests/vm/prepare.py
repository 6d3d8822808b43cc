"""Build what the VM tests run: `python3 tests/vm/prepare.py`, also behind `make vm`. Standard library only.

The first run takes about two minutes, needs root and a Debian mirror; later ones find everything there and end at once.
What is built lies in ${USBVFIOD_CACHE:-${XDG_CACHE_HOME:-~/.cache}/usbvfiod}/vm, never in the checkout. Exit status 1
with one line on stderr when it cannot be done.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # as a script, this directory is on the path where the checkout should be
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.vm import initramfs, lab_packages, tree
from tests.vm.tree import why_unavailable

__all__ = ["main", "why_unavailable"]


def main() -> int:
    """Make the tree and the initramfs if they are missing and say where they are; returns the exit status."""
    try:
        directory = tree.ensure()
        images = [initramfs.ensure(directory, backported=backported) for backported in (False, True)]
        images.append(initramfs.ensure(directory, initramfs.SYSTEM))
        site = lab_packages.ensure(directory)
    except (tree.VmError, OSError) as error:
        print(f"vm: {error}", file=sys.stderr)
        return 1
    packages = tree.package_versions(directory)
    print(f"vm: {directory}")
    kernels = " and ".join(tree.kernel(directory, backported=backported)[1] for backported in (False, True))
    for image in images:
        print(f"vm: {image}")
    print(f"vm: {site}")
    print(f"vm: QEMU {packages['qemu-system-x86']}, guest kernels {kernels}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
